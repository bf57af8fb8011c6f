// The free part of the primary range, as one stream sees it.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "pool/range.h"
#include "pool/spans.h"
#include "pool/streams.h"

namespace vramkit {

/// Joins `Range`, which knows where memory is free, with `Streams`, which knows after whose work.
/// Placers ask it what a stream may take. It also brings memory back into the range once the work
/// that its frees waited for is done.
///
/// Callers hold the pool's lock. Offsets are bytes from the start of the range. `poll_events` and
/// everything that drains merge free blocks and may empty chunks, so that a `BlockId` of a free
/// block is invalid afterwards. Only the functions that drain block.
class FreeMemory {
 public:
  FreeMemory(Range& range, Streams& streams, Spans& spans, uint64_t page_bytes)
      : range_(range), streams_(streams), spans_(spans), page_bytes_(page_bytes) {}
  FreeMemory(const FreeMemory&) = delete;
  FreeMemory& operator=(const FreeMemory&) = delete;

  /// True if all of it is free, and the stream can have it, perhaps after a wait.
  bool can_take(uint64_t offset, uint64_t size, StreamIndex stream) const;
  bool can_take(PageRun run, StreamIndex stream) const {
    return can_take(run.first * page_bytes_, run.count * page_bytes_, stream);
  }
  /// The same. Where a wait would be needed, it first looks which work is done.
  bool can_take_after_poll(uint64_t offset, uint64_t size, StreamIndex stream);
  /// For free memory: true if the stream can have it without a wait. Where waits are possible, the
  /// order of the streams alone decides: the layout of a repeated step must not depend on timing.
  bool needs_no_wait(uint64_t offset, uint64_t size, StreamIndex stream) const;
  /// The tightest free block that the stream can have, whoever freed it, perhaps after a wait; or
  /// 0.
  BlockId find_obtainable(uint64_t size, StreamIndex stream) const;

  /// Makes the stream wait for all work on the memory. Only for what it can take.
  void wait_for(uint64_t offset, uint64_t size, StreamIndex stream);
  /// Waits, and makes the memory one block of that state. The caller frees it with
  /// `Range::release`. A failure leaves the memory free.
  BlockId take(uint64_t offset, uint64_t size, BlockState state, StreamIndex stream);
  /// The same with the start of a free block, whose id is invalid afterwards.
  BlockId take_start(BlockId id, uint64_t size, BlockState state, StreamIndex stream);

  /// Pages that lie wholly in free memory, whoever freed it, by address.
  std::vector<PageRun> whole_pages() const;
  /// Those of them that the stream can have, perhaps after a wait.
  std::vector<PageRun> obtainable_pages(StreamIndex stream) const;

  /// Learns which events are done, and reclaims what waited for them. True if anything changed.
  bool poll_events();
  /// Waits for the work that all numbered frees depend on, and reclaims what waited for it. Throws
  /// kBusy while a graph is captured.
  void drain_numbered();
  /// The same for all freed memory: also returns the empty chunks, whose frees have no number yet.
  void drain();

 private:
  template <typename Wanted>
  std::vector<PageRun> whole_pages(Wanted wanted) const;
  void reclaim_pending();

  Range& range_;
  Streams& streams_;
  Spans& spans_;
  const uint64_t page_bytes_;
  bool uses_ended_ = false;  // events are done, and what waits for them is not yet reclaimed
};

}  // namespace vramkit
