// What placers are asked and what they answer.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/bytes.h"
#include "pool/block.h"
#include "pool/range.h"

namespace vramkit {

/// Where a block went.
struct Place {
  uint64_t offset;  // from the pool's base; behind the primary addresses for a stitched block
  uint64_t size;    // what the block occupies
};

/// What a block that is in no span takes of a free block.
inline uint64_t large_size(uint64_t requested) {
  return align_up(std::max(requested, kGranule), kAlignment);
}

/// A request that no span serves.
struct LargeRequest {
  LargeRequest(uint64_t bytes, StreamIndex taker, uint32_t stack)
      : size(large_size(bytes)), requested(bytes), stack_id(stack), stream(taker) {}

  uint64_t size;
  uint64_t requested;  // bytes asked for
  uint32_t stack_id;
  StreamIndex stream;
};

}  // namespace vramkit
