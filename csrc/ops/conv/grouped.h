// Grouped 3 x 3 convolution, channels-last: its shapes, how its work is divided, and what is
// refused.
//
// A block copies a window of the input, some channels wide, into shared memory, with zeros around
// the image. Each of its warps then computes strips of the output as matrix products: eight
// neighbouring pixels of a row, together with those of a row some rows below, are the 16 rows of a
// product; input channels are what is added up, and output channels are the columns.
//
// Groups of fewer than 8 channels are taken together as one of 8, whose other weights are 0.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/conv/matrix.h"
#include "ops/conv/operands.h"

namespace vramkit::ops {

inline constexpr int kGroupedTaps = 3;
inline constexpr int kGroupedWarps = 4;
inline constexpr int kGroupedThreads = 32 * kGroupedWarps;
inline constexpr int kOctet = 8;  // pixels
// Shared memory of a block, at most: three blocks fit into a multiprocessor of 228 KiB.
inline constexpr int kMostGroupedBytes = 74 << 10;

/// Groups of kGroup channels, kSlab channels of a block, and kRows rows of a strip above, and as
/// many below.
template <int kGroup_, int kSlab_, int kRows_>
struct GroupedShape {
  static constexpr int kGroup = kGroup_;
  static constexpr int kSlab = kSlab_;
  static constexpr int kRows = kRows_;
  static constexpr int kHeight = 2 * kRows;
  static constexpr int kPieces = kSlab / 8;  // of 16 bytes in a pixel
  /// From one pixel in shared memory to the next: an odd number of pieces, so that eight neighbours
  /// lie in different banks.
  static constexpr int kPixel = kSlab + 8;
  static constexpr bool kSmall = kGroup == 8;
  /// Output channels of a warp: those of four groups, or half a group of 32.
  static constexpr int kUnit = kSmall ? 32 : 16;
  static constexpr int kUnits = kSlab / kUnit;
  static constexpr int kTiles = kUnit / 8;
  /// Warps that share the strips of a unit.
  static constexpr int kTeams = kGroupedWarps / kUnits;
  static_assert(kGroupedWarps % kUnits == 0);
};

/// The taps of one dimension that a pass applies: kCount neighbours in the window from kFirst on.
template <int kCount_, int kFirst_, int kStride_>
struct Taps {
  static constexpr int kCount = kCount_;
  static constexpr int kFirst = kFirst_;
  static constexpr int kStride = kStride_;
};

/// From one channels-last tensor to another, of as many channels. The pixels of a strip are counted
/// over a grid: those of the result, or pairs of them for GroupedTransposed.
struct GroupedSlide {
  int batch;
  int channels;
  int from_height;
  int from_width;
  int to_height;
  int to_width;
  int grid_height;
  int grid_width;
  int from_y;  // the pixel that the grid's first one reads first
  int from_x;
  int to_y;  // the grid's first pixel in the result
  int to_x;
  int to_step;
};

/// Where the weights of an output and an input channel are, both counted in a group: of the
/// elements of a group, which are neighbours.
struct GroupedWeights {
  int channels;  // of a group as the convolution has them: a power of 2
  int shift;     // its logarithm
  int64_t channel_stride;
  int64_t tap_stride;
  bool transposed;  // the first dimension are the channels that are read
  int first_tap;    // of a dimension: the tap of the first neighbour in the window
  int tap_step;

  VRAMKIT_ON_BOTH int elements(int slab_channels) const {
    return slab_channels * channels * kGroupedTaps * kGroupedTaps;
  }
};

struct GroupedPlan {
  int across;   // octets of a window
  int columns;  // windows in a row of an image
  int rows;     // windows in a column
  int slabs;
  int windows;  // of all images: what the blocks of a slab compute
};

/// Pixels of a window, in a row and in a column.
template <class Map>
VRAMKIT_ON_BOTH constexpr int grouped_width(int across) {
  return (across * kOctet - 1) * Map::kStride + Map::kSpan;
}
template <class Shape, class Map>
VRAMKIT_ON_BOTH constexpr int grouped_height() {
  return (Shape::kHeight - 1) * Map::kStride + Map::kSpan;
}

template <class Shape, class Map>
VRAMKIT_ON_BOTH constexpr int grouped_window_elements(int across) {
  return grouped_height<Shape, Map>() * grouped_width<Map>(across) * Shape::kPixel;
}

/// Where the pixel with column `x` of a window is in its row. With stride 2 those that neighbouring
/// outputs read are neighbours.
template <class Map>
VRAMKIT_ON_BOTH constexpr int grouped_column(int x, int across) {
  return Map::kStride == 1 ? x : (x & 1) * (across * kOctet + 1) + (x >> 1);
}

/// Divides the pixels of the grid; `bytes_of(across)` is the shared memory of a block.
template <class Shape, class Bytes>
GroupedPlan plan_grouped(const GroupedSlide& slide, const Bytes& bytes_of) {
  GroupedPlan plan{};
  const int octets = ceil_div(slide.grid_width, kOctet);
  int most = octets;
  do {
    plan.across = even_part(octets, most--);
  } while (plan.across > 1 && bytes_of(plan.across) > kMostGroupedBytes);
  plan.columns = ceil_div(octets, plan.across);
  plan.rows = ceil_div(slide.grid_height, Shape::kHeight);
  plan.slabs = ceil_div(slide.channels, Shape::kSlab);
  const int64_t windows = int64_t{slide.batch} * plan.rows * plan.columns;
  STD_TORCH_CHECK(windows * plan.slabs <= std::numeric_limits<int>::max(),
                  "vramkit: the grouped convolution has too many pixels");
  plan.windows = static_cast<int>(windows);
  return plan;
}

/// A grouped convolution with its arguments checked.
struct Grouped {
  int batch;
  int channels;
  int group;  // its channels
  int height;
  int width;
  int out_height;
  int out_width;
  int stride;
  int pad_top;
  int pad_left;

  GroupedSlide forward() const {
    return {batch,     channels, height,    width, out_height, out_width, out_height,
            out_width, -pad_top, -pad_left, 0,     0,          1};
  }
  /// The data gradient with stride 1 is a convolution with the weights turned around.
  GroupedSlide backward() const {
    const bool turned = stride == 1;
    const int odd_y = pad_top % 2;
    const int odd_x = pad_left % 2;
    return {batch,
            channels,
            out_height,
            out_width,
            height,
            width,
            turned ? height : (height + odd_y + 1) / 2,
            turned ? width : (width + odd_x + 1) / 2,
            turned ? pad_top - 2 : pad_top / 2 - 1,
            turned ? pad_left - 2 : pad_left / 2 - 1,
            turned ? 0 : -odd_y,
            turned ? 0 : -odd_x,
            turned ? 1 : 2};
  }
};

inline Grouped grouped_of(int64_t batch, int64_t channels, int64_t height, int64_t width,
                          int64_t group, int64_t stride, int64_t pad_top, int64_t pad_left) {
  STD_TORCH_CHECK(group >= 1 && group <= 32 && (group & (group - 1)) == 0,
                  "vramkit: a group has 1, 2, 4, 8, 16 or 32 channels, got ", group);
  STD_TORCH_CHECK(channels % std::max<int64_t>(group, 8) == 0,
                  "vramkit: channels come in whole groups and in eights, got ", channels);
  STD_TORCH_CHECK(stride == 1 || stride == 2, "vramkit: the grouped stride is 1 or 2, got ",
                  stride);
  STD_TORCH_CHECK(pad_top >= 0 && pad_left >= 0 && height + 2 * pad_top >= kGroupedTaps &&
                      width + 2 * pad_left >= kGroupedTaps,
                  "vramkit: the kernel is larger than the padded input");
  const int64_t out_height = (height + 2 * pad_top - kGroupedTaps) / stride + 1;
  const int64_t out_width = (width + 2 * pad_left - kGroupedTaps) / stride + 1;
  checked_int(std::max(height * width, out_height * out_width) * channels);
  return {checked_int(batch),     checked_int(channels),    static_cast<int>(group),
          checked_int(height),    checked_int(width),       checked_int(out_height),
          checked_int(out_width), static_cast<int>(stride), checked_int(pad_top),
          checked_int(pad_left)};
}

/// Checks the weight of an input with `channels` channels: contiguous or channels-last.
inline void check_grouped_weight(const Tensor& weight, int64_t channels) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) > 0 &&
                      weight.size(2) == kGroupedTaps && weight.size(3) == kGroupedTaps &&
                      (weight.is_contiguous() || is_channels_last(weight)),
                  "vramkit: a grouped weight must be (C, C / groups, 3, 3), without gaps");
}

inline GroupedWeights grouped_weights(int group, bool channels_last) {
  GroupedWeights weights{};
  weights.channels = group;
  while (1 << weights.shift < group) ++weights.shift;
  weights.channel_stride = channels_last ? 1 : kGroupedTaps * kGroupedTaps;
  weights.tap_stride = channels_last ? group : 1;
  weights.tap_step = 1;
  return weights;
}

/// Calls `f` with a shape for groups of `group` channels; which variant is faster depends on the
/// convolution and the device.
template <class F>
void for_grouped_shape(int group, int64_t variant, F&& f) {
  const auto for_variant = [&]<int kGroup>() {
    switch (variant) {
      case 0:
        return f(GroupedShape<kGroup, 32, 4>{});
      case 1:
        return f(GroupedShape<kGroup, 64, 4>{});
      case 2:
        return f(GroupedShape<kGroup, 32, 7>{});
      default:
        STD_TORCH_CHECK(false, "vramkit: there is no grouped variant ", variant);
    }
  };
  if (group <= 8) return for_variant.template operator()<8>();
  if (group == 16) return for_variant.template operator()<16>();
  for_variant.template operator()<32>();
}

}  // namespace vramkit::ops
