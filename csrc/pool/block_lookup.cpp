#include "pool/block_lookup.h"

namespace vramkit {

// Filled in place, and only where a block is found: each free goes through here.
FoundBlock BlockLookup::at(uint64_t address) const {
  FoundBlock found;
  const uint64_t offset = address - base_;
  if (offset >= primary_bytes_) {
    find_stitched(offset, found);
    return found;
  }
  const uint32_t entry = range_.entry_at(offset);
  if ((entry & kSpanEntry) != 0) {
    found.slot = spans_.find(entry, offset);
    if (found.slot.size == 0 || found.slot.pending) return found;
    found.kind = FoundBlock::Kind::kSmall;
    found.address = base_ + found.slot.offset;
    found.entry = entry;
    return found;
  }
  const BlockId id = entry != 0 && range_[entry].contains(offset) ? entry : containing(offset);
  const Block& block = range_[id];
  if (id == 0 || block.state != BlockState::kLive) return found;
  found.kind = FoundBlock::Kind::kLarge;
  found.address = base_ + block.offset;
  found.block = id;
  return found;
}

/// For an address behind the granule in which its block starts, or in front of a block that starts
/// in the same granule.
BlockId BlockLookup::containing(uint64_t offset) const {
  return offset < range_.end() ? range_.block_at(offset) : 0;
}

void BlockLookup::find_stitched(uint64_t offset, FoundBlock& found) const {
  if (offset >= layout_.address_bytes()) return;
  const uint64_t page = layout_.alias_page(offset);
  const AliasId id = aliases_.at(page);
  if (id == 0 || page >= aliases_[id].first + aliases_[id].live_pages) return;
  found.kind = FoundBlock::Kind::kStitched;
  found.address = base_ + primary_bytes_ + aliases_[id].first * layout_.page_bytes;
  found.alias = id;
}

}  // namespace vramkit
