#include "pool/block_lookup.h"

namespace vramkit {

FoundBlock BlockLookup::at(uint64_t address) const {
  if (!in_pool(address)) return {};
  const uint64_t offset = address - base_;
  if (offset >= layout_.primary_bytes()) return stitched_at(offset);
  const uint32_t entry = range_.entry_at(offset);
  if ((entry & kSpanEntry) != 0) return small_at(offset, entry);
  BlockId id = entry;
  // The address may lie behind the granule in which its block starts, or in front of a block that
  // starts in the same one.
  if (id == 0 || !range_[id].contains(offset)) {
    if (offset >= range_.end()) return {};
    id = range_.block_at(offset);
  }
  const Block& block = range_[id];
  if (block.state != BlockState::kLive) return {};
  FoundBlock found;
  found.kind = FoundBlock::Kind::kLarge;
  found.address = base_ + block.offset;
  found.block = id;
  return found;
}

FoundBlock BlockLookup::small_at(uint64_t offset, uint32_t entry) const {
  FoundBlock found;
  found.slot = spans_.find(entry, offset);
  if (found.slot.size == 0 || found.slot.pending) return {};
  found.kind = FoundBlock::Kind::kSmall;
  found.address = base_ + found.slot.offset;
  found.entry = entry;
  return found;
}

FoundBlock BlockLookup::stitched_at(uint64_t offset) const {
  const uint64_t page = layout_.alias_page(offset);
  const AliasId id = aliases_.at(page);
  if (id == 0 || page >= aliases_[id].first + aliases_[id].live_pages) return {};
  FoundBlock found;
  found.kind = FoundBlock::Kind::kStitched;
  found.address = base_ + layout_.primary_bytes() + aliases_[id].first * layout_.page_bytes;
  found.alias = id;
  return found;
}

}  // namespace vramkit
