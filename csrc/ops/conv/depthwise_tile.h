// What the threads of a block do in a depthwise convolution or its data gradient, for CPU and CUDA
// alike.
#pragma once

#include <cstddef>

#include "ops/conv/depthwise.h"
#include "ops/conv/staging.h"

namespace vramkit::ops {

/// One convolution: result = relu(weights * from + bias), both channels-last.
template <class Type>
struct TilePass {
  const typename Type::Bits* from;
  typename Type::Bits* to;
  const typename Type::Bits* weight;
  const typename Type::Bits* bias;  // null: none
  Slide slide;
  bool turned;  // weights in opposite order
  bool relu;
};

/// Which thread of a block.
struct Thread {
  int lane;  // its pair of channels
  int x;
  int y;
};

/// Floats from the weights of one tap to those of the next: not a multiple of the banks.
template <class Tile>
inline constexpr int kWeightStep = Tile::kChannels + 2;

template <class Map, class Tile>
inline constexpr int kStagedWeights = Map::kSize* Map::kSize* kWeightStep<Tile>;

template <class Type, class Map, class Tile>
BlockPlan plan_convolution(const Slide& slide) {
  return plan_blocks<Map, Tile>(slide, kDepthwiseThreads / Tile::kLanes, [](const BlockPlan& plan) {
    return window_elements<Map, Tile>(plan) * static_cast<int>(sizeof(typename Type::Bits));
  });
}

/// Shared memory of a block: the window, then the weights.
template <class Type, class Map, class Tile>
std::size_t convolution_bytes(const BlockPlan& plan) {
  return static_cast<std::size_t>(window_elements<Map, Tile>(plan)) * sizeof(typename Type::Bits) +
         kStagedWeights<Map, Tile> * sizeof(float);
}

template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline float* staged_weights(const BlockPlan& plan, void* shared) {
  // A pixel of a window takes at least 16 bytes.
  return reinterpret_cast<float*>(static_cast<typename Type::Bits*>(shared) +
                                  window_elements<Map, Tile>(plan));
}

/// Thread `index` of `threads` copies its share of a slab's weights, so that those of a tap are
/// neighbours.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH void stage_weights(const TilePass<Type>& pass, int slab, int index, int threads,
                                   float* staged) {
  constexpr int kTaps = Map::kSize * Map::kSize;
  const int first = slab * Tile::kChannels;
  const int rest = pass.slide.channels - first;
  const int count = (rest < Tile::kChannels ? rest : Tile::kChannels) * kTaps;
  for (int i = index; i < count; i += threads) {
    const int tap = i % kTaps;
    const int position = pass.turned ? kTaps - 1 - tap : tap;
    staged[position * kWeightStep<Tile> + i / kTaps] =
        to_float<Type>(pass.weight[first * kTaps + i]);
  }
}

/// A window of an image, for some of its channels. It may reach beyond the image: there are zeros.
template <class Bits>
struct Window {
  const Bits* image;
  int image_height;
  int image_width;
  int channels;
  int first_channel;
  int y;
  int x;
  int height;
  int width;
};

/// Copies every `rows`-th row of a window from `row` on: thread `index` of `threads` for each row.
template <int kChannels, class Bits>
VRAMKIT_ON_BOTH inline void stage_window(const Window<Bits>& window, int row, int rows, int index,
                                         int threads, Bits* staged) {
  constexpr int kPiece = 16 / sizeof(Bits);
  constexpr int kPieces = kChannels / kPiece;
  for (; row < window.height; row += rows) {
    const int y = window.y + row;
    const bool row_inside = is_inside(y, window.image_height);
    for (int i = index; i < window.width * kPieces; i += threads) {
      const int x = window.x + i / kPieces;
      const int channel = window.first_channel + i % kPieces * kPiece;
      const bool inside =
          row_inside && is_inside(x, window.image_width) && channel < window.channels;
      const Bits* const from =
          window.image + (y * window.image_width + x) * window.channels + channel;
      copy_or_clear(staged + (row * window.width * kPieces + i) * kPiece,
                    inside ? from : window.image, inside);
    }
  }
}

/// Where a block's tiles begin in the result, and where its window does.
struct BlockOrigin {
  int image;
  int y;
  int x;
  int from_y;
  int from_x;
};

template <class Map, class Tile>
VRAMKIT_ON_BOTH inline BlockOrigin origin_of(const Slide& slide, const BlockPlan& plan,
                                             int window) {
  BlockOrigin at;
  at.x = Map::first(slide.pad_left) + window % plan.columns * plan.across * Tile::kWidth;
  window /= plan.columns;
  at.y = Map::first(slide.pad_top) + window % plan.rows * plan.down * Tile::kHeight;
  at.image = window / plan.rows;
  at.from_y = Map::first_source(at.y, slide.pad_top);
  at.from_x = Map::first_source(at.x, slide.pad_left);
  return at;
}

/// The window of `data` that begins at (y, x) and serves a slab of a plan.
template <class Map, class Tile, class Bits>
VRAMKIT_ON_BOTH inline Window<Bits> window_of(const Bits* data, const Slide& slide,
                                              const BlockPlan& plan, const BlockOrigin& at,
                                              int slab) {
  const int64_t size = int64_t{slide.from_height} * slide.from_width * slide.channels;
  return {data + at.image * size,
          slide.from_height,
          slide.from_width,
          slide.channels,
          slab * Tile::kChannels,
          at.from_y,
          at.from_x,
          window_height<Map, Tile>(plan),
          window_width<Map, Tile>(plan)};
}

template <class Tile>
struct TileSums {
  float at[Tile::kHeight][Tile::kWidth][2];
};

/// Adds what one row of the input contributes to a tile.
template <class Map, class Tile, class Row>
VRAMKIT_ON_BOTH inline void add_row(const Row& values, int row, const float* weights,
                                    TileSums<Tile>& sums) {
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    const int tap_y = Map::tap(y, row);
    if (tap_y < 0 || tap_y >= Map::kSize) continue;
    VRAMKIT_UNROLL
    for (int tap_x = 0; tap_x < Map::kSize; ++tap_x) {
      const auto weight =
          load_vector<float, 2>(weights + (tap_y * Map::kSize + tap_x) * kWeightStep<Tile>);
      VRAMKIT_UNROLL
      for (int x = 0; x < Tile::kWidth; ++x) {
        const int column = Map::source(x, tap_x);
        if (column < 0) continue;
        add_product(sums.at[y][x][0], values[column].at[0], weight.at[0]);
        add_product(sums.at[y][x][1], values[column].at[1], weight.at[1]);
      }
    }
  }
}

template <class Type, class Tile>
VRAMKIT_ON_BOTH inline void store_tile(const TilePass<Type>& pass, int image, int first_y,
                                       int first_x, int channel, TileSums<Tile>& sums) {
  const Slide& slide = pass.slide;
  auto* const to =
      pass.to + int64_t{image} * slide.to_height * slide.to_width * slide.channels + channel;
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) {
      if (!is_inside(first_y + y, slide.to_height) || !is_inside(first_x + x, slide.to_width)) {
        continue;
      }
      float* const pair = sums.at[y][x];
      if (pass.relu) {
        pair[0] = rectified(pair[0]);
        pair[1] = rectified(pair[1]);
      }
      const int pixel = (first_y + y) * slide.to_width + first_x + x;
      store_floats<Type, 2>(to + pixel * slide.channels, pair);
    }
  }
}

/// Computes the tile of a thread from what its block has staged.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void convolve_tile(const TilePass<Type>& pass, const BlockPlan& plan,
                                          const BlockOrigin& at, int slab, const Thread& thread,
                                          const typename Type::Bits* staged, const float* weights) {
  const int channel = slab * Tile::kChannels + 2 * thread.lane;
  if (channel >= pass.slide.channels) return;
  const int pitch = window_width<Map, Tile>(plan) * Tile::kChannels;
  staged += thread.y * Map::advance(Tile::kHeight) * pitch +
            thread.x * Map::advance(Tile::kWidth) * Tile::kChannels + 2 * thread.lane;
  Vector<float, 2> bias{};
  if (pass.bias != nullptr) bias = load_floats<Type, 2>(pass.bias + channel);
  TileSums<Tile> sums;
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) {
      sums.at[y][x][0] = bias.at[0];
      sums.at[y][x][1] = bias.at[1];
    }
  }
  VRAMKIT_UNROLL
  for (int row = 0; row < Map::span(Tile::kHeight); ++row) {
    Vector<float, 2> values[Map::span(Tile::kWidth)];
    VRAMKIT_UNROLL
    for (int column = 0; column < Map::span(Tile::kWidth); ++column) {
      values[column] = load_floats<Type, 2>(staged + row * pitch + column * Tile::kChannels);
    }
    add_row<Map, Tile>(values, row, weights + 2 * thread.lane, sums);
  }
  store_tile<Type, Tile>(pass, at.image, at.y + thread.y * Tile::kHeight,
                         at.x + thread.x * Tile::kWidth, channel, sums);
}

/// The first phase of a block: what the others read.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void stage_thread(const TilePass<Type>& pass, const BlockPlan& plan,
                                         int block, const Thread& thread, void* shared) {
  const int slab = block % plan.slabs;
  const auto at = origin_of<Map, Tile>(pass.slide, plan, block / plan.slabs);
  const int team = Tile::kLanes * plan.across;
  const int index = thread.x * Tile::kLanes + thread.lane;
  stage_window<Tile::kChannels>(window_of<Map, Tile>(pass.from, pass.slide, plan, at, slab),
                                thread.y, plan.down, index, team,
                                static_cast<typename Type::Bits*>(shared));
  stage_weights<Type, Map, Tile>(pass, slab, thread.y * team + index, team * plan.down,
                                 staged_weights<Type, Map, Tile>(plan, shared));
}

/// The second phase.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void convolve_thread(const TilePass<Type>& pass, const BlockPlan& plan,
                                            int block, const Thread& thread, void* shared) {
  const auto at = origin_of<Map, Tile>(pass.slide, plan, block / plan.slabs);
  convolve_tile<Type, Map, Tile>(pass, plan, at, block % plan.slabs, thread,
                                 static_cast<const typename Type::Bits*>(shared),
                                 staged_weights<Type, Map, Tile>(plan, shared));
}

}  // namespace vramkit::ops
