// The primary range: one contiguous span of addresses, cut into live and free blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/host_memory.h"
#include "base/lazy_array.h"
#include "base/start_map.h"
#include "pool/bins.h"
#include "pool/block.h"
#include "pool/streams.h"

namespace vramkit {

/// Two blocks that are not free never start in the same granule, so that one array entry a granule
/// finds a block by its address. Requests up to a granule are served from spans instead.
inline constexpr uint64_t kGranule = 16 * kKiB;

/// Chunks, which hold spans, have at least this size.
inline constexpr uint64_t kMinChunk = 256 * kKiB;

/// Set in the entry of a granule that belongs to a span; the other bits are the spans'.
inline constexpr uint32_t kSpanEntry = uint32_t{1} << 31;

/// Neighbouring free blocks, as many as there are, whoever freed them.
struct FreeExtent {
  uint64_t offset;
  uint64_t size;
};

/// Knows which bytes are taken, and by what; it neither maps pages nor waits for streams, which the
/// callers do first. Offsets are bytes from the start of the range. Called under the pool's lock.
/// Taking, releasing and extending merge and split free blocks and invalidate their ids; the id of
/// a block that is not free is valid until its release. After `prepare` nothing fails.
class Range {
 public:
  /// `limit_bytes`: the largest end the range can ever have.
  Range(uint64_t limit_bytes, Streams& streams);

  /// Takes the host memory that the next `takes` calls of `carve`, `take` or `extend` need, and the
  /// release of what they take: only this call can fail, and it changes nothing.
  void prepare(uint64_t takes) {
    blocks_.reserve(2 * takes);  // a free block is cut at its start and at its end
    if (streams_apart_) extent_nodes_.reserve(taken_ + takes + 1);
  }
  /// The same for memory that a stream frees.
  void prepare_stream(StreamIndex stream) {
    if (by_stream_.size() <= stream) add_streams(stream);
  }

  /// Adds free memory at the end.
  void extend(uint64_t bytes);
  uint64_t end() const { return end_; }

  const Block& operator[](BlockId id) const { return blocks_[id]; }
  Block& operator[](BlockId id) { return blocks_[id]; }
  BlockId first() const { return first_; }

  /// Tightest fit among memory that `stream` can take without waiting: its own and nobody's.
  BlockId find(uint64_t size, StreamIndex stream) const;
  /// Tightest fit among all free blocks for which `usable(id)`; the smallest one found first.
  template <typename Usable>
  BlockId find_any(uint64_t size, Usable usable) const;
  BlockId find_aligned(uint64_t size, uint64_t alignment, StreamIndex stream) const;

  /// Makes the start of a free block a block of its own.
  BlockId carve(BlockId free_block, uint64_t size, BlockState state);
  /// Makes [offset, offset + size), all of it free, one block. Free blocks are cut where they stick
  /// out.
  BlockId take(uint64_t offset, uint64_t size, BlockState state);
  /// Frees a block; it merges with free neighbours of the same tag. Returns the block it became.
  BlockId release(BlockId id, const Tag& tag);
  /// The recorded uses of a free block are done: it becomes its stream's own.
  BlockId forget_uses(BlockId id);

  /// From now on memory that was never used stays apart from memory that a stream has freed.
  void keep_streams_apart();

  /// Before a block is freed: its neighbours are about to be looked at.
  void prefetch_neighbours(BlockId id) const {
    __builtin_prefetch(&blocks_[blocks_[id].prev]);
    __builtin_prefetch(&blocks_[blocks_[id].next]);
  }

  /// The block that contains the offset.
  BlockId block_at(uint64_t offset) const;
  /// What is known of the granule: the block, not free, that starts in it, or its span, or 0.
  uint32_t entry_at(uint64_t offset) const { return entries_[offset / kGranule]; }
  /// Marks the granules of a span inside a chunk, and unmarks them.
  void mark_span(uint64_t offset, uint64_t size, uint32_t entry);
  void unmark_span(uint64_t offset, uint64_t size, BlockId chunk);

  /// Calls visit(extent) for extents of at least `size` bytes, small ones first, until it
  /// returns false. Only while streams are kept apart.
  template <typename Visit>
  void each_extent_from(uint64_t size, Visit visit) const {
    for (auto it = extents_.lower_bound({size, 0}); it != extents_.end(); ++it) {
      if (!visit(FreeExtent{it->second, it->first})) return;
    }
  }

  /// Calls visit(offset, size) for each maximal free extent, by address, until false.
  template <typename Visit>
  void each_free_extent(Visit visit) const {
    each_free_extent([](const Block&) { return true; }, visit);
  }
  /// The same of free blocks for which wanted(block): others part extents as live ones do.
  template <typename Wanted, typename Visit>
  void each_free_extent(Wanted wanted, Visit visit) const;

  bool can_merge(const Block& a, const Block& b) const;
  /// For check_valid.
  bool in_its_bin(BlockId id) const;
  bool extents_listed() const;
  uint64_t largest_free_extent() const;
  bool streams_apart() const { return streams_apart_; }
  uint64_t high_water() const { return high_water_; }
  const Bins& mixed() const { return *mixed_; }
  uint64_t metadata_bytes() const;

 private:
  using Extents = std::set<std::pair<uint64_t, uint64_t>, std::less<std::pair<uint64_t, uint64_t>>,
                           NodeAllocator<std::pair<uint64_t, uint64_t>>>;

  void add_streams(StreamIndex last);
  Bins& bins_of(const Block& block);
  void absorb_next(BlockId id);
  BlockId new_block(uint64_t offset, uint64_t size, BlockId after);
  BlockId make_free(BlockId id, const Tag& tag);
  BlockId occupy(BlockId id, BlockState state);
  void set_start(BlockId id);
  void clear_start(BlockId id);
  void insert_free(BlockId id) { bins_of(blocks_[id]).insert(id); }
  void remove_free(BlockId id) { bins_of(blocks_[id]).remove(id); }
  BlockId split(BlockId id, uint64_t size);
  void free_what_was_never_used();
  FreeExtent extent_around(BlockId id) const;
  uint64_t extent_start(BlockId id) const;
  uint64_t extent_end(BlockId id) const;
  BlockId taken_before(uint64_t offset) const;
  BlockId taken_from(uint64_t offset) const;
  BlockId taken_in(uint64_t granule) const;
  void list_extent(BlockId id);
  void unlist_extent(BlockId id);
  void list_extents_beside(BlockId id);
  void unlist_extents_beside(BlockId id);

  Streams& streams_;
  Blocks blocks_;
  LazyArray<uint32_t> entries_;
  LazyArray<BlockId> chunks_;  // by offset / kMinChunk: the chunk that starts there
  StartMap starts_;
  std::unique_ptr<Bins> any_;                     // memory no stream's work can touch
  std::unique_ptr<Bins> mixed_;                   // freed with recorded uses
  std::vector<std::unique_ptr<Bins>> by_stream_;  // the rest, by the stream that freed it
  NodePool extent_nodes_{NodeAllocator<std::pair<uint64_t, uint64_t>>::kNodeBytes};
  Extents extents_{Extents::allocator_type(extent_nodes_)};  // size, offset; while apart
  BlockId first_ = 0;
  BlockId last_ = 0;
  uint64_t end_ = 0;
  uint64_t high_water_ = 0;
  uint64_t taken_ = 0;  // blocks that are not free
  bool streams_apart_ = false;
};

template <typename Usable>
BlockId Range::find_any(uint64_t size, Usable usable) const {
  BlockId best = 0;
  const auto look = [&](const Bins& bins) {
    bins.each_from(size, [&](BlockId id) {
      if (!usable(id)) return true;
      if (best == 0 || blocks_[id].size < blocks_[best].size) best = id;
      return false;
    });
  };
  look(*any_);
  for (const auto& bins : by_stream_) look(*bins);
  look(*mixed_);
  return best;
}

template <typename Wanted, typename Visit>
void Range::each_free_extent(Wanted wanted, Visit visit) const {
  const auto belongs = [&](BlockId id) { return blocks_[id].is_free() && wanted(blocks_[id]); };
  BlockId id = first_;
  while (id != 0) {
    if (!belongs(id)) {
      id = blocks_[id].next;
      continue;
    }
    const uint64_t offset = blocks_[id].offset;
    uint64_t end = offset;
    do {
      end = blocks_[id].end();
      id = blocks_[id].next;
    } while (id != 0 && belongs(id));
    if (!visit(offset, end - offset)) return;
  }
}

}  // namespace vramkit
