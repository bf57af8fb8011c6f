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

/// A request that no span serves.
struct LargeRequest {
  uint64_t requested;  // bytes asked for
  StreamIndex stream;
  uint32_t stack_id;

  /// What it takes of a free block.
  uint64_t size() const { return size_of(requested); }
  static uint64_t size_of(uint64_t requested) {
    return align_up(std::max(requested, kGranule), kAlignment);
  }
};

}  // namespace vramkit
