// What one thread does for the weight gradient of a depthwise convolution, for CPU and CUDA alike.
//
// A thread adds up all taps of a vector of channels over its tiles, a block adds up its threads,
// and a second pass adds up the blocks: always in the same order.
#pragma once

#include "ops/conv/depthwise_tile.h"

namespace vramkit::ops {

// The second pass divides the blocks among so many threads for each weight.
inline constexpr int kPartialThreads = 32;

template <class Type>
struct WeightPass {
  const typename Type::Bits* input;
  const typename Type::Bits* grad;
  float* partials;  // [block][tap][channel of all slabs]
  Slide slide;      // from the input to the gradient
};

template <class Map, class Tile>
struct WeightSums {
  float at[Map::kSize][Map::kSize][Tile::kVector];
};

template <class Tile>
VRAMKIT_ON_BOTH constexpr int partial_channels(const TilePlan& plan) {
  return plan.slabs * plan.lanes * Tile::kVector;
}

/// Adds what one pixel of the input contributes, given the gradient of a tile.
template <class Map, class Tile, class Value, class Grads>
VRAMKIT_ON_BOTH inline void add_pixel(const Value& value, int row, int column, const Grads& grads,
                                      WeightSums<Map, Tile>& sums) {
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    const int tap_y = Map::tap(y, row);
    if (tap_y < 0 || tap_y >= Map::kSize) continue;
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) {
      const int tap_x = Map::tap(x, column);
      if (tap_x < 0 || tap_x >= Map::kSize) continue;
      VRAMKIT_UNROLL
      for (int i = 0; i < Tile::kVector; ++i) {
        sums.at[tap_y][tap_x][i] += value.at[i] * grads[y][x].at[i];
      }
    }
  }
}

template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void add_weight_tile(const WeightPass<Type>& pass, const TilePlan& plan,
                                            int tile, int channel, WeightSums<Map, Tile>& sums) {
  const Slide& slide = pass.slide;
  const TileOrigin at = origin_of<Map, Tile>(slide, plan, tile);
  const Image<Type, Tile::kVector> input(pass.input, at.image, slide.from_height, slide.from_width,
                                         slide.channels, channel);
  const Image<Type, Tile::kVector> grad(pass.grad, at.image, slide.to_height, slide.to_width,
                                        slide.channels, channel);
  Vector<float, Tile::kVector> grads[Tile::kHeight][Tile::kWidth];
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) grads[y][x] = grad.at(at.y + y, at.x + x);
  }
  VRAMKIT_UNROLL
  for (int row = 0; row < Map::span(Tile::kHeight); ++row) {
    VRAMKIT_UNROLL
    for (int column = 0; column < Map::span(Tile::kWidth); ++column) {
      const auto value = input.at(at.from_y + row, at.from_x + column);
      add_pixel<Map, Tile>(value, row, column, grads, sums);
    }
  }
}

/// The sums of the thread at (lane, slot) of block (block, slab).
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void add_weight_thread(const WeightPass<Type>& pass, const TilePlan& plan,
                                              int block, int slab, int lane, int slot,
                                              WeightSums<Map, Tile>& sums) {
  const int channel = (slab * plan.lanes + lane) * Tile::kVector;
  if (channel >= pass.slide.channels) return;
  for (int tile = block * plan.slots + slot; tile < plan.tiles; tile += plan.blocks * plan.slots) {
    add_weight_tile<Type, Map, Tile>(pass, plan, tile, channel, sums);
  }
}

/// Floats that the threads of a block share while they add up a row of taps.
template <class Map, class Tile>
VRAMKIT_ON_BOTH constexpr int shared_row(const TilePlan& plan) {
  return Map::kSize * plan.lanes * Tile::kVector;
}

/// Puts a thread's sums of a row of taps where the block shares them: [slot][tap][channel].
template <class Map, class Tile>
VRAMKIT_ON_BOTH inline void share_row(const WeightSums<Map, Tile>& sums, int row,
                                      const TilePlan& plan, int lane, int slot, float* shared) {
  float* const own = shared + slot * shared_row<Map, Tile>(plan) + lane * Tile::kVector;
  VRAMKIT_UNROLL
  for (int tap = 0; tap < Map::kSize; ++tap) {
    VRAMKIT_UNROLL
    for (int i = 0; i < Tile::kVector; ++i) {
      own[tap * plan.lanes * Tile::kVector + i] = sums.at[row][tap][i];
    }
  }
}

/// Thread `index` adds up its share of a row of taps over the slots of its block.
template <class Map, class Tile>
VRAMKIT_ON_BOTH inline void add_slots(const float* shared, int row, const TilePlan& plan, int block,
                                      int slab, int index, float* partials) {
  const int width = plan.lanes * Tile::kVector;
  const int channels = partial_channels<Tile>(plan);
  for (int i = index; i < Map::kSize * width; i += plan.lanes * plan.slots) {
    float sum = 0;
    for (int slot = 0; slot < plan.slots; ++slot) {
      sum += shared[slot * shared_row<Map, Tile>(plan) + i];
    }
    const int64_t tap = int64_t{block} * (Map::kSize * Map::kSize) + row * Map::kSize + i / width;
    partials[tap * channels + slab * width + i % width] = sum;
  }
}

/// The sum over every kPartialThreads-th block of what is at `position` in each.
VRAMKIT_ON_BOTH inline float add_blocks(const float* partials, int64_t block_size, int blocks,
                                        int64_t position, int thread) {
  float sum = 0;
  for (int block = thread; block < blocks; block += kPartialThreads) {
    sum += partials[block * block_size + position];
  }
  return sum;
}

}  // namespace vramkit::ops
