#include "pool/range.h"

#include <algorithm>

#include "base/bytes.h"

namespace vramkit {
namespace {

constexpr int kFewNeighbours = 4;

}  // namespace

Range::Range(uint64_t limit_bytes, Streams& streams)
    : streams_(streams),
      blocks_(std::min<uint64_t>(limit_bytes / kGranule * 2 + 64, kSpanEntry - 1)),
      entries_(limit_bytes / kGranule + 1),
      chunks_(limit_bytes / kMinChunk + 1),
      starts_(limit_bytes / kGranule + 1),
      any_(std::make_unique<Bins>(blocks_)),
      mixed_(std::make_unique<Bins>(blocks_)) {
  prepare_stream(0);  // every pool has one
}

void Range::add_streams(StreamIndex last) {
  while (by_stream_.size() <= last) by_stream_.push_back(std::make_unique<Bins>(blocks_));
}

void Range::extend(uint64_t bytes) {
  prepare(1);
  // While it still ends where it is listed.
  if (last_ != 0 && blocks_[last_].is_free()) unlist_extent(last_);
  const BlockId id = new_block(end_, bytes, last_);
  end_ += bytes;
  list_extent(make_free(id, Tag{}));
}

BlockId Range::find(uint64_t size, StreamIndex stream) const {
  const BlockId any = any_->find(size);
  const BlockId own = stream < by_stream_.size() ? by_stream_[stream]->find(size) : 0;
  if (own == 0 || any == 0) return own + any;
  return blocks_[own].size <= blocks_[any].size ? own : any;
}

BlockId Range::find_aligned(uint64_t size, uint64_t alignment, StreamIndex stream) const {
  const BlockId own =
      stream < by_stream_.size() ? by_stream_[stream]->find_aligned(size, alignment) : 0;
  return own != 0 ? own : any_->find_aligned(size, alignment);
}

BlockId Range::carve(BlockId free_block, uint64_t size, BlockState state) {
  prepare(1);
  unlist_extent(free_block);
  remove_free(free_block);
  if (blocks_[free_block].size > size) insert_free(split(free_block, size));
  return occupy(free_block, state);
}

BlockId Range::take(uint64_t offset, uint64_t size, BlockState state) {
  prepare(1);
  BlockId id = block_at(offset);
  unlist_extent(id);
  remove_free(id);
  if (blocks_[id].offset < offset) {
    const BlockId rest = split(id, offset - blocks_[id].offset);
    insert_free(id);
    id = rest;
  }
  if (blocks_[id].size > size) insert_free(split(id, size));
  while (blocks_[id].size < size) {
    const BlockId next = blocks_[id].next;
    const uint64_t missing = size - blocks_[id].size;
    remove_free(next);
    // Cut first: the rest keeps its own tag.
    if (blocks_[next].size > missing) insert_free(split(next, missing));
    absorb_next(id);
  }
  return occupy(id, state);
}

BlockId Range::occupy(BlockId id, BlockState state) {
  Block& block = blocks_[id];
  streams_.drop_uses(block.uses);
  block.uses = 0;
  block.state = state;
  ++taken_;
  set_start(id);
  high_water_ = std::max(high_water_, block.end());
  list_extents_beside(id);
  return id;
}

BlockId Range::release(BlockId id, const Tag& tag) {
  unlist_extents_beside(id);  // while it still parts them
  clear_start(id);
  --taken_;
  id = make_free(id, tag);
  list_extent(id);
  return id;
}

BlockId Range::make_free(BlockId id, const Tag& tag) {
  Block& block = blocks_[id];
  block.state = BlockState::kFree;
  block.requested = 0;
  block.stack_id = 0;
  block.stream = tag.stream;
  block.epoch = tag.epoch;
  block.uses = tag.uses;
  if (block.next != 0 && can_merge(block, blocks_[block.next])) {
    remove_free(block.next);
    absorb_next(id);
  }
  if (block.prev != 0 && can_merge(blocks_[block.prev], block)) {
    id = block.prev;
    remove_free(id);
    absorb_next(id);
  }
  insert_free(id);
  return id;
}

BlockId Range::forget_uses(BlockId id) {
  remove_free(id);
  Tag tag = blocks_[id].tag();
  streams_.drop_uses(tag.uses);
  tag.uses = 0;
  return make_free(id, tag);
}

void Range::keep_streams_apart() {
  if (streams_apart_) return;
  // An extent ends at a block that is not free, or at the end of the range.
  extent_nodes_.reserve(taken_ + 1);
  blocks_.reserve(1);
  streams_apart_ = true;
  free_what_was_never_used();
  each_free_extent([this](uint64_t offset, uint64_t size) {
    extents_.emplace(size, offset);
    return true;
  });
}

/// Cuts the last free block where the range was never used: no stream's work can touch what is
/// behind.
void Range::free_what_was_never_used() {
  if (last_ == 0 || !blocks_[last_].is_free() || blocks_[last_].stream == kAnyStream) return;
  const BlockId tail = last_;
  const uint64_t used = high_water_ > blocks_[tail].offset ? high_water_ - blocks_[tail].offset : 0;
  if (used >= blocks_[tail].size) return;
  remove_free(tail);
  const BlockId fresh = used > 0 ? split(tail, used) : tail;
  if (used > 0) insert_free(tail);
  blocks_[fresh].stream = kAnyStream;
  insert_free(fresh);
}

FreeExtent Range::extent_around(BlockId id) const {
  const uint64_t start = extent_start(id);
  return {start, extent_end(id) - start};
}

/// Mostly a neighbour or two are free; where it is many, the map of starts knows the end.
uint64_t Range::extent_start(BlockId id) const {
  for (int steps = 0; steps < kFewNeighbours; ++steps) {
    const BlockId before = blocks_[id].prev;
    if (before == 0 || !blocks_[before].is_free()) return blocks_[id].offset;
    id = before;
  }
  const BlockId taken = taken_before(blocks_[id].offset);
  return taken != 0 ? blocks_[taken].end() : 0;
}

uint64_t Range::extent_end(BlockId id) const {
  for (int steps = 0; steps < kFewNeighbours; ++steps) {
    const BlockId behind = blocks_[id].next;
    if (behind == 0 || !blocks_[behind].is_free()) return blocks_[id].end();
    id = behind;
  }
  const BlockId taken = taken_from(blocks_[id].end());
  return taken != 0 ? blocks_[taken].offset : end_;
}

/// The last block that is not free and starts before the offset, or 0.
BlockId Range::taken_before(uint64_t offset) const {
  uint64_t granule = starts_.at_or_below(offset / kGranule);
  if (granule == StartMap::kNone) return 0;
  if (blocks_[taken_in(granule)].offset < offset) return taken_in(granule);
  if (granule == 0) return 0;
  granule = starts_.at_or_below(granule - 1);
  return granule != StartMap::kNone ? taken_in(granule) : 0;
}

/// The first block that is not free and starts at the offset or behind it, or 0.
BlockId Range::taken_from(uint64_t offset) const {
  uint64_t granule = starts_.at_or_above(offset / kGranule);
  if (granule == StartMap::kNone) return 0;
  if (blocks_[taken_in(granule)].offset >= offset) return taken_in(granule);
  granule = starts_.at_or_above(granule + 1);
  return granule != StartMap::kNone ? taken_in(granule) : 0;
}

/// The block that is not free and starts in the granule: there is one.
BlockId Range::taken_in(uint64_t granule) const {
  const uint32_t entry = entries_[granule];
  // The first span of a chunk has overwritten the entry of the chunk.
  return (entry & kSpanEntry) == 0 ? entry : chunks_[granule * kGranule / kMinChunk];
}

void Range::list_extent(BlockId id) {
  if (!streams_apart_) return;
  const FreeExtent extent = extent_around(id);
  extents_.emplace(extent.size, extent.offset);
}

void Range::unlist_extent(BlockId id) {
  if (!streams_apart_) return;
  const FreeExtent extent = extent_around(id);
  extents_.erase({extent.size, extent.offset});
}

bool Range::extents_listed() const {
  size_t count = 0;
  bool all = true;
  each_free_extent([&](uint64_t offset, uint64_t size) {
    ++count;
    all = extents_.contains({size, offset});
    return all;
  });
  return !streams_apart_ || (all && count == extents_.size());
}

void Range::list_extents_beside(BlockId id) {
  if (!streams_apart_) return;
  const Block& block = blocks_[id];
  if (block.prev != 0 && blocks_[block.prev].is_free()) list_extent(block.prev);
  if (block.next != 0 && blocks_[block.next].is_free()) list_extent(block.next);
}

void Range::unlist_extents_beside(BlockId id) {
  if (!streams_apart_) return;
  const Block& block = blocks_[id];
  if (block.prev != 0 && blocks_[block.prev].is_free()) unlist_extent(block.prev);
  if (block.next != 0 && blocks_[block.next].is_free()) unlist_extent(block.next);
}

BlockId Range::block_at(uint64_t offset) const {
  const uint64_t granule = starts_.at_or_below(offset / kGranule);
  BlockId id = granule != StartMap::kNone ? taken_in(granule) : first_;
  while (blocks_[id].offset > offset) id = blocks_[id].prev;
  while (blocks_[id].end() <= offset) id = blocks_[id].next;
  return id;
}

void Range::mark_span(uint64_t offset, uint64_t size, uint32_t entry) {
  for (uint64_t at = 0; at < size; at += kGranule) {
    entries_[(offset + at) / kGranule] = entry;
  }
}

void Range::unmark_span(uint64_t offset, uint64_t size, BlockId chunk) {
  for (uint64_t at = 0; at < size; at += kGranule) entries_[(offset + at) / kGranule] = 0;
  if (blocks_[chunk].offset == offset) entries_[offset / kGranule] = chunk;
}

uint64_t Range::largest_free_extent() const {
  uint64_t largest = 0;
  if (!streams_apart_) {
    largest = std::max(any_->largest(), mixed_->largest());
    for (const auto& bins : by_stream_) largest = std::max(largest, bins->largest());
    return largest;
  }
  return extents_.empty() ? 0 : extents_.rbegin()->first;
}

uint64_t Range::metadata_bytes() const {
  const uint64_t granules = high_water_ / kGranule;
  return blocks_.metadata_bytes() + granules * sizeof(uint32_t) + granules / 7 +
         (by_stream_.size() + 2) * sizeof(Bins);
}

Bins& Range::bins_of(const Block& block) {
  if (block.uses != 0) return *mixed_;
  if (block.stream == kAnyStream) return *any_;
  prepare_stream(block.stream);
  return *by_stream_[block.stream];
}

bool Range::in_its_bin(BlockId id) const {
  const Block& block = blocks_[id];
  const bool by_stream = block.uses == 0 && block.stream != kAnyStream;
  if (by_stream && block.stream >= by_stream_.size()) return false;
  const Bins& bins = by_stream ? *by_stream_[block.stream] : block.uses != 0 ? *mixed_ : *any_;
  bool found = false;
  bins.each_from(block.size, [&](BlockId other) {
    found = other == id;
    return !found && blocks_[other].size <= 2 * block.size;
  });
  return found;
}

bool Range::can_merge(const Block& a, const Block& b) const {
  if (!a.is_free() || !b.is_free() || a.uses != 0 || b.uses != 0) return false;
  if (a.stream == b.stream) return true;
  return !streams_apart_ && (a.stream == kAnyStream || b.stream == kAnyStream);
}

BlockId Range::new_block(uint64_t offset, uint64_t size, BlockId after) {
  const BlockId id = blocks_.take();
  const BlockId before = after != 0 ? blocks_[after].next : first_;
  blocks_[id] = Block{};
  Block& block = blocks_[id];
  block.offset = offset;
  block.size = size;
  block.prev = after;
  block.next = before;
  (after != 0 ? blocks_[after].next : first_) = id;
  (before != 0 ? blocks_[before].prev : last_) = id;
  return id;
}

BlockId Range::split(BlockId id, uint64_t size) {
  const BlockId rest = new_block(blocks_[id].offset + size, blocks_[id].size - size, id);
  Block& block = blocks_[id];
  block.size = size;
  Block& other = blocks_[rest];
  other.stream = block.stream;
  other.epoch = block.epoch;
  other.uses = block.uses;
  streams_.hold_uses(other.uses);
  return rest;
}

void Range::absorb_next(BlockId id) {
  Block& block = blocks_[id];
  const BlockId gone = block.next;
  const Block& other = blocks_[gone];
  block.size += other.size;
  block.epoch = std::max(block.epoch, other.epoch);
  if (block.stream == kAnyStream) block.stream = other.stream;
  streams_.drop_uses(other.uses);
  block.next = other.next;
  (block.next != 0 ? blocks_[block.next].prev : last_) = id;
  blocks_.give_back(gone);
}

void Range::set_start(BlockId id) {
  const Block& block = blocks_[id];
  const uint64_t granule = block.offset / kGranule;
  entries_[granule] = id;
  starts_.insert(granule);
  if (block.state == BlockState::kChunk) chunks_[block.offset / kMinChunk] = id;
}

void Range::clear_start(BlockId id) {
  const uint64_t granule = blocks_[id].offset / kGranule;
  entries_[granule] = 0;
  starts_.erase(granule);
}

}  // namespace vramkit
