// What the threads of a block do for the weight gradient of a depthwise convolution, for CPU and
// CUDA alike.
//
// A thread adds up a row of taps of two channels over its share of a block's windows, the block
// adds up its threads, and a second pass adds up the blocks: always in the same order.
#pragma once

#include "ops/conv/depthwise_tile.h"
#include "ops/conv/partials.h"

namespace vramkit::ops {

template <class Type>
struct WeightPass {
  const typename Type::Bits* input;
  const typename Type::Bits* grad;
  float* partials;  // [block][tap][channel of all slabs]
  Slide slide;      // from the input to the gradient
};

/// Threads that share the rows of a window: each with all rows of taps.
template <class Map, class Tile>
inline constexpr int kWeightGroups = std::max(1, kDepthwiseThreads / (Tile::kLanes * Map::kSize));

template <class Map, class Tile>
inline constexpr int kWeightThreads = Tile::kLanes* Map::kSize* kWeightGroups<Map, Tile>;

template <class Map, class Tile>
inline constexpr int kSharedSums =
    kWeightGroups<Map, Tile>* Map::kSize* Map::kSize* Tile::kChannels;

template <class Tile>
VRAMKIT_ON_BOTH constexpr int partial_channels(const BlockPlan& plan) {
  return plan.slabs * Tile::kChannels;
}

/// Blocks have the windows of input and gradient in shared memory, and later their sums.
template <class Type, class Map, class Tile>
BlockPlan plan_weights(const Slide& slide) {
  constexpr int kMostTiles = 64;
  return plan_blocks<Map, Tile>(slide, kMostTiles, [](const BlockPlan& plan) {
    return (window_elements<Map, Tile>(plan) + tile_elements<Tile>(plan)) *
           static_cast<int>(sizeof(typename Type::Bits));
  });
}

template <class Type, class Map, class Tile>
std::size_t weights_bytes(const BlockPlan& plan) {
  const int windows = window_elements<Map, Tile>(plan) + tile_elements<Tile>(plan);
  return std::max(static_cast<std::size_t>(windows) * sizeof(typename Type::Bits),
                  static_cast<std::size_t>(kSharedSums<Map, Tile>) * sizeof(float));
}

/// Thread (lane, tap row, group) copies its share of the windows of input and gradient.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void stage_both(const WeightPass<Type>& pass, const BlockPlan& plan,
                                       int window, int slab, const Thread& thread,
                                       typename Type::Bits* staged) {
  constexpr int kTeam = Tile::kLanes * Map::kSize;
  constexpr int kGroups = kWeightGroups<Map, Tile>;
  const Slide& slide = pass.slide;
  const BlockOrigin at = origin_of<Map, Tile>(slide, plan, window);
  const int index = thread.x * Tile::kLanes + thread.lane;
  const auto input = window_of<Map, Tile>(pass.input, slide, plan, at, slab);
  stage_window<Tile::kChannels>(input, thread.y, kGroups, index, kTeam, staged);
  const int64_t size = int64_t{slide.to_height} * slide.to_width * slide.channels;
  const Window<typename Type::Bits> grad{pass.grad + at.image * size,
                                         slide.to_height,
                                         slide.to_width,
                                         slide.channels,
                                         slab * Tile::kChannels,
                                         at.y,
                                         at.x,
                                         plan.down * Tile::kHeight,
                                         plan.across * Tile::kWidth};
  stage_window<Tile::kChannels>(grad, thread.y, kGroups, index, kTeam,
                                staged + input.height * input.width * Tile::kChannels);
}

/// A row of taps.
template <class Map>
struct WeightSums {
  float at[Map::kSize][2];
};

/// Adds what a window contributes to the row of taps thread.x, in the rows of the group thread.y.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void add_window(const BlockPlan& plan, const Thread& thread,
                                       const typename Type::Bits* staged, WeightSums<Map>& sums) {
  const int pitch = window_width<Map, Tile>(plan) * Tile::kChannels;
  const int grad_pitch = plan.across * Tile::kWidth * Tile::kChannels;
  const auto* const input = staged + thread.x * pitch + 2 * thread.lane;
  const auto* const grad = staged + window_height<Map, Tile>(plan) * pitch + 2 * thread.lane;
  for (int y = thread.y; y < plan.down * Tile::kHeight; y += kWeightGroups<Map, Tile>) {
    for (int tile = 0; tile < plan.across; ++tile) {
      const auto* const from =
          input + Map::advance(y) * pitch + Map::advance(tile * Tile::kWidth) * Tile::kChannels;
      const auto* const to = grad + y * grad_pitch + tile * Tile::kWidth * Tile::kChannels;
      Vector<float, 2> values[Map::span(Tile::kWidth)];
      VRAMKIT_UNROLL
      for (int column = 0; column < Map::span(Tile::kWidth); ++column) {
        values[column] = load_floats<Type, 2>(from + column * Tile::kChannels);
      }
      VRAMKIT_UNROLL
      for (int x = 0; x < Tile::kWidth; ++x) {
        const auto pair = load_floats<Type, 2>(to + x * Tile::kChannels);
        VRAMKIT_UNROLL
        for (int tap = 0; tap < Map::kSize; ++tap) {
          const auto& value = values[Map::source(x, tap)];
          add_product(sums.at[tap][0], value.at[0], pair.at[0]);
          add_product(sums.at[tap][1], value.at[1], pair.at[1]);
        }
      }
    }
  }
}

/// Puts a thread's sums where the block shares them: [group][tap][channel].
template <class Map, class Tile>
VRAMKIT_ON_BOTH inline void share_sums(const WeightSums<Map>& sums, const Thread& thread,
                                       float* shared) {
  float* const own = shared + (thread.y * Map::kSize + thread.x) * Map::kSize * Tile::kChannels;
  VRAMKIT_UNROLL
  for (int tap = 0; tap < Map::kSize; ++tap) {
    own[tap * Tile::kChannels + 2 * thread.lane] = sums.at[tap][0];
    own[tap * Tile::kChannels + 2 * thread.lane + 1] = sums.at[tap][1];
  }
}

/// Thread `index` adds up its share of a block's sums.
template <class Map, class Tile>
VRAMKIT_ON_BOTH inline void add_groups(const float* shared, const BlockPlan& plan, int block,
                                       int slab, int index, float* partials) {
  constexpr int kSums = Map::kSize * Map::kSize * Tile::kChannels;
  for (int i = index; i < kSums; i += kWeightThreads<Map, Tile>) {
    float sum = 0;
    for (int group = 0; group < kWeightGroups<Map, Tile>; ++group) sum += shared[group * kSums + i];
    const int64_t tap = int64_t{block} * (Map::kSize * Map::kSize) + i / Tile::kChannels;
    partials[tap * partial_channels<Tile>(plan) + slab * Tile::kChannels + i % Tile::kChannels] =
        sum;
  }
}

}  // namespace vramkit::ops
