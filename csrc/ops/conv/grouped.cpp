// The grouped operators on the CPU: the warps of each block one after another. This is how machines
// without a GPU test what a GPU computes.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/conv/grouped_ops.h"
#include "ops/conv/launch_cpu.h"
#include "ops/conv/matrix_cpu.h"

namespace vramkit::ops {
namespace {

constexpr int kMostBlocks = 4;

class CpuRunner {
 public:
  explicit CpuRunner(const Tensor&) {}

  template <class Shape, class Map, class Type>
  void convolve(const GroupedPass<Type>& pass) const {
    const GroupedPlan plan = plan_grouped_tiles<Shape, Map>(pass.slide, pass.weights);
    const int blocks = std::min(plan.windows, kMostBlocks);
    run_blocks(int64_t{blocks} * plan.slabs, [&](int block) {
      convolve_block<Shape, Map>(pass, plan, block, blocks * plan.slabs);
    });
  }

  template <class Shape, class Map, class Type>
  void add_weights(GroupedWeightPass<Type> pass, const Tensor& result) const {
    const GroupedPlan plan = plan_grouped_weights<Shape, Map>(pass.slide, pass.weights);
    const int blocks = std::min(plan.windows, kMostBlocks);
    const int64_t size = grouped_partials<Shape>(plan, pass.weights);
    std::vector<float> partials(static_cast<std::size_t>(blocks * size));
    pass.partials = partials.data();
    run_blocks(int64_t{blocks} * plan.slabs, [&](int block) {
      add_block<Shape, Map>(pass, plan, block / plan.slabs, blocks, block % plan.slabs);
    });
    auto* const weights = mutable_bits_in<Type>(result);
    for (int64_t i = 0; i < pass.weights.elements(pass.slide.channels); ++i) {
      float sum = 0;
      for (int thread = 0; thread < kPartialThreads; ++thread) {
        sum += add_blocks(partials.data(), size, blocks, i, thread);
      }
      weights[grouped_position(pass.weights, i)] = from_float<Type>(sum);
    }
  }

 private:
  struct alignas(16) Piece {
    uint16_t values[8];
  };

  template <class Shape, class Map, class Type>
  static void convolve_block(const GroupedPass<Type>& pass, const GroupedPlan& plan, int block,
                             int blocks) {
    const int slab = block % plan.slabs;
    std::vector<Piece> shared(grouped_bytes<Shape, Map>(plan.across, pass.weights) / sizeof(Piece));
    uint16_t* const staged = shared.data()->values;
    for (int i = 0; i < kGroupedThreads; ++i) {
      stage_grouped_weights<Shape>(pass.weight, pass.weights, pass.slide.channels, slab, i, staged);
    }
    const CpuWarp warp;
    std::vector<GroupedKept<Shape, Map, CpuWarp>> kept(kGroupedWarps);
    for (int i = 0; i < kGroupedWarps; ++i) {
      keep_grouped<Type, Shape, Map>(warp, pass, slab, i, staged,
                                     kept[static_cast<std::size_t>(i)]);
    }
    for (int window = block / plan.slabs; window < plan.windows; window += blocks / plan.slabs) {
      const GroupedOrigin at = grouped_origin<Shape>(plan, window);
      for (int i = 0; i < kGroupedThreads; ++i) {
        stage_grouped_window<Type, Shape, Map>(pass, plan, at, slab, i, staged);
      }
      for (int i = 0; i < kGroupedWarps; ++i) {
        convolve_window<Type, Shape, Map>(warp, pass, plan, at, slab, i, staged,
                                          kept[static_cast<std::size_t>(i)]);
      }
    }
  }

  template <class Shape, class Map, class Type>
  static void add_block(const GroupedWeightPass<Type>& pass, const GroupedPlan& plan, int block,
                        int blocks, int slab) {
    using Jobs = WeightJobs<Shape>;
    std::vector<Piece> memory(
        grouped_weight_bytes<Shape, Map>(plan.across, pass.weights) / sizeof(Piece) + 1);
    uint16_t* const staged = memory.data()->values;
    auto* const shared = reinterpret_cast<float*>(memory.data());
    const CpuWarp warp;
    std::vector<CpuWarp::Lanes<GroupedWeightSums>> sums(Jobs::kWarps);
    for (int window = block; window < plan.windows; window += blocks) {
      const GroupedOrigin at = grouped_origin<Shape>(plan, window);
      for (int i = 0; i < Jobs::kThreads; ++i) {
        stage_grouped_pair<Type, Shape, Map>(pass, plan, at, slab, i, staged);
      }
      for (int i = 0; i < Jobs::kWarps; ++i) {
        add_grouped_window<Type, Shape, Map>(warp, plan, i, staged,
                                             sums[static_cast<std::size_t>(i)]);
      }
    }
    for (int i = 0; i < Jobs::kWarps; ++i) {
      warp.each([&](int lane) {
        share_grouped_sums<Shape>(pass.weights,
                                  CpuWarp::at(sums[static_cast<std::size_t>(i)], lane),
                                  i % Jobs::kCount, i < Jobs::kCount, lane, shared);
      });
    }
    for (int i = 0; i < Jobs::kThreads; ++i) {
      write_grouped_partials<Type, Shape>(pass, plan, block, slab, i, shared);
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def(
      "grouped_conv_relu(Tensor x, Tensor weight, Tensor? bias, int stride, int pad_top, "
      "int pad_left, bool relu, int variant) -> Tensor");
  m.def(
      "grouped_grad_input(Tensor grad, Tensor weight, int height, int width, int stride, "
      "int pad_top, int pad_left, int variant) -> Tensor");
  m.def(
      "grouped_grad_weight(Tensor grad, Tensor x, int group, int stride, int pad_top, "
      "int pad_left, bool channels_last, int variant) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("grouped_conv_relu", TORCH_BOX(&grouped_conv_relu<CpuRunner>));
  m.impl("grouped_grad_input", TORCH_BOX(&grouped_grad_input<CpuRunner>));
  m.impl("grouped_grad_weight", TORCH_BOX(&grouped_grad_weight<CpuRunner>));
}

}  // namespace vramkit::ops
