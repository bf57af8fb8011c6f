#include "pool/free_memory.h"

#include "base/bytes.h"

namespace vramkit {

bool FreeMemory::can_take(uint64_t offset, uint64_t size, StreamIndex stream) const {
  if (offset + size > range_.end()) return false;
  const bool may_wait = streams_.events_allowed();
  for (BlockId id = range_.block_at(offset);; id = range_[id].next) {
    const Block& block = range_[id];
    if (!block.is_free() || !streams_.obtainable(stream, block.tag(), may_wait)) return false;
    if (block.end() >= offset + size) return true;
  }
}

bool FreeMemory::can_take_after_poll(uint64_t offset, uint64_t size, StreamIndex stream) {
  if (!can_take(offset, size, stream)) return false;
  if (needs_no_wait(offset, size, stream) || !poll_events()) return true;
  // Once more: a merged block is available only once its latest part is.
  return can_take(offset, size, stream);
}

bool FreeMemory::needs_no_wait(uint64_t offset, uint64_t size, StreamIndex stream) const {
  const bool may_wait = streams_.events_allowed();
  for (BlockId id = range_.block_at(offset);; id = range_[id].next) {
    const Tag tag = range_[id].tag();
    if (may_wait ? !streams_.ordered(stream, tag) : !streams_.ready(stream, tag)) return false;
    if (range_[id].end() >= offset + size) return true;
  }
}

BlockId FreeMemory::find_obtainable(uint64_t size, StreamIndex stream) const {
  const bool may_wait = streams_.events_allowed();
  return range_.find_any(
      size, [&](BlockId id) { return streams_.obtainable(stream, range_[id].tag(), may_wait); });
}

void FreeMemory::wait_for(uint64_t offset, uint64_t size, StreamIndex stream) {
  for (BlockId id = range_.block_at(offset); id != 0 && range_[id].offset < offset + size;
       id = range_[id].next) {
    streams_.wait_for(stream, range_[id].tag());
  }
}

BlockId FreeMemory::take(uint64_t offset, uint64_t size, BlockState state, StreamIndex stream) {
  wait_for(offset, size, stream);
  return range_.take(offset, size, state);
}

BlockId FreeMemory::take_start(BlockId id, uint64_t size, BlockState state, StreamIndex stream) {
  streams_.wait_for(stream, range_[id].tag());
  return range_.carve(id, size, state);
}

/// Pages that lie wholly in neighbouring free blocks for which wanted(block).
template <typename Wanted>
std::vector<PageRun> FreeMemory::whole_pages(Wanted wanted) const {
  std::vector<PageRun> runs;
  range_.each_free_extent(wanted, [&](uint64_t offset, uint64_t size) {
    const uint64_t first = ceil_div(offset, page_bytes_);
    const uint64_t end = (offset + size) / page_bytes_;
    if (end > first) runs.push_back({first, end - first});
    return true;
  });
  return runs;
}

std::vector<PageRun> FreeMemory::whole_pages() const {
  return whole_pages([](const Block&) { return true; });
}

std::vector<PageRun> FreeMemory::obtainable_pages(StreamIndex stream) const {
  const bool may_wait = streams_.events_allowed();
  return whole_pages(
      [&](const Block& block) { return streams_.obtainable(stream, block.tag(), may_wait); });
}

bool FreeMemory::poll_events() {
  uses_ended_ |= streams_.poll();
  if (!uses_ended_) return false;
  reclaim_pending();
  return true;
}

/// Lets free blocks whose recorded uses are over merge again, and returns slots to their spans.
void FreeMemory::reclaim_pending() {
  std::vector<BlockId> done;
  range_.mixed().each_from(0, [&](BlockId id) {
    if (streams_.uses_done(range_[id].tag())) done.push_back(id);
    return true;
  });
  for (const BlockId id : done) range_.forget_uses(id);
  spans_.reclaim_pending();
  uses_ended_ = false;
}

void FreeMemory::drain_numbered() {
  uses_ended_ = true;  // no event is left from which it could be learnt later
  streams_.drain();
  reclaim_pending();
}

void FreeMemory::drain() {
  drain_numbered();
  // Frees of small blocks are numbered only when their chunk comes back.
  if (spans_.give_back_chunks()) streams_.drain();
}

}  // namespace vramkit
