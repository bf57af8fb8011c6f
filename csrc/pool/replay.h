// Runs recorded allocations and frees through a pool.
#pragma once

#include <cstdint>
#include <vector>

#include "pool/pool.h"

namespace vramkit {

/// For one thread. Blocks that are still live when it goes stay allocated.
class Replay {
 public:
  enum class Op : uint8_t { kAllocate = 0, kFree = 1 };

  /// Blocks are named 0 to block_count - 1. The pool must outlive the replay.
  Replay(Pool& pool, uint64_t block_count) : pool_(pool), addresses_(block_count) {}

  /// Runs the event. kOutOfMemory leaves the pool as it was before it.
  Status step(Op op, int64_t id, int64_t size, int32_t stream);
  Pool& pool() const { return pool_; }

 private:
  uint64_t& address_of(int64_t id);

  Pool& pool_;
  std::vector<uint64_t> addresses_;
};

}  // namespace vramkit
