// A large zero-filled array of which only the touched parts take memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

template <typename T>
class LazyArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit LazyArray(size_t count) : bytes_(align_up(count * sizeof(T) + 1, kMiB * 2)) {
    void* address = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
      throw_errno("cannot reserve %s of address space for a table", mib(bytes_).c_str());
    }
    // Small pools stay small; a large table spares the processor's address cache.
    if (bytes_ > kSmallBytes) {
      ::madvise(static_cast<char*>(address) + kSmallBytes, bytes_ - kSmallBytes, MADV_HUGEPAGE);
    }
    items_ = static_cast<T*>(address);
  }
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;
  ~LazyArray() {
    if (::munmap(items_, bytes_) != 0) report("munmap(%p) of a table failed", items_);
  }

  T& operator[](size_t index) { return items_[index]; }
  const T& operator[](size_t index) const { return items_[index]; }

 private:
  static constexpr uint64_t kSmallBytes = 2 * kMiB;
  uint64_t bytes_;
  T* items_;
};

}  // namespace vramkit
