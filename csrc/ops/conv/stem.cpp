// The stem on the CPU: the lanes of each warp one after another, with the matrix products computed
// from what the lanes hold. This is how machines without a GPU test what a GPU computes.
#include "ops/conv/stem.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstddef>
#include <vector>

#include "ops/conv/matrix_cpu.h"

namespace vramkit::ops {
namespace {

constexpr int kMostBlocks = 8;

template <class Shape>
using Warp = std::array<StemSums<Shape>, kLanes>;

/// Adds the product of 16 x 16 and 16 x 8 elements, spread over a warp.
template <class Type, class Shape>
void add_product(const std::array<LeftFragment, kLanes>& left,
                 const std::array<RightFragment, kLanes>& right, int row, int product,
                 Warp<Shape>& sums) {
  for (int y = 0; y < 16; ++y) {
    for (int x = 0; x < 8; ++x) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += left_at<Type>(left, y, k) * right_at<Type>(right, k, x);
      const auto lane = static_cast<std::size_t>(y % 8 * 4 + x / 2);
      sums[lane].at[row][product].values[y / 8 * 2 + x % 2] += sum;
    }
  }
}

template <class Type, class Shape>
void add_step(const uint32_t* input, const uint32_t* weights, int warp, int y, int step,
              Warp<Shape>& sums) {
  for (int pair = 0; pair < Shape::kColumns / 2; ++pair) {
    std::array<std::array<RightFragment, kLanes>, 2> right;
    for (int lane = 0; lane < kLanes; ++lane) {
      RightFragment both[2];
      stem_right<Shape>(weights, y, step, pair, lane, both);
      for (std::size_t i = 0; i < 2; ++i) right[i][static_cast<std::size_t>(lane)] = both[i];
    }
    for (int row = 0; row < Shape::kRows; ++row) {
      std::array<LeftFragment, kLanes> left;
      for (int lane = 0; lane < kLanes; ++lane) {
        left[static_cast<std::size_t>(lane)] =
            stem_left<Shape>(input, warp * Shape::kRows + row, y, step, lane);
      }
      add_product<Type, Shape>(left, right[0], row, 2 * pair, sums);
      add_product<Type, Shape>(left, right[1], row, 2 * pair + 1, sums);
    }
  }
}

struct CpuRunner {
  template <class Shape, class Type>
  static void run(const Tensor&, const StemPass<Type>& pass) {
    const int blocks = std::min(pass.stem.tiles, kMostBlocks);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        run_block<Shape>(pass, static_cast<int>(block), blocks);
      }
    });
  }

  template <class Shape, class Type>
  static void run_block(const StemPass<Type>& pass, int block, int blocks) {
    std::vector<Vector<uint32_t, 4>> weights(Shape::kWeightWords / 4);
    std::vector<Vector<uint32_t, 4>> input(Shape::kInputWords / 4 + 1);
    auto* const weight_words = weights.data()->at;
    auto* const input_words = input.data()->at;
    for (int i = 0; i < kStemThreads; ++i) stage_stem_weights<Type, Shape>(pass, i, weight_words);
    for (int tile = block; tile < pass.stem.tiles; tile += blocks) {
      const StemOrigin at = stem_origin<Shape>(pass.stem, tile);
      for (int i = 0; i < kStemThreads; ++i) {
        stage_stem_input<Type, Shape>(pass, at, i, input_words);
      }
      for (int warp = 0; warp < kStemWarps; ++warp) {
        Warp<Shape> sums{};
        for (int step = 0; step < Shape::kSize * Shape::kSteps; ++step) {
          add_step<Type, Shape>(input_words, weight_words, warp, step / Shape::kSteps,
                                step % Shape::kSteps, sums);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
          store_stem(pass, at, warp, lane, sums[static_cast<std::size_t>(lane)]);
        }
      }
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def(
      "stem_conv_relu(Tensor x, Tensor weight, Tensor? bias, int pad_top, int pad_left, "
      "bool relu, int variant) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("stem_conv_relu", TORCH_BOX(&stem_conv_relu<CpuRunner>));
}

}  // namespace vramkit::ops
