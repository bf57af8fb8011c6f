// Where a table's memory comes from, and how its loops use threads: torch's in the operators.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace vramkit::embedding {

/// Owns bytes that begin at a multiple of 64.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory() = default;
  virtual char* data() = 0;
};

/// Throws an exception where there is no memory.
using Allocate = std::function<std::unique_ptr<Memory>(uint64_t bytes)>;

/// Calls the last argument for parts of [begin, end), each of at least `grain` but the last.
using Loop = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t begin, int64_t end, int64_t grain, const Loop& loop)>;

}  // namespace vramkit::embedding
