// The allocators that the driver can time, behind one shape that the compiler can inline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "vramkit.h"

namespace bench {

/// Prints "error: <text>" on stderr and ends the process with status 1.
[[noreturn]] void fail(const std::string& text);

/// What the pool says of itself after a run; all zero for every other allocator.
struct Books {
  std::uint64_t capacity_bytes = 0;
  std::uint64_t metadata_bytes = 0;
  std::uint64_t stitched_requests = 0;
  std::uint64_t mapping_calls = 0;
};

/// malloc and free of whatever library the process was started with.
class MallocAllocator {
 public:
  /// `expected` must be part of the name of a mapped file: proof that the preload took effect.
  explicit MallocAllocator(const std::string& expected);

  void* allocate(std::size_t size_bytes, std::uint64_t stream);
  void release(void* address);
  [[nodiscard]] Books books() const { return {}; }
};

/// Hands out one constant address: the cost of the measuring loop itself.
class NoAllocator {
 public:
  void* allocate(std::size_t size_bytes, std::uint64_t stream);
  void release(void* address);
  [[nodiscard]] Books books() const { return {}; }
};

/// The pool over the null backend, reached as an adapter reaches it: through dlopen.
class PoolAllocator {
 public:
  PoolAllocator(const std::string& library_path, std::uint64_t capacity_bytes);
  PoolAllocator(const PoolAllocator&) = delete;
  PoolAllocator& operator=(const PoolAllocator&) = delete;
  ~PoolAllocator();

  void* allocate(std::size_t size_bytes, std::uint64_t stream) {
    void* address = nullptr;
    if (alloc_(pool_, size_bytes, stream, 0, &address) != VRAMKIT_OK) fail(last_error_());
    return address;
  }
  void release(void* address) {
    if (free_(pool_, address, nullptr) != VRAMKIT_OK) fail(last_error_());
  }
  [[nodiscard]] Books books() const;

 private:
  void* library_;
  decltype(&vramkit_last_error) last_error_;
  decltype(&vramkit_alloc) alloc_;
  decltype(&vramkit_free) free_;
  vramkit_pool* pool_ = nullptr;
};

}  // namespace bench
