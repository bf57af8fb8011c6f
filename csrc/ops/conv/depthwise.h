// Depthwise convolution, channels-last: its shapes, how its work is divided, and what is refused.
//
// A thread owns a vector of channels and computes tiles of pixels with them. The threads of a block
// share a slab of channels, whose weights they keep, and each slot of a block walks over tiles.
#pragma once

#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/conv/vectors.h"

namespace vramkit::ops {

// Threads of a block, at most.
inline constexpr int kDepthwiseThreads = 256;
// Channels of a slab, at most: their weights of 7 x 7 taps fit into 26 KiB.
inline constexpr int kSlabChannels = 128;

/// kSize x kSize weights, applied to every kStride-th pixel: output -> input.
template <int kSize_, int kStride>
struct Forward {
  static constexpr int kSize = kSize_;
  /// How many input pixels a run of outputs reads.
  VRAMKIT_ON_BOTH static constexpr int span(int outputs) { return (outputs - 1) * kStride + kSize; }
  /// The weight between an output and an input, both counted from the tile's first; none where it
  /// is not in [0, kSize).
  VRAMKIT_ON_BOTH static constexpr int tap(int output, int input) {
    return input - output * kStride;
  }
  /// The input that an output reads with a weight.
  VRAMKIT_ON_BOTH static constexpr int source(int output, int tap) {
    return output * kStride + tap;
  }
  /// The first pixel of a tile, and the first one that it reads.
  VRAMKIT_ON_BOTH static constexpr int first(int tile, int tile_size, int) {
    return tile * tile_size;
  }
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
  VRAMKIT_ON_BOTH static constexpr int span(int inputs) { return (inputs - 1) / 2 + kHalf + 1; }
  VRAMKIT_ON_BOTH static constexpr int tap(int input, int output) {
    return input - 2 * (output - kHalf);
  }
  /// Negative where this weight does not connect the input to any output.
  VRAMKIT_ON_BOTH static constexpr int source(int input, int tap) {
    return (input - tap) % 2 == 0 ? kHalf + (input - tap) / 2 : -1;
  }
  VRAMKIT_ON_BOTH static constexpr int first(int tile, int tile_size, int padding) {
    return tile * tile_size - padding % 2;
  }
  VRAMKIT_ON_BOTH static constexpr int first_source(int first, int padding) {
    return (first + padding) / 2 - kHalf;
  }
};

/// Pixels and channels that a thread computes at once.
template <int kHeight_, int kWidth_, int kVector_>
struct Tile {
  static constexpr int kHeight = kHeight_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kVector = kVector_;
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

/// How the work is divided: block (x, y) takes every blocks-th run of tiles of slab y.
struct TilePlan {
  int lanes;    // vectors of channels in a slab
  int slots;    // tiles that a block computes at once
  int slabs;    // groups of channels
  int rows;     // tiles in a column of an image
  int columns;  // tiles in a row of an image
  int tiles;    // of all images
  int blocks;   // for each slab

  int threads() const { return lanes * slots; }
};

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Divides the tiles of `slide.to`, or of the gradient for that matter, among `most_blocks`.
template <class Map, class Tile>
TilePlan plan_tiles(const Slide& slide, int64_t most_blocks) {
  const int vectors = slide.channels / Tile::kVector;
  TilePlan plan{};
  plan.slabs = ceil_div(vectors, kSlabChannels / Tile::kVector);
  plan.lanes = ceil_div(vectors, plan.slabs);
  plan.slots = std::max(1, kDepthwiseThreads / plan.lanes);
  // A tile may begin before the image.
  plan.rows = ceil_div(slide.to_height - Map::first(0, 0, slide.pad_top), Tile::kHeight);
  plan.columns = ceil_div(slide.to_width - Map::first(0, 0, slide.pad_left), Tile::kWidth);
  const int64_t tiles = int64_t{slide.batch} * plan.rows * plan.columns;
  STD_TORCH_CHECK(tiles < std::numeric_limits<int>::max() / 2,
                  "vramkit: the depthwise convolution has too many pixels");
  plan.tiles = static_cast<int>(tiles);
  plan.slots = std::clamp(plan.slots, 1, std::max(1, plan.tiles));
  plan.blocks = static_cast<int>(std::clamp<int64_t>(
      ceil_div(plan.tiles, plan.slots), 1, std::max<int64_t>(1, most_blocks / plan.slabs)));
  return plan;
}

inline Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
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

inline int checked_int(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(),
                  "vramkit: a size of the depthwise convolution is out of range: ", value);
  return static_cast<int>(value);
}

inline Depthwise depthwise_of(int64_t batch, int64_t channels, int64_t height, int64_t width,
                              int64_t kernel, int64_t stride, int64_t pad_top, int64_t pad_left) {
  STD_TORCH_CHECK(kernel == 3 || kernel == 5 || kernel == 7,
                  "vramkit: the depthwise kernels have 3, 5 or 7 taps a side, got ", kernel);
  STD_TORCH_CHECK(stride == 1 || stride == 2, "vramkit: the depthwise stride is 1 or 2, got ",
                  stride);
  STD_TORCH_CHECK(channels % 4 == 0, "vramkit: depthwise channels come in fours, got ", channels);
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

inline void check_operand(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4 && is_channels_last(tensor), "vramkit: ", name,
                  " must be (N, C, H, W), channels-last");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "vramkit: ", name,
                  " must have the dtype of the other tensors");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0, "vramkit: ", name,
                  " must be aligned to 16 bytes");
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

/// Calls `f` with the tile of a variant; which is fastest depends on the shape and the device.
template <class F>
void for_tile(int64_t variant, F&& f) {
  switch (variant) {
    case 0:
      return f(Tile<4, 4, 2>{});
    case 1:
      return f(Tile<2, 4, 4>{});
    case 2:
      return f(Tile<4, 8, 2>{});
    default:
      STD_TORCH_CHECK(false, "vramkit: there is no depthwise variant ", variant);
  }
}

template <class F>
void for_weight_tile(int64_t variant, F&& f) {
  switch (variant) {
    case 0:
      return f(Tile<2, 4, 2>{});
    case 1:
      return f(Tile<4, 4, 2>{});
    default:
      STD_TORCH_CHECK(false, "vramkit: there is no depthwise variant ", variant);
  }
}

}  // namespace vramkit::ops
