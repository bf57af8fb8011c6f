#include <torch/csrc/stable/library.h>

#include "ops/conv/launch_cuda.h"
#include "ops/conv/matrix_cuda.h"
#include "ops/conv/stem.h"

namespace vramkit::ops {
namespace {

// A block keeps its weights for all its tiles; others load while it multiplies.
constexpr int64_t kStemBlocksPerMultiprocessor = 4;
// More shared memory must be asked for.
constexpr int kPlainSharedBytes = 48 << 10;

template <class Type, class Shape>
__device__ void add_step(const uint32_t* input, const uint32_t* weights, int warp, int lane, int y,
                         int step, StemSums<Shape>& sums) {
  LeftFragment left[Shape::kRows];
  VRAMKIT_UNROLL
  for (int row = 0; row < Shape::kRows; ++row) {
    left[row] = stem_left<Shape>(input, warp * Shape::kRows + row, y, step, lane);
  }
  VRAMKIT_UNROLL
  for (int pair = 0; pair < Shape::kColumns / 2; ++pair) {
    RightFragment right[2];
    stem_right<Shape>(weights, y, step, pair, lane, right);
    VRAMKIT_UNROLL
    for (int row = 0; row < Shape::kRows; ++row) {
      multiply_add<Type>(left[row], right[0], sums.at[row][2 * pair]);
      multiply_add<Type>(left[row], right[1], sums.at[row][2 * pair + 1]);
    }
  }
}

template <class Type, class Shape>
__global__ void __launch_bounds__(kStemThreads) stem_kernel(StemPass<Type> pass) {
  extern __shared__ uint4 shared[];
  auto* const weights = reinterpret_cast<uint32_t*>(shared);
  uint32_t* const input = weights + Shape::kWeightWords;
  const int index = static_cast<int>(threadIdx.x);
  const int warp = index / 32;
  const int lane = index % 32;
  stage_stem_weights<Type, Shape>(pass, index, weights);
  for (int tile = static_cast<int>(blockIdx.x); tile < pass.stem.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const StemOrigin at = stem_origin<Shape>(pass.stem, tile);
    stage_stem_input<Type, Shape>(pass, at, index, input);
    __syncthreads();
    StemSums<Shape> sums{};
    VRAMKIT_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step) {
      for (int y = 0; y < Shape::kSize; ++y) {
        add_step<Type, Shape>(input, weights, warp, lane, y, step, sums);
      }
    }
    __syncthreads();
    store_stem(pass, at, warp, lane, sums);
  }
}

struct CudaRunner {
  template <class Shape, class Type>
  static void run(const Tensor& like, const StemPass<Type>& pass) {
    const Launch launch(like);
    const auto kernel = stem_kernel<Type, Shape>;
    constexpr int kBytes = (Shape::kWeightWords + Shape::kInputWords) * 4;
    if constexpr (kBytes > kPlainSharedBytes) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                 "cudaFuncSetAttribute");
    }
    const int64_t most = launch.multiprocessors() * kStemBlocksPerMultiprocessor;
    const auto blocks = static_cast<unsigned int>(std::min<int64_t>(pass.stem.tiles, most));
    kernel<<<blocks, kStemThreads, kBytes, launch.stream()>>>(pass);
    check_cuda(cudaGetLastError(), "the convolution of a stem");
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  m.impl("stem_conv_relu", TORCH_BOX(&stem_conv_relu<CudaRunner>));
}

}  // namespace vramkit::ops
