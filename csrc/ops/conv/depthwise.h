// Depthwise convolution, channels-last: its shapes, how its work is divided, and what is refused.
//
// A block copies a window of the input, some channels wide, into shared memory, with zeros around
// the image. Each of its threads then computes a tile of pixels of two channels from there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/conv/operands.h"

namespace vramkit::ops {

// Threads of a block, at most.
inline constexpr int kDepthwiseThreads = 256;
// Tiles of a block in a row of pixels, at most.
inline constexpr int kMostAcross = 4;
// Shared memory of a block, at most, so that several blocks run on a multiprocessor at once.
inline constexpr int kMostStagedBytes = 40 << 10;

/// kSize x kSize weights, applied to every kStride-th pixel: output -> input.
template <int kSize_, int kStride>
struct Forward {
  static constexpr int kSize = kSize_;
  /// Divides the widths of most images, and is odd: neighbouring tiles lie in different banks.
  static constexpr int kTileWidth = 7;
  /// How many input pixels a run of outputs reads.
  VRAMKIT_ON_BOTH static constexpr int span(int outputs) { return (outputs - 1) * kStride + kSize; }
  /// How many input pixels lie between those of outputs that are so far apart.
  VRAMKIT_ON_BOTH static constexpr int advance(int outputs) { return outputs * kStride; }
  /// The weight between an output and an input, both counted from the tile's first; none where it
  /// is not in [0, kSize).
  VRAMKIT_ON_BOTH static constexpr int tap(int output, int input) {
    return input - output * kStride;
  }
  /// The input that an output reads with a weight.
  VRAMKIT_ON_BOTH static constexpr int source(int output, int tap) {
    return output * kStride + tap;
  }
  /// The first pixel of the first tile, and the first one that a tile reads.
  VRAMKIT_ON_BOTH static constexpr int first(int) { return 0; }
  VRAMKIT_ON_BOTH static constexpr int first_source(int first, int padding) {
    return first * kStride - padding;
  }
};

/// The transpose of Forward<kSize, 2>, for its data gradient: input -> output. A tile begins where
/// the parity of the weights is known, which may be one pixel before the image.
template <int kSize_>
struct Transposed {
  static constexpr int kSize = kSize_;
  static constexpr int kHalf = (kSize - 1) / 2;
  static constexpr int kTileWidth = 14;
  VRAMKIT_ON_BOTH static constexpr int span(int inputs) { return (inputs - 1) / 2 + kHalf + 1; }
  VRAMKIT_ON_BOTH static constexpr int advance(int inputs) { return inputs / 2; }
  VRAMKIT_ON_BOTH static constexpr int tap(int input, int output) {
    return input - 2 * (output - kHalf);
  }
  /// Negative where this weight does not connect the input to any output.
  VRAMKIT_ON_BOTH static constexpr int source(int input, int tap) {
    return (input - tap) % 2 == 0 ? kHalf + (input - tap) / 2 : -1;
  }
  VRAMKIT_ON_BOTH static constexpr int first(int padding) { return -(padding % 2); }
  VRAMKIT_ON_BOTH static constexpr int first_source(int first, int padding) {
    return (first + padding) / 2 - kHalf;
  }
};

/// Channels of a block, and the pixels that a thread computes of two of them.
template <int kChannels_, int kWidth_, int kHeight_>
struct Tile {
  static constexpr int kChannels = kChannels_;
  static constexpr int kLanes = kChannels / 2;
  static constexpr int kWidth = kWidth_;
  static constexpr int kHeight = kHeight_;
};

/// From one channels-last tensor to another; row r of the result begins to read at a row that
/// depends on r and pad_top.
struct Slide {
  int batch;
  int channels;
  int from_height;
  int from_width;
  int to_height;
  int to_width;
  int pad_top;
  int pad_left;
};

/// How the work is divided. The threads of a block have an index among the pairs of channels, one
/// among `across` and one among `down`.
struct BlockPlan {
  int across;   // tiles of a block in a row of pixels
  int down;     // tiles in a column
  int columns;  // blocks in a row of an image
  int rows;     // blocks in a column
  int slabs;    // groups of channels
  int windows;  // of all images: what the blocks of a slab compute
};

/// Pixels of the window that a block copies, in a row and in a column.
template <class Map, class Tile>
VRAMKIT_ON_BOTH constexpr int window_width(const BlockPlan& plan) {
  return Map::span(plan.across * Tile::kWidth);
}
template <class Map, class Tile>
VRAMKIT_ON_BOTH constexpr int window_height(const BlockPlan& plan) {
  return Map::span(plan.down * Tile::kHeight);
}

template <class Map, class Tile>
VRAMKIT_ON_BOTH constexpr int window_elements(const BlockPlan& plan) {
  return window_width<Map, Tile>(plan) * window_height<Map, Tile>(plan) * Tile::kChannels;
}

/// Elements of the window of the result that a block computes.
template <class Tile>
VRAMKIT_ON_BOTH constexpr int tile_elements(const BlockPlan& plan) {
  return plan.across * Tile::kWidth * plan.down * Tile::kHeight * Tile::kChannels;
}

/// Divides the pixels of `slide.to` among blocks of at most `most_tiles` tiles, for which
/// `bytes_of(plan)` is the shared memory of one.
template <class Map, class Tile, class Bytes>
BlockPlan plan_blocks(const Slide& slide, int most_tiles, const Bytes& bytes_of) {
  BlockPlan plan{};
  // Tiles may begin before the image.
  const int width = ceil_div(slide.to_width - Map::first(slide.pad_left), Tile::kWidth);
  const int height = ceil_div(slide.to_height - Map::first(slide.pad_top), Tile::kHeight);
  plan.across = even_part(width, std::min(kMostAcross, most_tiles));
  int most = most_tiles / plan.across;
  do {
    plan.down = even_part(height, most--);
  } while (plan.down > 1 && bytes_of(plan) > kMostStagedBytes);
  plan.columns = ceil_div(width, plan.across);
  plan.rows = ceil_div(height, plan.down);
  plan.slabs = ceil_div(slide.channels, Tile::kChannels);
  const int64_t windows = int64_t{slide.batch} * plan.rows * plan.columns;
  STD_TORCH_CHECK(windows * plan.slabs <= std::numeric_limits<int>::max(),
                  "vramkit: the depthwise convolution has too many pixels");
  plan.windows = static_cast<int>(windows);
  return plan;
}

/// A depthwise convolution with its arguments checked.
struct Depthwise {
  int batch;
  int channels;
  int height;
  int width;
  int out_height;
  int out_width;
  int kernel;
  int stride;
  int pad_top;
  int pad_left;

  Slide forward() const {
    return {batch, channels, height, width, out_height, out_width, pad_top, pad_left};
  }
  /// The data gradient with stride 1 is a convolution with the weights turned around.
  Slide backward() const {
    const int turned = kernel - 1;
    return {batch,
            channels,
            out_height,
            out_width,
            height,
            width,
            stride == 1 ? turned - pad_top : pad_top,
            stride == 1 ? turned - pad_left : pad_left};
  }
};

inline Depthwise depthwise_of(int64_t batch, int64_t channels, int64_t height, int64_t width,
                              int64_t kernel, int64_t stride, int64_t pad_top, int64_t pad_left) {
  STD_TORCH_CHECK(kernel == 3 || kernel == 5 || kernel == 7,
                  "vramkit: the depthwise kernels have 3, 5 or 7 taps a side, got ", kernel);
  STD_TORCH_CHECK(stride == 1 || stride == 2, "vramkit: the depthwise stride is 1 or 2, got ",
                  stride);
  STD_TORCH_CHECK(channels % 8 == 0, "vramkit: depthwise channels come in eights, got ", channels);
  const int64_t out_height = (height + 2 * pad_top - kernel) / stride + 1;
  const int64_t out_width = (width + 2 * pad_left - kernel) / stride + 1;
  STD_TORCH_CHECK(pad_top >= 0 && pad_left >= 0 && height + 2 * pad_top >= kernel &&
                      width + 2 * pad_left >= kernel,
                  "vramkit: the kernel is larger than the padded input");
  checked_int(std::max(height * width, out_height * out_width) * channels);
  return {checked_int(batch),       checked_int(channels),    checked_int(height),
          checked_int(width),       checked_int(out_height),  checked_int(out_width),
          static_cast<int>(kernel), static_cast<int>(stride), checked_int(pad_top),
          checked_int(pad_left)};
}

inline void check_depthwise_weight(const Tensor& weight, int64_t channels) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1 &&
                      weight.size(2) == weight.size(3) && weight.is_contiguous(),
                  "vramkit: a depthwise weight must be (C, 1, k, k), contiguous");
}

/// Calls `f` with Forward for the size of the kernel and the stride.
template <class F>
void for_forward(const Depthwise& conv, F&& f) {
  const auto for_stride = [&]<int kSize>() {
    conv.stride == 1 ? f(Forward<kSize, 1>{}) : f(Forward<kSize, 2>{});
  };
  if (conv.kernel == 3) return for_stride.template operator()<3>();
  if (conv.kernel == 5) return for_stride.template operator()<5>();
  for_stride.template operator()<7>();
}

/// Calls `f` with what computes the data gradient.
template <class F>
void for_backward(const Depthwise& conv, F&& f) {
  const auto for_stride = [&]<int kSize>() {
    conv.stride == 1 ? f(Forward<kSize, 1>{}) : f(Transposed<kSize>{});
  };
  if (conv.kernel == 3) return for_stride.template operator()<3>();
  if (conv.kernel == 5) return for_stride.template operator()<5>();
  for_stride.template operator()<7>();
}

/// Calls `f` with the tile of a variant; which is faster depends on the shape and the device.
template <class Map, class F>
void for_tile(int64_t variant, F&& f) {
  switch (variant) {
    case 0:
      return f(Tile<16, Map::kTileWidth, 2>{});
    case 1:
      return f(Tile<32, Map::kTileWidth, 2>{});
    default:
      STD_TORCH_CHECK(false, "vramkit: there is no depthwise variant ", variant);
  }
}

}  // namespace vramkit::ops
