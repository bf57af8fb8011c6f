// What the kernels of tables need of the hardware: atomic operations, and lanes that share a row.
// On the host a row has one lane, so that tests run the code of the kernels there.
#pragma once

#include <cstdint>

#include "ops/on_both.h"

namespace vramkit::embedding::device {

// Atomic, relaxed; each returns what was there before.
VRAMKIT_ON_BOTH inline uint32_t fetch_add(uint32_t* at, uint32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(at, value);
#else
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
#endif
}

/// As fetch_add of 1, once for the threads of a warp that are here together: all with one address.
VRAMKIT_ON_BOTH inline uint32_t take_number(uint32_t* at) {
#if defined(__CUDA_ARCH__)
  const uint32_t together = __activemask();
  const uint32_t lane = threadIdx.x & 31U;
  const int leader = __ffs(static_cast<int>(together)) - 1;
  uint32_t first = 0;
  if (lane == static_cast<uint32_t>(leader)) {
    first = atomicAdd(at, static_cast<uint32_t>(__popc(together)));
  }
  first = __shfl_sync(together, first, leader);
  return first + static_cast<uint32_t>(__popc(together & ((1U << lane) - 1)));
#else
  return fetch_add(at, 1);
#endif
}

VRAMKIT_ON_BOTH inline uint32_t exchange(uint32_t* at, uint32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicExch(at, value);
#else
  return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
#endif
}

VRAMKIT_ON_BOTH inline uint32_t compare_exchange(uint32_t* at, uint32_t expected, uint32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicCAS(at, expected, value);
#else
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
#endif
}

/// Makes the number at most `value`.
VRAMKIT_ON_BOTH inline void lower(uint32_t* at, uint32_t value) {
#if defined(__CUDA_ARCH__)
  atomicMin(at, value);
#else
  uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old &&
         !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
#endif
}

/// A number that other threads may be changing.
VRAMKIT_ON_BOTH inline uint32_t peek(const uint32_t* at) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const volatile uint32_t*>(at);
#else
  return __atomic_load_n(at, __ATOMIC_RELAXED);
#endif
}

/// Lanes of the host: one, which has a row for itself. CUDA's are in lanes_cuda.h.
class OneLane {
 public:
  VRAMKIT_ON_BOTH uint32_t rank() const { return 0; }
  VRAMKIT_ON_BOTH uint32_t count() const { return 1; }
  /// The value of the lane with that rank.
  VRAMKIT_ON_BOTH uint32_t from(uint32_t value, uint32_t /*rank*/) const { return value; }
  template <class T>
  VRAMKIT_ON_BOTH T sum(T value) const {
    return value;
  }
  VRAMKIT_ON_BOTH double largest(double value) const { return value; }
  /// Waits until all lanes have come here and have read what they read before.
  VRAMKIT_ON_BOTH void meet() const {}

  // Teams of several such groups that work on one row.
  VRAMKIT_ON_BOTH uint32_t group() const { return 0; }
  VRAMKIT_ON_BOTH uint32_t groups() const { return 1; }
  template <class V>
  VRAMKIT_ON_BOTH V over_groups(const V& value) const {
    return value;
  }
};

/// Lanes for a row: a power of two, at most those of a warp.
inline uint32_t lanes_for(uint32_t dim, uint32_t width) {
  uint32_t lanes = 1;
  while (lanes < 32 && lanes * width < dim) lanes *= 2;
  return lanes;
}

/// Computes f(0) to f(kCount - 1), each in a lane of its own if there are enough: what they wait
/// for in memory is under way at the same time.
template <uint32_t kCount, class Lanes, class F>
VRAMKIT_ON_BOTH void spread(const Lanes& lanes, uint32_t (&results)[kCount], const F& f) {
  if (lanes.count() < kCount) {
    for (uint32_t i = 0; i < kCount; ++i) results[i] = f(i);
    return;
  }
  const uint32_t own = f(lanes.rank() % kCount);
  for (uint32_t i = 0; i < kCount; ++i) results[i] = lanes.from(own, i);
}

}  // namespace vramkit::embedding::device
