// Where a small block goes: into a slot of a span, perhaps in a chunk that is opened for it.
#pragma once

#include <cstdint>
#include <optional>

#include "pool/free_memory.h"
#include "pool/live_set_hash.h"
#include "pool/pages.h"
#include "pool/placement.h"
#include "pool/placement_cache.h"
#include "pool/range.h"
#include "pool/spans.h"
#include "pool/streams.h"

namespace vramkit {

/// The engine calls it under the pool's lock. A call that throws has placed nothing, but it may
/// have polled events and returned empty chunks to the range.
class SmallPlacer {
 public:
  SmallPlacer(Spans& spans, FreeMemory& memory, Range& range, Streams& streams, Pages& pages,
              const LiveSetHash& live_set, PlacementCache& cache)
      : spans_(spans),
        memory_(memory),
        range_(range),
        streams_(streams),
        pages_(pages),
        live_set_(live_set),
        cache_(cache) {}
  SmallPlacer(const SmallPlacer&) = delete;
  SmallPlacer& operator=(const SmallPlacer&) = delete;

  /// For sizes up to kMaxSmall. Nothing where no chunk has room and none can be made: the request
  /// then goes where large ones go. `Spans::release` frees the slot.
  std::optional<Place> place(uint64_t size, StreamIndex stream, uint32_t stack_id);

 private:
  bool open_chunk(StreamIndex stream);
  uint64_t add_chunk(std::optional<uint64_t> place, StreamIndex stream);

  Spans& spans_;
  FreeMemory& memory_;
  Range& range_;
  Streams& streams_;
  Pages& pages_;
  const LiveSetHash& live_set_;
  PlacementCache& cache_;
};

}  // namespace vramkit
