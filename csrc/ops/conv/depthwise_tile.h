// What one thread does in a depthwise convolution or its data gradient, for CPU and CUDA alike.
#pragma once

#include "ops/conv/depthwise.h"

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

/// Floats from the weights of one tap to those of the next: more than the channels of a slab, so
/// that neighbouring taps lie in different banks.
template <class Tile>
VRAMKIT_ON_BOTH constexpr int weight_step(const TilePlan& plan) {
  return (plan.lanes + 1) * Tile::kVector;
}

/// Thread `index` copies its share of a slab's weights, so that those of a tap are neighbours.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH void stage_weights(const TilePass<Type>& pass, const TilePlan& plan, int slab,
                                   int index, float* staged) {
  constexpr int kTaps = Map::kSize * Map::kSize;
  const int width = plan.lanes * Tile::kVector;
  const int first = slab * width;
  const int channels = pass.slide.channels - first < width ? pass.slide.channels - first : width;
  for (int i = index; i < channels * kTaps; i += plan.lanes * plan.slots) {
    const int channel = i / kTaps;
    const int tap = i % kTaps;
    const int position = pass.turned ? kTaps - 1 - tap : tap;
    staged[position * weight_step<Tile>(plan) + channel] =
        to_float<Type>(pass.weight[first * kTaps + i]);
  }
}

/// Where a tile begins, in the result and in what it reads.
struct TileOrigin {
  int image;
  int y;
  int x;
  int from_y;
  int from_x;
};

template <class Map, class Tile>
VRAMKIT_ON_BOTH TileOrigin origin_of(const Slide& slide, const TilePlan& plan, int tile) {
  TileOrigin at;
  at.x = Map::first(tile % plan.columns, Tile::kWidth, slide.pad_left);
  tile /= plan.columns;
  at.y = Map::first(tile % plan.rows, Tile::kHeight, slide.pad_top);
  at.image = tile / plan.rows;
  at.from_y = Map::first_source(at.y, slide.pad_top);
  at.from_x = Map::first_source(at.x, slide.pad_left);
  return at;
}

VRAMKIT_ON_BOTH inline bool is_inside(int at, int size) { return at >= 0 && at < size; }

/// An image's pixels of one vector of channels; zero outside.
template <class Type, int kVector>
struct Image {
  const typename Type::Bits* first;
  int height;
  int width;
  int channels;

  VRAMKIT_ON_BOTH Image(const typename Type::Bits* data, int image, int height_, int width_,
                        int channels_, int channel)
      : first(data + int64_t{image} * height_ * width_ * channels_ + channel),
        height(height_),
        width(width_),
        channels(channels_) {}

  VRAMKIT_ON_BOTH Vector<float, kVector> at(int y, int x) const {
    if (is_inside(y, height) && is_inside(x, width)) {
      return load_floats<Type, kVector>(first + (y * width + x) * channels);
    }
    return {};
  }
};

template <class Tile>
struct TileSums {
  float at[Tile::kHeight][Tile::kWidth][Tile::kVector];
};

/// Adds what one row of the input contributes to a tile.
template <class Map, class Tile, class Row>
VRAMKIT_ON_BOTH inline void add_row(const Row& values, int row, const float* weights, int step,
                                    TileSums<Tile>& sums) {
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    const int tap_y = Map::tap(y, row);
    if (tap_y < 0 || tap_y >= Map::kSize) continue;
    VRAMKIT_UNROLL
    for (int tap_x = 0; tap_x < Map::kSize; ++tap_x) {
      const auto weight =
          load_vector<float, Tile::kVector>(weights + (tap_y * Map::kSize + tap_x) * step);
      VRAMKIT_UNROLL
      for (int x = 0; x < Tile::kWidth; ++x) {
        const int column = Map::source(x, tap_x);
        if (column < 0) continue;
        VRAMKIT_UNROLL
        for (int i = 0; i < Tile::kVector; ++i) {
          sums.at[y][x][i] += values[column].at[i] * weight.at[i];
        }
      }
    }
  }
}

template <class Type, class Tile>
VRAMKIT_ON_BOTH inline void store_tile(const TilePass<Type>& pass, const TileOrigin& at,
                                       int channel, TileSums<Tile>& sums) {
  const Slide& slide = pass.slide;
  auto* const image =
      pass.to + int64_t{at.image} * slide.to_height * slide.to_width * slide.channels + channel;
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) {
      if (!is_inside(at.y + y, slide.to_height) || !is_inside(at.x + x, slide.to_width)) continue;
      VRAMKIT_UNROLL
      for (int i = 0; i < Tile::kVector; ++i) {
        if (pass.relu) sums.at[y][x][i] = rectified(sums.at[y][x][i]);
      }
      const int pixel = (at.y + y) * slide.to_width + at.x + x;
      store_floats<Type, Tile::kVector>(image + pixel * slide.channels, sums.at[y][x]);
    }
  }
}

/// Computes a tile of one vector of channels; `weights` are the staged ones of this vector.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void convolve_tile(const TilePass<Type>& pass, const TilePlan& plan,
                                          int tile, int channel, const float* weights) {
  constexpr int kColumns = Map::span(Tile::kWidth);
  const Slide& slide = pass.slide;
  const TileOrigin at = origin_of<Map, Tile>(slide, plan, tile);
  const Image<Type, Tile::kVector> image(pass.from, at.image, slide.from_height, slide.from_width,
                                         slide.channels, channel);
  Vector<float, Tile::kVector> bias{};
  if (pass.bias != nullptr) bias = load_floats<Type, Tile::kVector>(pass.bias + channel);
  TileSums<Tile> sums;
  VRAMKIT_UNROLL
  for (int y = 0; y < Tile::kHeight; ++y) {
    VRAMKIT_UNROLL
    for (int x = 0; x < Tile::kWidth; ++x) {
      VRAMKIT_UNROLL
      for (int i = 0; i < Tile::kVector; ++i) sums.at[y][x][i] = bias.at[i];
    }
  }
  VRAMKIT_UNROLL
  for (int row = 0; row < Map::span(Tile::kHeight); ++row) {
    Vector<float, Tile::kVector> values[kColumns];
    VRAMKIT_UNROLL
    for (int column = 0; column < kColumns; ++column) {
      values[column] = image.at(at.from_y + row, at.from_x + column);
    }
    add_row<Map, Tile>(values, row, weights, weight_step<Tile>(plan), sums);
  }
  store_tile<Type, Tile>(pass, at, channel, sums);
}

/// What the thread at (lane, slot) of block (block, slab) does once the weights are staged.
template <class Type, class Map, class Tile>
VRAMKIT_ON_BOTH inline void convolve_thread(const TilePass<Type>& pass, const TilePlan& plan,
                                            int block, int slab, int lane, int slot,
                                            const float* staged) {
  const int channel = (slab * plan.lanes + lane) * Tile::kVector;
  if (channel >= pass.slide.channels) return;
  for (int tile = block * plan.slots + slot; tile < plan.tiles; tile += plan.blocks * plan.slots) {
    convolve_tile<Type, Map, Tile>(pass, plan, tile, channel, staged + lane * Tile::kVector);
  }
}

}  // namespace vramkit::ops
