#include <torch/csrc/stable/library.h>

#include "ops/conv/depthwise_ops.h"
#include "ops/conv/launch_cuda.h"

namespace vramkit::ops {
namespace {

// More blocks than run at once even out what they take; fewer load weights less often.
constexpr int64_t kTileBlocksPerMultiprocessor = 32;
constexpr int64_t kWeightBlocksPerMultiprocessor = 4;

template <class Type, class Map, class Tile>
__global__ void __launch_bounds__(kDepthwiseThreads)
    convolve_kernel(TilePass<Type> pass, TilePlan plan) {
  extern __shared__ float staged[];
  const int lane = static_cast<int>(threadIdx.x);
  const int slot = static_cast<int>(threadIdx.y);
  const int slab = static_cast<int>(blockIdx.y);
  stage_weights<Type, Map, Tile>(pass, plan, slab, slot * plan.lanes + lane, staged);
  __syncthreads();
  convolve_thread<Type, Map, Tile>(pass, plan, static_cast<int>(blockIdx.x), slab, lane, slot,
                                   staged);
}

template <class Type, class Map, class Tile>
__global__ void __launch_bounds__(kDepthwiseThreads)
    add_weights_kernel(WeightPass<Type> pass, TilePlan plan) {
  extern __shared__ float shared[];
  const int lane = static_cast<int>(threadIdx.x);
  const int slot = static_cast<int>(threadIdx.y);
  const int block = static_cast<int>(blockIdx.x);
  const int slab = static_cast<int>(blockIdx.y);
  WeightSums<Map, Tile> sums{};
  add_weight_thread<Type, Map, Tile>(pass, plan, block, slab, lane, slot, sums);
  VRAMKIT_UNROLL
  for (int row = 0; row < Map::kSize; ++row) {
    share_row<Map, Tile>(sums, row, plan, lane, slot, shared);
    __syncthreads();
    add_slots<Map, Tile>(shared, row, plan, block, slab, slot * plan.lanes + lane, pass.partials);
    __syncthreads();
  }
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

dim3 grid_of(const TilePlan& plan) {
  return {static_cast<unsigned int>(plan.blocks), static_cast<unsigned int>(plan.slabs)};
}

dim3 block_of(const TilePlan& plan) {
  return {static_cast<unsigned int>(plan.lanes), static_cast<unsigned int>(plan.slots)};
}

class CudaRunner {
 public:
  explicit CudaRunner(const Tensor& like) : like_(like), launch_(like) {}

  template <class Map, class Tile, class Type>
  void convolve(const TilePass<Type>& pass) const {
    const TilePlan plan =
        plan_tiles<Map, Tile>(pass.slide, launch_.multiprocessors() * kTileBlocksPerMultiprocessor);
    const std::size_t bytes =
        sizeof(float) * Map::kSize * Map::kSize * static_cast<std::size_t>(weight_step<Tile>(plan));
    convolve_kernel<Type, Map, Tile>
        <<<grid_of(plan), block_of(plan), bytes, launch_.stream()>>>(pass, plan);
    check_cuda(cudaGetLastError(), "the depthwise convolution");
  }

  template <class Map, class Tile, class Type>
  void add_weights(WeightPass<Type> pass, const Tensor& result) const {
    const TilePlan plan = plan_tiles<Map, Tile>(
        pass.slide, launch_.multiprocessors() * kWeightBlocksPerMultiprocessor);
    constexpr int kTaps = Map::kSize * Map::kSize;
    const int channels = partial_channels<Tile>(plan);
    const Tensor partials = torch::stable::new_empty(
        like_, {int64_t{plan.blocks} * kTaps * channels}, ScalarType::Float);
    pass.partials = static_cast<float*>(partials.mutable_data_ptr());
    const std::size_t bytes =
        sizeof(float) * static_cast<std::size_t>(plan.slots * shared_row<Map, Tile>(plan));
    add_weights_kernel<Type, Map, Tile>
        <<<grid_of(plan), block_of(plan), bytes, launch_.stream()>>>(pass, plan);
    const dim3 grid(static_cast<unsigned int>(ceil_div(pass.slide.channels, 32)), kTaps);
    add_partials_kernel<Type><<<grid, dim3(32, kPartialThreads), 0, launch_.stream()>>>(
        pass.partials, plan.blocks, kTaps, channels, pass.slide.channels,
        mutable_bits_in<Type>(result));
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
