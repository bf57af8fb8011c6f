#include <torch/csrc/stable/library.h>

#include "ops/conv/grouped_ops.h"
#include "ops/conv/launch_cuda.h"
#include "ops/conv/matrix_cuda.h"

namespace vramkit::ops {
namespace {

// Blocks that share a multiprocessor, by their registers: four have 128 a thread, three 168.
template <class Shape, class Map>
inline constexpr int kGroupedBlocks =
    Shape::kGroup < 32 && Shape::kSlab == 32 && Shape::kRows == 4 && Map::kSpan == kGroupedTaps ? 4
                                                                                                : 3;

template <class Type, class Shape, class Map>
__global__ void __launch_bounds__(kGroupedThreads, kGroupedBlocks<Shape, Map>)
    grouped_kernel(GroupedPass<Type> pass, GroupedPlan plan) {
  extern __shared__ uint4 shared[];
  auto* const staged = reinterpret_cast<typename Type::Bits*>(shared);
  const int index = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x);
  const int slab = block % plan.slabs;
  const CudaWarp warp(index % 32);
  stage_grouped_weights<Shape>(pass.weight, pass.weights, pass.slide.channels, slab, index, staged);
  await_copies();
  __syncthreads();
  GroupedKept<Shape, Map, CudaWarp> kept;
  keep_grouped<Type, Shape, Map>(warp, pass, slab, index / 32, staged, kept);
  const int step = static_cast<int>(gridDim.x) / plan.slabs;
  for (int window = block / plan.slabs; window < plan.windows; window += step) {
    __syncthreads();
    const GroupedOrigin at = grouped_origin<Shape>(plan, window);
    stage_grouped_window<Type, Shape, Map>(pass, plan, at, slab, index, staged);
    await_copies();
    __syncthreads();
    convolve_window<Type, Shape, Map>(warp, pass, plan, at, slab, index / 32, staged, kept);
  }
}

// Sums in registers leave room for three blocks of four warps.
template <class Shape>
inline constexpr int kWeightBlocks = std::max(1, 12 / WeightJobs<Shape>::kWarps);

template <class Type, class Shape, class Map>
__global__ void __launch_bounds__(WeightJobs<Shape>::kThreads, kWeightBlocks<Shape>)
    grouped_weight_kernel(GroupedWeightPass<Type> pass, GroupedPlan plan) {
  using Jobs = WeightJobs<Shape>;
  extern __shared__ uint4 shared[];
  auto* const staged = reinterpret_cast<typename Type::Bits*>(shared);
  auto* const shared_sums = reinterpret_cast<float*>(shared);
  const int index = static_cast<int>(threadIdx.x);
  const int slab = static_cast<int>(blockIdx.x) % plan.slabs;
  const int block = static_cast<int>(blockIdx.x) / plan.slabs;
  const CudaWarp warp(index % 32);
  GroupedWeightSums sums{};
  for (int window = block; window < plan.windows;
       window += static_cast<int>(gridDim.x) / plan.slabs) {
    const GroupedOrigin at = grouped_origin<Shape>(plan, window);
    stage_grouped_pair<Type, Shape, Map>(pass, plan, at, slab, index, staged);
    await_copies();
    __syncthreads();
    add_grouped_window<Type, Shape, Map>(warp, plan, index / 32, staged, sums);
    __syncthreads();
  }
  const int job = index / 32 % Jobs::kCount;
  for (int team = 0; team < Jobs::kTeams; ++team) {
    if (index / 32 / Jobs::kCount == team) {
      share_grouped_sums<Shape>(pass.weights, sums, job, team == 0, index % 32, shared_sums);
    }
    __syncthreads();
  }
  write_grouped_partials<Type, Shape>(pass, plan, block, slab, index, shared_sums);
}

/// Adds up the blocks for 32 neighbouring weights.
template <class Type>
__global__ void add_grouped_partials_kernel(const float* partials, int blocks, int64_t block_size,
                                            int count, GroupedWeights weights,
                                            typename Type::Bits* result) {
  __shared__ float sums[kPartialThreads][33];
  const int position = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  const int thread = static_cast<int>(threadIdx.y);
  sums[thread][threadIdx.x] =
      position < count ? add_blocks(partials, block_size, blocks, position, thread) : 0;
  __syncthreads();
  if (thread != 0 || position >= count) return;
  float total = 0;
  for (int i = 0; i < kPartialThreads; ++i) total += sums[i][threadIdx.x];
  result[grouped_position(weights, position)] = from_float<Type>(total);
}

class CudaRunner {
 public:
  explicit CudaRunner(const Tensor& like) : like_(like), launch_(like) {}

  template <class Shape, class Map, class Type>
  void convolve(const GroupedPass<Type>& pass) const {
    const GroupedPlan plan = plan_grouped_tiles<Shape, Map>(pass.slide, pass.weights);
    const std::size_t bytes = grouped_bytes<Shape, Map>(plan.across, pass.weights);
    const auto kernel = grouped_kernel<Type, Shape, Map>;
    allow_shared(kernel, bytes);
    const int blocks = blocks_of_a_slab(plan, kGroupedBlocks<Shape, Map>, bytes);
    const auto grid = static_cast<unsigned int>(blocks * plan.slabs);
    kernel<<<grid, kGroupedThreads, bytes, launch_.stream()>>>(pass, plan);
    check_cuda(cudaGetLastError(), "the grouped convolution");
  }

  template <class Shape, class Map, class Type>
  void add_weights(GroupedWeightPass<Type> pass, const Tensor& result) const {
    const GroupedPlan plan = plan_grouped_weights<Shape, Map>(pass.slide, pass.weights);
    const std::size_t bytes = grouped_weight_bytes<Shape, Map>(plan.across, pass.weights);
    const int blocks = blocks_of_a_slab(plan, kWeightBlocks<Shape>, bytes);
    const int64_t size = grouped_partials<Shape>(plan, pass.weights);
    const Tensor partials = torch::stable::new_empty(like_, {blocks * size}, ScalarType::Float);
    pass.partials = static_cast<float*>(partials.mutable_data_ptr());
    const auto kernel = grouped_weight_kernel<Type, Shape, Map>;
    allow_shared(kernel, bytes);
    kernel<<<static_cast<unsigned int>(blocks * plan.slabs), WeightJobs<Shape>::kThreads, bytes,
             launch_.stream()>>>(pass, plan);
    const int count = pass.weights.elements(pass.slide.channels);
    add_grouped_partials_kernel<Type><<<static_cast<unsigned int>(ceil_div(count, 32)),
                                        dim3(32, kPartialThreads), 0, launch_.stream()>>>(
        pass.partials, blocks, size, count, pass.weights, mutable_bits_in<Type>(result));
    check_cuda(cudaGetLastError(), "the weight gradient of the grouped convolution");
  }

 private:
  /// Blocks that run at once, each with about as many windows, so that they read the weights once.
  int blocks_of_a_slab(const GroupedPlan& plan, int by_registers, std::size_t bytes) const {
    constexpr int64_t kReserved = 1 << 10;  // of a block
    const int64_t by_memory = launch_.shared_bytes() / (static_cast<int64_t>(bytes) + kReserved);
    const int64_t most =
        launch_.multiprocessors() * std::min<int64_t>(by_registers, by_memory) / plan.slabs;
    return even_part(plan.windows, static_cast<int>(most));
  }

  Tensor like_;
  Launch launch_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  m.impl("grouped_conv_relu", TORCH_BOX(&grouped_conv_relu<CudaRunner>));
  m.impl("grouped_grad_input", TORCH_BOX(&grouped_grad_input<CudaRunner>));
  m.impl("grouped_grad_weight", TORCH_BOX(&grouped_grad_weight<CudaRunner>));
}

}  // namespace vramkit::ops
