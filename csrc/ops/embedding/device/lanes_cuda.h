// Lanes of a warp that share a row, and teams of such groups.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/embedding/device/rows.h"

namespace vramkit::embedding::device {

inline constexpr uint32_t kWarp = 32;
inline constexpr int kThreads = 256;
inline constexpr int kTeamThreads = 512;

/// `count` neighbouring lanes, a power of two. All of them make each call together.
class WarpLanes {
 public:
  __device__ explicit WarpLanes(uint32_t count) : rank_(threadIdx.x & (count - 1)), count_(count) {
    const uint32_t first = (threadIdx.x & (kWarp - 1)) & ~(count - 1);
    mask_ = (count == kWarp ? 0xffffffffU : (1U << count) - 1) << first;
  }

  __device__ uint32_t rank() const { return rank_; }
  __device__ uint32_t count() const { return count_; }
  __device__ uint32_t from(uint32_t value, uint32_t rank) const {
    return __shfl_sync(mask_, value, static_cast<int>(rank), static_cast<int>(count_));
  }
  template <class T>
  __device__ T sum(T value) const {
    for (uint32_t offset = count_ / 2; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(mask_, value, static_cast<int>(offset));
    }
    return value;
  }
  __device__ double largest(double value) const {
    for (uint32_t offset = count_ / 2; offset > 0; offset /= 2) {
      value = fmax(value, __shfl_xor_sync(mask_, value, static_cast<int>(offset)));
    }
    return value;
  }
  __device__ void meet() const { __syncwarp(mask_); }

 private:
  uint32_t rank_;
  uint32_t count_;
  uint32_t mask_;
};

/// The groups of a block of kTeamThreads, which work on the same row.
class TeamLanes : public WarpLanes {
 public:
  __device__ explicit TeamLanes(uint32_t count) : WarpLanes(count) {}

  __device__ uint32_t group() const { return threadIdx.x / count(); }
  __device__ uint32_t groups() const { return kTeamThreads / count(); }

  /// The sum over all groups, in their order. Every thread of the block makes the call.
  template <int kWidth>
  __device__ Vec<kWidth> over_groups(const Vec<kWidth>& value) const {
    __shared__ Vec<kWidth> all[kTeamThreads];
    all[threadIdx.x] = value;
    __syncthreads();
    Vec<kWidth> total = {};
    for (uint32_t other = rank(); other < kTeamThreads; other += count()) {
      for (int i = 0; i < kWidth; ++i) total.at[i] += all[other].at[i];
    }
    __syncthreads();
    return total;
  }
};

template <class F>
__global__ void __launch_bounds__(kThreads)
    item_kernel(int64_t count, const __grid_constant__ F f) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) f(i);
}

template <class F>
__global__ void __launch_bounds__(kThreads)
    group_kernel(int64_t count, uint32_t lanes, const __grid_constant__ F f) {
  const WarpLanes group(lanes);
  const int64_t stride = int64_t{gridDim.x} * (kThreads / lanes);
  int64_t item = int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes;
  for (; item < count; item += stride) f(item, group);
}

template <class F>
__global__ void __launch_bounds__(kTeamThreads)
    team_kernel(uint32_t lanes, const __grid_constant__ F f) {
  const TeamLanes team(lanes);
  const int64_t count = f.items();
  for (int64_t item = blockIdx.x; item < count; item += gridDim.x) f(item, team);
}

}  // namespace vramkit::embedding::device
