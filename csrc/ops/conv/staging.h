// Copies from a tensor to the memory that a block shares.
#pragma once

#include <cstring>

#include "ops/on_both.h"

namespace vramkit::ops {

/// Copies 16 bytes, or writes zeros; on a GPU the copy runs on until await_copies.
VRAMKIT_ON_BOTH inline void copy_or_clear(void* to, const void* from, bool copy) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(copy ? 16 : 0)
               : "memory");
#else
  copy ? memcpy(to, from, 16) : memset(to, 0, 16);
#endif
}

VRAMKIT_ON_BOTH inline void await_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

VRAMKIT_ON_BOTH inline bool is_inside(int at, int size) { return at >= 0 && at < size; }

}  // namespace vramkit::ops
