// The depthwise operators on the CPU: the threads of each block one after another. This is how
// machines without a GPU test what a GPU computes; PyTorch's own convolution is faster here.
#include <torch/csrc/stable/library.h>

#include <cstddef>
#include <vector>

#include "ops/conv/depthwise_ops.h"

namespace vramkit::ops {
namespace {

// Few, so that every slot walks over several tiles.
constexpr int64_t kMostBlocks = 16;

/// Runs blocks, each as its threads would: phase by phase.
class CpuRunner {
 public:
  explicit CpuRunner(const Tensor&) {}

  template <class Map, class Tile, class Type>
  void convolve(const TilePass<Type>& pass) const {
    const TilePlan plan = plan_tiles<Map, Tile>(pass.slide, kMostBlocks);
    constexpr int kTaps = Map::kSize * Map::kSize;
    for_each_block(plan, [&](int block, int slab) {
      std::vector<float> weights(static_cast<std::size_t>(kTaps * weight_step<Tile>(plan)));
      for (int i = 0; i < plan.threads(); ++i) {
        stage_weights<Type, Map, Tile>(pass, plan, slab, i, weights.data());
      }
      for (int i = 0; i < plan.threads(); ++i) {
        convolve_thread<Type, Map, Tile>(pass, plan, block, slab, i % plan.lanes, i / plan.lanes,
                                         weights.data());
      }
    });
  }

  template <class Map, class Tile, class Type>
  void add_weights(WeightPass<Type> pass, const Tensor& result) const {
    const TilePlan plan = plan_tiles<Map, Tile>(pass.slide, kMostBlocks);
    constexpr int64_t kTaps = Map::kSize * Map::kSize;
    const int64_t channels = partial_channels<Tile>(plan);
    std::vector<float> partials(static_cast<std::size_t>(plan.blocks * kTaps * channels));
    pass.partials = partials.data();
    for_each_block(plan,
                   [&](int block, int slab) { add_block<Map, Tile>(pass, plan, block, slab); });
    auto* const weights = mutable_bits_in<Type>(result);
    for (int64_t i = 0; i < pass.slide.channels * kTaps; ++i) {
      const int64_t position = i % kTaps * channels + i / kTaps;
      float sum = 0;
      for (int thread = 0; thread < kPartialThreads; ++thread) {
        sum += add_blocks(partials.data(), kTaps * channels, plan.blocks, position, thread);
      }
      weights[i] = from_float<Type>(sum);
    }
  }

 private:
  template <class Map, class Tile, class Type>
  void add_block(const WeightPass<Type>& pass, const TilePlan& plan, int block, int slab) const {
    std::vector<WeightSums<Map, Tile>> sums(static_cast<std::size_t>(plan.threads()));
    for (int i = 0; i < plan.threads(); ++i) {
      add_weight_thread<Type, Map, Tile>(pass, plan, block, slab, i % plan.lanes, i / plan.lanes,
                                         sums[static_cast<std::size_t>(i)]);
    }
    std::vector<float> shared(static_cast<std::size_t>(plan.slots * shared_row<Map, Tile>(plan)));
    for (int row = 0; row < Map::kSize; ++row) {
      for (int i = 0; i < plan.threads(); ++i) {
        share_row<Map, Tile>(sums[static_cast<std::size_t>(i)], row, plan, i % plan.lanes,
                             i / plan.lanes, shared.data());
      }
      for (int i = 0; i < plan.threads(); ++i) {
        add_slots<Map, Tile>(shared.data(), row, plan, block, slab, i, pass.partials);
      }
    }
  }

  template <class F>
  void for_each_block(const TilePlan& plan, const F& f) const {
    torch::stable::parallel_for(
        0, int64_t{plan.blocks} * plan.slabs, 1, [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i) {
            f(static_cast<int>(i / plan.slabs), static_cast<int>(i % plan.slabs));
          }
        });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def(
      "depthwise_conv_relu(Tensor x, Tensor weight, Tensor? bias, int stride, int pad_top, "
      "int pad_left, bool relu, int variant) -> Tensor");
  m.def(
      "depthwise_grad_input(Tensor grad, Tensor weight, int height, int width, int stride, "
      "int pad_top, int pad_left, int variant) -> Tensor");
  m.def(
      "depthwise_grad_weight(Tensor grad, Tensor x, int kernel, int stride, int pad_top, "
      "int pad_left, int variant) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("depthwise_conv_relu", TORCH_BOX(&depthwise_conv_relu<CpuRunner>));
  m.impl("depthwise_grad_input", TORCH_BOX(&depthwise_grad_input<CpuRunner>));
  m.impl("depthwise_grad_weight", TORCH_BOX(&depthwise_grad_weight<CpuRunner>));
}

}  // namespace vramkit::ops
