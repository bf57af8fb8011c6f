// What the warps of a block do for the weight gradient of a grouped convolution, for CPU and CUDA
// alike.
//
// A warp keeps the sums of 16 input and 16 output channels for all taps while it walks over the
// octets of its block's windows: input channels are the rows of a product, output channels are its
// columns, and the 16 pixels of two octets are what is added up. The block adds up its warps, and a
// second pass adds up the blocks: always in the same order.
#pragma once

#include "ops/conv/grouped_tile.h"
#include "ops/conv/partials.h"

namespace vramkit::ops {

template <class Type>
struct GroupedWeightPass {
  const typename Type::Bits* input;
  const typename Type::Bits* grad;
  float* partials;     // [block][output channel of all slabs][input channel of the group][tap]
  GroupedSlide slide;  // from the input to the gradient
  GroupedWeights weights;
};

inline constexpr int kWeightBlock = 16;  // channels

/// Pairs of 16 input and 16 output channels of a slab that groups connect, and their warps.
template <class Shape>
struct WeightJobs {
  static constexpr int kSide = Shape::kGroup == 32 ? 2 : 1;
  static constexpr int kCount = Shape::kSlab / kWeightBlock * kSide;
  static constexpr int kWarps = std::max(kGroupedWarps, kCount);
  static constexpr int kTeams = kWarps / kCount;
  static constexpr int kThreads = 32 * kWarps;
  static_assert(kWarps % kCount == 0);
  VRAMKIT_ON_BOTH static constexpr int input(int job) {
    return (job / (kSide * kSide) * kSide + job % kSide) * kWeightBlock;
  }
  VRAMKIT_ON_BOTH static constexpr int output(int job) {
    return (job / (kSide * kSide) * kSide + job / kSide % kSide) * kWeightBlock;
  }
};

/// The window of the gradient: its pixels as they are.
struct GroupedPixels {
  static constexpr int kStride = 1;
  static constexpr int kSpan = 1;
};

/// Shared memory of a block: the windows of input and gradient, and later its sums.
template <class Shape, class Map>
std::size_t grouped_weight_bytes(int across, const GroupedWeights& weights) {
  const int windows = grouped_window_elements<Shape, Map>(across) +
                      grouped_window_elements<Shape, GroupedPixels>(across);
  return std::max(static_cast<std::size_t>(windows) * 2,
                  static_cast<std::size_t>(weights.elements(Shape::kSlab)) * sizeof(float));
}

template <class Shape, class Map>
GroupedPlan plan_grouped_weights(const GroupedSlide& slide, const GroupedWeights& weights) {
  return plan_grouped<Shape>(slide, [&](int across) {
    return static_cast<int>(grouped_weight_bytes<Shape, Map>(across, weights));
  });
}

/// Sums of a block for all slabs.
template <class Shape>
VRAMKIT_ON_BOTH inline int64_t grouped_partials(const GroupedPlan& plan,
                                                const GroupedWeights& weights) {
  return int64_t{plan.slabs} * weights.elements(Shape::kSlab);
}

/// Thread `index` of a block copies its share of the windows of input and gradient.
template <class Type, class Shape, class Map>
VRAMKIT_ON_BOTH inline void stage_grouped_pair(const GroupedWeightPass<Type>& pass,
                                               const GroupedPlan& plan, const GroupedOrigin& at,
                                               int slab, int index, typename Type::Bits* staged) {
  using Bits = typename Type::Bits;
  constexpr int kWarps = WeightJobs<Shape>::kWarps;
  const GroupedSlide& slide = pass.slide;
  const int64_t from_size = int64_t{slide.from_height} * slide.from_width * slide.channels;
  const int64_t to_size = int64_t{slide.to_height} * slide.to_width * slide.channels;
  const GroupedSource<Bits> input{pass.input + at.image * from_size,
                                  slide.from_height,
                                  slide.from_width,
                                  slide.channels,
                                  at.y * Map::kStride + slide.from_y,
                                  at.x * Map::kStride + slide.from_x};
  const GroupedSource<Bits> grad{
      pass.grad + at.image * to_size, slide.to_height, slide.to_width, slide.channels, at.y, at.x};
  stage_grouped<Shape, Map, kWarps>(input, grouped_height<Shape, Map>(), plan.across, slab, index,
                                    staged);
  stage_grouped<Shape, GroupedPixels, kWarps>(
      grad, Shape::kHeight, plan.across, slab, index,
      staged + grouped_window_elements<Shape, Map>(plan.across));
}

/// Sums of 16 input channels and two tiles of output channels for each tap.
struct GroupedWeightSums {
  SumFragment at[kGroupedTaps * kGroupedTaps][2];
};

/// Adds one row of the input and one of the gradient, for a row of taps.
template <class Type, class Warp>
VRAMKIT_ON_BOTH inline void add_weight_row(
    const Warp& warp, typename Warp::template Lanes<LeftFragment> (&lefts)[kGroupedTaps],
    typename Warp::template Lanes<LeftFragment>& grads, int tap_y,
    typename Warp::template Lanes<GroupedWeightSums>& sums) {
  VRAMKIT_UNROLL
  for (int tile = 0; tile < 2; ++tile) {
    typename Warp::template Lanes<RightFragment> right;
    warp.each([&](int lane) {
      const uint32_t* const words = warp.at(grads, lane).words + 2 * tile;
      warp.at(right, lane) = {{words[0], words[1]}};
    });
    VRAMKIT_UNROLL
    for (int tap_x = 0; tap_x < kGroupedTaps; ++tap_x) {
      const int tap = tap_y * kGroupedTaps + tap_x;
      typename Warp::template Lanes<SumFragment> sum;
      warp.each([&](int lane) { warp.at(sum, lane) = warp.at(sums, lane).at[tap][tile]; });
      warp.template multiply<Type>(lefts[tap_x], right, sum);
      warp.each([&](int lane) { warp.at(sums, lane).at[tap][tile] = warp.at(sum, lane); });
    }
  }
}

/// Adds what an octet, and the one below, contribute to the sums of a job.
template <class Type, class Shape, class Map, class Warp>
VRAMKIT_ON_BOTH void add_weight_strip(const Warp& warp, int across, int octet, int job,
                                      const typename Type::Bits* staged,
                                      typename Warp::template Lanes<GroupedWeightSums>& sums) {
  using Bits = typename Type::Bits;
  using Lefts = typename Warp::template Lanes<LeftFragment>;
  const int pitch = grouped_width<Map>(across) * Shape::kPixel;
  const int grad_pitch = grouped_width<GroupedPixels>(across) * Shape::kPixel;
  const int first = octet * kOctet * Shape::kPixel;
  const Bits* const input = staged + first + WeightJobs<Shape>::input(job);
  const Bits* const grad =
      staged + grouped_window_elements<Shape, Map>(across) + first + WeightJobs<Shape>::output(job);
  Lefts grads[Shape::kRows];
  VRAMKIT_UNROLL
  for (int row = 0; row < (Shape::kRows - 1) * Map::kStride + kGroupedTaps; ++row) {
    Lefts lefts[kGroupedTaps];
    VRAMKIT_UNROLL
    for (int tap = 0; tap < kGroupedTaps; ++tap) {
      const int at = row * pitch + grouped_column<Map>(tap, across) * Shape::kPixel;
      warp.template load<true>(lefts[tap], [&](int lane) {
        return input + at + lane % 8 * Shape::kPixel + lane / 8 % 2 * 8 +
               lane / 16 * Shape::kRows * Map::kStride * pitch;
      });
    }
    if (row % Map::kStride == 0 && row / Map::kStride < Shape::kRows) {
      const int y = row / Map::kStride;
      warp.template load<true>(grads[y], [&](int lane) {
        return grad + y * grad_pitch + lane % 8 * Shape::kPixel +
               lane / 8 % 2 * Shape::kRows * grad_pitch + lane / 16 * 8;
      });
    }
    VRAMKIT_UNROLL
    for (int tap = 0; tap < kGroupedTaps; ++tap) {
      const int y = (row - tap) / Map::kStride;
      if (row < tap || y >= Shape::kRows || (row - tap) % Map::kStride != 0) continue;
      add_weight_row<Type>(warp, lefts, grads[y], tap, sums);
    }
  }
}

/// Adds what a window contributes to the sums of warp `index`.
template <class Type, class Shape, class Map, class Warp>
VRAMKIT_ON_BOTH void add_grouped_window(const Warp& warp, const GroupedPlan& plan, int index,
                                        const typename Type::Bits* staged,
                                        typename Warp::template Lanes<GroupedWeightSums>& sums) {
  using Jobs = WeightJobs<Shape>;
  for (int octet = index / Jobs::kCount; octet < plan.across; octet += Jobs::kTeams) {
    add_weight_strip<Type, Shape, Map>(warp, plan.across, octet, index % Jobs::kCount, staged,
                                       sums);
  }
}

/// Adds a lane's sums to those that the block shares; the first team's begin them.
template <class Shape>
VRAMKIT_ON_BOTH inline void share_grouped_sums(const GroupedWeights& weights,
                                               const GroupedWeightSums& sums, int job, bool first,
                                               int lane, float* shared) {
  const int mask = weights.channels - 1;
  VRAMKIT_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int input = WeightJobs<Shape>::input(job) + lane / 4 + i / 2 % 2 * 8;
    const int output = WeightJobs<Shape>::output(job) + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (input >> weights.shift != output >> weights.shift) continue;
    float* const to =
        shared + weights.elements(output) + (input & mask) * (kGroupedTaps * kGroupedTaps);
    VRAMKIT_UNROLL
    for (int tap = 0; tap < kGroupedTaps * kGroupedTaps; ++tap) {
      const float value = sums.at[tap][i / 4].values[i % 4];
      to[tap] = first ? value : to[tap] + value;
    }
  }
}

/// Thread `index` of a block writes its share of the block's sums.
template <class Type, class Shape>
VRAMKIT_ON_BOTH inline void write_grouped_partials(const GroupedWeightPass<Type>& pass,
                                                   const GroupedPlan& plan, int block, int slab,
                                                   int index, const float* shared) {
  const int count = pass.weights.elements(Shape::kSlab);
  float* const to =
      pass.partials + block * grouped_partials<Shape>(plan, pass.weights) + int64_t{slab} * count;
  for (int i = index; i < count; i += WeightJobs<Shape>::kThreads) to[i] = shared[i];
}

/// Where the weight is whose sums are at `position` of a block's.
VRAMKIT_ON_BOTH inline int64_t grouped_position(const GroupedWeights& weights, int64_t position) {
  constexpr int kTaps = kGroupedTaps * kGroupedTaps;
  const int64_t row = position / kTaps;
  return (row >> weights.shift) * weights.channels * kTaps +
         (row & (weights.channels - 1)) * weights.channel_stride +
         position % kTaps * weights.tap_stride;
}

}  // namespace vramkit::ops
