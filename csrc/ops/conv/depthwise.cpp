// The depthwise operators on the CPU: the threads of each block one after another. This is how
// machines without a GPU test what a GPU computes; PyTorch's own convolution is faster here.
#include <torch/csrc/stable/library.h>

#include <cstddef>
#include <vector>

#include "ops/conv/depthwise_ops.h"
#include "ops/conv/launch_cpu.h"

namespace vramkit::ops {
namespace {

// Blocks for each slab of the weight gradient: few, so that each has several windows.
constexpr int kMostBlocks = 4;

/// Runs blocks, each as its threads would: phase by phase.
class CpuRunner {
 public:
  explicit CpuRunner(const Tensor&) {}

  template <class Map, class Tile, class Type>
  void convolve(const TilePass<Type>& pass) const {
    const BlockPlan plan = plan_convolution<Type, Map, Tile>(pass.slide);
    const std::size_t bytes = convolution_bytes<Type, Map, Tile>(plan);
    run_blocks(int64_t{plan.windows} * plan.slabs, [&](int block) {
      Shared shared(bytes / sizeof(Piece) + 1);
      for_threads(Tile::kLanes, plan.across, plan.down, [&](const Thread& thread) {
        stage_thread<Type, Map, Tile>(pass, plan, block, thread, shared.data());
      });
      for_threads(Tile::kLanes, plan.across, plan.down, [&](const Thread& thread) {
        convolve_thread<Type, Map, Tile>(pass, plan, block, thread, shared.data());
      });
    });
  }

  template <class Map, class Tile, class Type>
  void add_weights(WeightPass<Type> pass, const Tensor& result) const {
    const BlockPlan plan = plan_weights<Type, Map, Tile>(pass.slide);
    const int blocks = std::min(kMostBlocks, plan.windows);
    constexpr int64_t kTaps = Map::kSize * Map::kSize;
    const int64_t channels = partial_channels<Tile>(plan);
    std::vector<float> partials(static_cast<std::size_t>(blocks * kTaps * channels));
    pass.partials = partials.data();
    run_blocks(int64_t{blocks} * plan.slabs, [&](int i) {
      add_block<Map, Tile>(pass, plan, i / plan.slabs, blocks, i % plan.slabs);
    });
    auto* const weights = mutable_bits_in<Type>(result);
    for (int64_t i = 0; i < pass.slide.channels * kTaps; ++i) {
      const int64_t position = i % kTaps * channels + i / kTaps;
      float sum = 0;
      for (int thread = 0; thread < kPartialThreads; ++thread) {
        sum += add_blocks(partials.data(), kTaps * channels, blocks, position, thread);
      }
      weights[i] = from_float<Type>(sum);
    }
  }

 private:
  struct alignas(16) Piece {
    std::byte bytes[16];
  };
  using Shared = std::vector<Piece>;

  template <class Map, class Tile, class Type>
  void add_block(const WeightPass<Type>& pass, const BlockPlan& plan, int block, int blocks,
                 int slab) const {
    constexpr int kGroups = kWeightGroups<Map, Tile>;
    Shared shared(weights_bytes<Type, Map, Tile>(plan) / sizeof(Piece) + 1);
    auto* const staged = reinterpret_cast<typename Type::Bits*>(shared.data());
    auto* const shared_sums = reinterpret_cast<float*>(shared.data());
    std::vector<WeightSums<Map>> sums(kWeightThreads<Map, Tile>);
    const auto index = [](const Thread& thread) {
      return (thread.y * Map::kSize + thread.x) * Tile::kLanes + thread.lane;
    };
    const auto phase = [&](const auto& f) {
      for_threads(Tile::kLanes, Map::kSize, kGroups, [&](const Thread& thread) {
        f(thread, sums[static_cast<std::size_t>(index(thread))]);
      });
    };
    for (int window = block; window < plan.windows; window += blocks) {
      phase([&](const Thread& thread, auto&) {
        stage_both<Type, Map, Tile>(pass, plan, window, slab, thread, staged);
      });
      phase([&](const Thread& thread, auto& own) {
        add_window<Type, Map, Tile>(plan, thread, staged, own);
      });
    }
    phase(
        [&](const Thread& thread, auto& own) { share_sums<Map, Tile>(own, thread, shared_sums); });
    phase([&](const Thread& thread, auto&) {
      add_groups<Map, Tile>(shared_sums, plan, block, slab, index(thread), pass.partials);
    });
  }

  template <class F>
  static void for_threads(int lanes, int across, int down, const F& f) {
    for (int y = 0; y < down; ++y) {
      for (int x = 0; x < across; ++x) {
        for (int lane = 0; lane < lanes; ++lane) f(Thread{lane, x, y});
      }
    }
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
