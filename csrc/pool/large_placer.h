// Where a block goes that is in no span: as before, into free memory, or stitched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "base/bytes.h"
#include "pool/aliases.h"
#include "pool/counters.h"
#include "pool/free_memory.h"
#include "pool/live_set_hash.h"
#include "pool/pages.h"
#include "pool/placement.h"
#include "pool/placement_cache.h"
#include "pool/range.h"
#include "pool/spans.h"
#include "pool/streams.h"

namespace vramkit {

/// The engine calls it under the pool's lock, and frees what it placed (`Engine::release`).
/// `LargePlacer::place` lists the attempts in their order. An attempt that fails changes no live
/// block; one that throws has placed nothing, but may leave a mapped idle alias. Only making room
/// for an alias blocks: it waits for all work on freed memory.
///
/// What steers placement (the cache, the hash of the live set, the most bytes that were allocated
/// at once) is kept apart from the counters, which a user may reset: here they are only written.
class LargePlacer {
 public:
  /// What the placer works on; all of it outlives the placer.
  struct Parts {
    Spans& spans;
    FreeMemory& memory;
    Range& range;
    Streams& streams;
    Pages& pages;
    Aliases& aliases;
    LiveSetHash& live_set;
    PlacementCache& cache;
    Counters& counters;
  };

  LargePlacer(const Layout& layout, const Parts& parts) : layout_(layout), parts_(parts) {}
  LargePlacer(const LargePlacer&) = delete;
  LargePlacer& operator=(const LargePlacer&) = delete;

  /// Nothing where no attempt succeeds.
  std::optional<Place> place(const LargeRequest& request, uint64_t capacity_bytes);
  /// The same with pages that have memory already: others have taken on the device what was given
  /// back to it. No page may be being mapped in the background.
  std::optional<Place> place_in_backed(const LargeRequest& request);

  /// To be called after each allocation, small ones included, with the bytes that are allocated.
  void note_allocated(uint64_t bytes) { most_allocated_ = std::max(most_allocated_, bytes); }

 private:
  /// Which free pages a stitched block may take.
  enum class Pick : uint8_t { kAny, kBacked };

  bool must_pack(uint64_t capacity_bytes) const;
  std::optional<Place> try_reuse(std::optional<uint64_t> place, const LargeRequest& request);
  std::optional<Place> try_own_block(const LargeRequest& request);
  std::optional<Place> try_any_block(const LargeRequest& request);
  std::optional<Place> try_tightest_extent(const LargeRequest& request);
  std::optional<Place> try_backed_block(const LargeRequest& request);
  std::optional<Place> try_mapped_alias(const LargeRequest& request, Pick pick);
  std::optional<Place> try_new_alias(const LargeRequest& request, Pick pick);

  std::optional<uint64_t> tightest_extent(uint64_t size, StreamIndex stream) const;
  std::optional<uint64_t> backed_part(const Block& block, uint64_t size) const;
  bool can_reuse(AliasId id, const LargeRequest& request) const;
  Place take_offset(uint64_t offset, const LargeRequest& request);
  Place take_block(BlockId id, const LargeRequest& request);
  Place fill_block(BlockId id, const LargeRequest& request);
  Place fill_alias(AliasId id, const LargeRequest& request);
  std::vector<PageRun> choose_pages(uint64_t pages, StreamIndex stream, Pick pick) const;
  bool make_room_for_alias(uint64_t pages);
  uint64_t pages_for(const LargeRequest& request) const {
    return ceil_div(request.requested, layout_.page_bytes);
  }

  const Layout layout_;
  const Parts parts_;
  uint64_t most_allocated_ = 0;  // bytes at once, since the pool was made
};

}  // namespace vramkit
