// What the engine tells about its blocks.
#include <algorithm>

#include "base/bytes.h"
#include "pool/engine.h"

namespace vramkit {

BlockInfo Engine::describe(const Block& block) const {
  BlockInfo info;
  info.address = base() + block.offset;
  info.size = block.size;
  info.requested = block.requested;
  info.stream = streams_.handle_of(block.stream);
  info.stack_id = block.stack_id;
  info.state = block.state;
  info.pending = block.is_free() && block.uses != 0;
  return info;
}

BlockInfo Engine::describe(const Spans::Slot& slot) const {
  BlockInfo info;
  info.address = base() + slot.offset;
  info.size = slot.size;
  info.requested = slot.pending ? 0 : slot.requested;
  info.stream = streams_.handle_of(slot.stream);
  info.stack_id = slot.stack_id;
  info.state = slot.pending ? BlockState::kFree : BlockState::kLive;
  info.kind = BlockKind::kSmall;
  info.pending = slot.pending;
  return info;
}

BlockInfo Engine::describe(const Alias& alias) const {
  BlockInfo info;
  info.address = pages_.alias_address(alias.first);
  info.size = alias.live_pages * page_bytes();
  info.requested = alias.requested;
  info.stream = streams_.handle_of(alias.stream);
  info.stack_id = alias.stack_id;
  info.state = BlockState::kLive;
  info.kind = BlockKind::kStitched;
  return info;
}

std::optional<BlockInfo> Engine::find(uint64_t address) const {
  const FoundBlock found = lookup_.at(address);
  switch (found.kind) {
    case FoundBlock::Kind::kLarge:
      return describe(range_[found.block]);
    case FoundBlock::Kind::kSmall:
      return describe(found.slot);
    case FoundBlock::Kind::kStitched:
      return describe(aliases_[found.alias]);
    case FoundBlock::Kind::kNone:
      break;
  }
  return std::nullopt;
}

uint64_t Engine::free_page_bytes() const {
  uint64_t pages = 0;
  for (const PageRun& run : memory_.whole_pages()) pages += run.count;
  return pages * page_bytes();
}

std::string Engine::alias_limit(uint64_t bytes) const {
  const uint64_t pages = ceil_div(bytes, page_bytes());
  if (aliases_.mapped_pages() + pages <= backend_->max_alias_pages()) return {};
  return backend_->describe_mappings();
}

std::vector<BlockInfo> Engine::snapshot() const {
  std::vector<BlockInfo> blocks;
  for (BlockId id = range_.first(); id != 0; id = range_[id].next) {
    const BlockState state = range_[id].state;
    if (state == BlockState::kFree || state == BlockState::kLive) {
      blocks.push_back(describe(range_[id]));
    }
  }
  spans_.each_slot([&](const Spans::Slot& slot) { blocks.push_back(describe(slot)); });
  aliases_.each([&](AliasId, const Alias& alias) {
    if (alias.live()) blocks.push_back(describe(alias));
  });
  std::sort(blocks.begin(), blocks.end(),
            [](const BlockInfo& a, const BlockInfo& b) { return a.address < b.address; });
  return blocks;
}

uint64_t Engine::pending_bytes() const {
  uint64_t bytes = spans_.pending_bytes();
  range_.mixed().each_from(0, [&](BlockId id) {
    bytes += range_[id].size;
    return true;
  });
  return bytes;
}

uint64_t Engine::metadata_bytes() const {
  return sizeof(Engine) + range_.metadata_bytes() + spans_.metadata_bytes() +
         pages_.metadata_bytes() + aliases_.metadata_bytes() + placement_cache_.metadata_bytes();
}

void Engine::reset_peaks() {
  counters_.reset_peaks();
  pages_.reset_peak();
}

void Engine::discard_free_in_child() {
  constexpr uint64_t kOsPage = 4 * kKiB;
  range_.each_free_extent([&](uint64_t offset, uint64_t size) {
    const uint64_t start = align_up(offset, kOsPage);
    const uint64_t end = align_down(offset + size, kOsPage);
    if (end > start) backend_->discard_in_child(base() + start, end - start);
    return true;
  });
  if (backend_->aliasing()) return;
  // Free pages that stand at an idle alias.
  aliases_.each([&](AliasId, const Alias& alias) {
    if (alias.live()) return;
    backend_->discard_in_child(pages_.alias_address(alias.first), alias.pages * page_bytes());
  });
}

}  // namespace vramkit
