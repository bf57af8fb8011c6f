#include <torch/csrc/stable/library.h>

#include "ops/conv/depthwise_ops.h"
#include "ops/conv/launch_cuda.h"

namespace vramkit::ops {
namespace {

// Blocks for the weight gradient: so many run at once at least.
constexpr int64_t kWeightBlocksPerMultiprocessor = 4;

__device__ Thread this_thread() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
          static_cast<int>(threadIdx.z)};
}

template <class Type, class Map, class Tile>
__global__ void __launch_bounds__(kDepthwiseThreads)
    convolve_kernel(TilePass<Type> pass, BlockPlan plan) {
  extern __shared__ uint4 shared[];
  const int block = static_cast<int>(blockIdx.x);
  stage_thread<Type, Map, Tile>(pass, plan, block, this_thread(), shared);
  await_copies();
  __syncthreads();
  convolve_thread<Type, Map, Tile>(pass, plan, block, this_thread(), shared);
}

template <class Type, class Map, class Tile>
__global__ void __launch_bounds__(kWeightThreads<Map, Tile>)
    add_weights_kernel(WeightPass<Type> pass, BlockPlan plan) {
  extern __shared__ uint4 shared[];
  auto* const staged = reinterpret_cast<typename Type::Bits*>(shared);
  auto* const shared_sums = reinterpret_cast<float*>(shared);
  const Thread thread = this_thread();
  const int slab = static_cast<int>(blockIdx.y);
  WeightSums<Map> sums{};
  for (int window = static_cast<int>(blockIdx.x); window < plan.windows;
       window += static_cast<int>(gridDim.x)) {
    stage_both<Type, Map, Tile>(pass, plan, window, slab, thread, staged);
    await_copies();
    __syncthreads();
    add_window<Type, Map, Tile>(plan, thread, staged, sums);
    __syncthreads();
  }
  share_sums<Map, Tile>(sums, thread, shared_sums);
  __syncthreads();
  const int index = (thread.y * Map::kSize + thread.x) * Tile::kLanes + thread.lane;
  add_groups<Map, Tile>(shared_sums, plan, static_cast<int>(blockIdx.x), slab, index,
                        pass.partials);
}

/// Adds up the blocks for 32 neighbouring channels of a tap, and writes weight (channel, tap).
template <class Type>
__global__ void add_partials_kernel(const float* partials, int blocks, int taps, int all_channels,
                                    int channels, typename Type::Bits* result) {
  __shared__ float sums[kPartialThreads][33];
  const int channel = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  const int tap = static_cast<int>(blockIdx.y);
  float sum = 0;
  if (channel < channels) {
    sum = add_blocks(partials, int64_t{taps} * all_channels, blocks,
                     int64_t{tap} * all_channels + channel, static_cast<int>(threadIdx.y));
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  float total = 0;
  for (int thread = 0; thread < kPartialThreads; ++thread) total += sums[thread][threadIdx.x];
  result[int64_t{channel} * taps + tap] = from_float<Type>(total);
}

class CudaRunner {
 public:
  explicit CudaRunner(const Tensor& like) : like_(like), launch_(like) {}

  template <class Map, class Tile, class Type>
  void convolve(const TilePass<Type>& pass) const {
    const BlockPlan plan = plan_convolution<Type, Map, Tile>(pass.slide);
    const dim3 block(Tile::kLanes, static_cast<unsigned int>(plan.across),
                     static_cast<unsigned int>(plan.down));
    const std::size_t bytes = convolution_bytes<Type, Map, Tile>(plan);
    const auto kernel = convolve_kernel<Type, Map, Tile>;
    allow_shared(kernel, bytes);
    kernel<<<static_cast<unsigned int>(plan.windows) * static_cast<unsigned int>(plan.slabs), block,
             bytes, launch_.stream()>>>(pass, plan);
    check_cuda(cudaGetLastError(), "the depthwise convolution");
  }

  template <class Map, class Tile, class Type>
  void add_weights(WeightPass<Type> pass, const Tensor& result) const {
    const BlockPlan plan = plan_weights<Type, Map, Tile>(pass.slide);
    const int blocks = static_cast<int>(std::clamp<int64_t>(
        launch_.multiprocessors() * kWeightBlocksPerMultiprocessor / plan.slabs, 1, plan.windows));
    constexpr int kTaps = Map::kSize * Map::kSize;
    const int channels = partial_channels<Tile>(plan);
    const Tensor partials =
        torch::stable::new_empty(like_, {int64_t{blocks} * kTaps * channels}, ScalarType::Float);
    pass.partials = static_cast<float*>(partials.mutable_data_ptr());
    const dim3 block(Tile::kLanes, Map::kSize, kWeightGroups<Map, Tile>);
    const std::size_t bytes = weights_bytes<Type, Map, Tile>(plan);
    const auto kernel = add_weights_kernel<Type, Map, Tile>;
    allow_shared(kernel, bytes);
    const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(plan.slabs));
    kernel<<<grid, block, bytes, launch_.stream()>>>(pass, plan);
    const dim3 sum_grid(static_cast<unsigned int>(ceil_div(pass.slide.channels, 32)), kTaps);
    add_partials_kernel<Type><<<sum_grid, dim3(32, kPartialThreads), 0, launch_.stream()>>>(
        pass.partials, blocks, kTaps, channels, pass.slide.channels, mutable_bits_in<Type>(result));
    check_cuda(cudaGetLastError(), "the weight gradient of the depthwise convolution");
  }

 private:
  Tensor like_;
  Launch launch_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  m.impl("depthwise_conv_relu", TORCH_BOX(&depthwise_conv_relu<CudaRunner>));
  m.impl("depthwise_grad_input", TORCH_BOX(&depthwise_grad_input<CudaRunner>));
  m.impl("depthwise_grad_weight", TORCH_BOX(&depthwise_grad_weight<CudaRunner>));
}

}  // namespace vramkit::ops
