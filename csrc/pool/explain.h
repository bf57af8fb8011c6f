// Out of memory, in words.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pool/engine.h"

namespace vramkit {

/// The numbers at the moment of the failure.
struct Shortage {
  std::string label;
  uint64_t wanted = 0;
  uint64_t capacity = 0;
  uint64_t page = 0;
  uint64_t live = 0;
  uint64_t live_blocks = 0;
  uint64_t free = 0;
  uint64_t largest_free_extent = 0;
  uint64_t free_pages = 0;  // bytes in wholly free pages
  uint64_t pending = 0;
  uint64_t most_capacity = 0;             // that resize() can give this pool
  uint64_t machine = 0;                   // memory that any pool could have
  std::string refusal;                    // of the backend, when it was that which had no memory
  std::string alias_limit;                // why no page can be stitched, if so
  std::vector<BlockInfo> largest_blocks;  // at most ten, largest first
};

/// Under the pool's lock.
Shortage describe_shortage(const Engine& engine, uint64_t wanted);

/// Without the pool's lock. `stack_text` may be null; it is called for blocks with a stack id, and
/// may take the interpreter's lock.
std::string explain_shortage(const Shortage& shortage, const char* (*stack_text)(uint32_t));

}  // namespace vramkit
