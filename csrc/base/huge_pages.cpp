#include "base/huge_pages.h"

#include <sys/mman.h>

namespace vramkit {
namespace {

constexpr uintptr_t kHugePage = 2 << 20;

}  // namespace

void prefer_huge_pages(char* data, uint64_t bytes) {
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin >= end) return;
  // A kernel without huge pages refuses, and nothing is lost but time.
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace vramkit
