// Convolution of images of 3 or 4 channels with stride 2, as matrix products of 16 x 8 x 16: which
// element each thread of a warp holds, for CPU and CUDA alike.
//
// A block keeps a tile of the input with four channels a pixel, and all weights in the order in
// which its threads need them. A row of a product is an output pixel; 16 neighbours in a row of the
// image make a product. A product adds up 4 pixels of the kernel's row, 4 channels each; what there
// are not has weight 0. Columns are output channels, in an order that gives a thread eight
// neighbours for each pixel: 16 bytes.
#pragma once

#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "ops/conv/matrix.h"
#include "ops/conv/vectors.h"

namespace vramkit::ops {

inline constexpr int kStemWarps = 4;
inline constexpr int kStemThreads = 32 * kStemWarps;
inline constexpr int kStemWidth = 16;     // output pixels in a row of a tile
inline constexpr int kStemPixel = 4;      // channels of a pixel, the last ones 0
inline constexpr int kStemChannels = 32;  // output channels in a group

/// A kernel of kSize x kSize taps, kGroups groups of output channels, kRows rows of a tile a warp.
template <int kSize_, int kGroups_, int kRows_>
struct StemShape {
  static constexpr int kSize = kSize_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kRows = kRows_;
  static constexpr int kSteps = (kSize + 3) / 4;  // products for a row of the kernel
  static constexpr int kColumns = 4 * kGroups;    // products for all output channels
  static constexpr int kHeight = kStemWarps * kRows;
  static constexpr int kInputHeight = 2 * (kHeight - 1) + kSize;
  static constexpr int kInputWidth = 2 * (kStemWidth - 1) + 4 * kSteps;
  static constexpr int kInputWords = kInputHeight * kInputWidth * 2;
  static constexpr int kWeightWords = kSize * kSteps * kColumns * 2 * 32;
};

struct Stem {
  int batch;
  int channels;
  int height;
  int width;
  int outputs;
  int out_height;
  int out_width;
  int pad_top;
  int pad_left;
  int64_t strides[4];         // of the input
  int64_t weight_strides[4];  // of the weight
  int rows;                   // tiles in a column of an image
  int columns;
  int tiles;
};

template <class Type>
struct StemPass {
  const typename Type::Bits* from;
  const typename Type::Bits* weight;
  const typename Type::Bits* bias;  // null: none
  typename Type::Bits* to;
  Stem stem;
  bool relu;
};

/// The output channel in column `column` of product `product`.
VRAMKIT_ON_BOTH constexpr int stem_channel(int product, int column) {
  return product / 4 * kStemChannels + column / 2 * 8 + product % 4 * 2 + column % 2;
}

/// The weight that meets element `k` of a row in step `step` of the kernel's row `y`.
template <class Type, class Shape>
VRAMKIT_ON_BOTH uint32_t stem_weight(const StemPass<Type>& pass, int output, int y, int step,
                                     int k) {
  const int x = 4 * step + k / kStemPixel;
  const int channel = k % kStemPixel;
  if (x >= Shape::kSize || channel >= pass.stem.channels || output >= pass.stem.outputs) return 0;
  const int64_t* const strides = pass.stem.weight_strides;
  return pass.weight[output * strides[0] + channel * strides[1] + y * strides[2] + x * strides[3]];
}

/// Thread `index` of a block writes its share of the weights: for each row of the kernel, step, and
/// product, the words of the 32 lanes; two products are neighbours, so that a lane reads 16 bytes.
template <class Type, class Shape>
VRAMKIT_ON_BOTH void stage_stem_weights(const StemPass<Type>& pass, int index, uint32_t* staged) {
  for (int i = index; i < Shape::kWeightWords; i += kStemThreads) {
    const int word = i % 2;
    const int lane = i / 4 % 32;
    const int product = i / 128 % (Shape::kColumns / 2) * 2 + i / 2 % 2;
    const int row = i / (64 * Shape::kColumns);
    const int output = stem_channel(product, lane / 4);
    const int k = lane % 4 * 2 + 8 * word;
    const int y = row / Shape::kSteps;
    const int step = row % Shape::kSteps;
    staged[i] = stem_weight<Type, Shape>(pass, output, y, step, k) |
                stem_weight<Type, Shape>(pass, output, y, step, k + 1) << 16;
  }
}

/// The first output pixel of a tile.
struct StemOrigin {
  int image;
  int y;
  int x;
};

template <class Shape>
VRAMKIT_ON_BOTH StemOrigin stem_origin(const Stem& stem, int tile) {
  const int row = tile / stem.columns;
  return {row / stem.rows, row % stem.rows * Shape::kHeight, tile % stem.columns * kStemWidth};
}

/// Thread `index` of a block copies its share of what a tile reads.
template <class Type, class Shape>
VRAMKIT_ON_BOTH void stage_stem_input(const StemPass<Type>& pass, const StemOrigin& at, int index,
                                      uint32_t* staged) {
  const Stem& stem = pass.stem;
  const auto* const image = pass.from + at.image * stem.strides[0];
  for (int i = index; i < Shape::kInputWords / 2; i += kStemThreads) {
    const int y = 2 * at.y - stem.pad_top + i / Shape::kInputWidth;
    const int x = 2 * at.x - stem.pad_left + i % Shape::kInputWidth;
    uint32_t values[kStemPixel] = {};
    if (y >= 0 && y < stem.height && x >= 0 && x < stem.width) {
      const auto* const pixel = image + y * stem.strides[2] + x * stem.strides[3];
      VRAMKIT_UNROLL
      for (int c = 0; c < kStemPixel; ++c) {
        if (c < stem.channels) values[c] = pixel[c * stem.strides[1]];
      }
    }
    *reinterpret_cast<Vector<uint32_t, 2>*>(staged + 2 * i) = {
        {values[0] | values[1] << 16, values[2] | values[3] << 16}};
  }
}

/// A lane's share of 16 output pixels in row `row` of the tile, for a step of the kernel's row `y`.
template <class Shape>
VRAMKIT_ON_BOTH LeftFragment stem_left(const uint32_t* input, int row, int y, int step, int lane) {
  // An output pixel is two input pixels of two words further; lane = 4 g + t.
  const uint32_t* const from = input + (2 * row + y) * Shape::kInputWidth * 2 + step * 8 + lane;
  return {{from[0], from[32], from[4], from[36]}};
}

/// A lane's shares of the weights for two products.
template <class Shape>
VRAMKIT_ON_BOTH void stem_right(const uint32_t* weights, int y, int step, int pair, int lane,
                                RightFragment* fragments) {
  const int row = y * Shape::kSteps + step;
  const auto words =
      load_vector<uint32_t, 4>(weights + ((row * (Shape::kColumns / 2) + pair) * 32 + lane) * 4);
  fragments[0] = {{words.at[0], words.at[1]}};
  fragments[1] = {{words.at[2], words.at[3]}};
}

template <class Shape>
struct StemSums {
  SumFragment at[Shape::kRows][Shape::kColumns];
};

/// Writes what a lane has of its warp's rows of a tile.
template <class Type, class Shape>
VRAMKIT_ON_BOTH void store_stem(const StemPass<Type>& pass, const StemOrigin& at, int warp,
                                int lane, const StemSums<Shape>& sums) {
  const Stem& stem = pass.stem;
  VRAMKIT_UNROLL
  for (int group = 0; group < Shape::kGroups; ++group) {
    const int channel = group * kStemChannels + lane % 4 * 8;
    if (channel >= stem.outputs) continue;
    Vector<float, 8> bias{};
    if (pass.bias != nullptr) bias = load_floats<Type, 8>(pass.bias + channel);
    VRAMKIT_UNROLL
    for (int part = 0; part < 2 * Shape::kRows; ++part) {
      const int y = at.y + warp * Shape::kRows + part / 2;
      const int x = at.x + lane / 4 + part % 2 * 8;
      if (y >= stem.out_height || x >= stem.out_width) continue;
      float values[8];
      VRAMKIT_UNROLL
      for (int i = 0; i < 8; ++i) {
        const auto& sum = sums.at[part / 2][group * 4 + i / 2];
        values[i] = sum.values[part % 2 * 2 + i % 2] + bias.at[i];
        if (pass.relu) values[i] = rectified(values[i]);
      }
      const int64_t pixel = (int64_t{at.image} * stem.out_height + y) * stem.out_width + x;
      store_floats<Type, 8>(pass.to + pixel * stem.outputs + channel, values);
    }
  }
}

/// Calls `f` with the shape of a stem; the variant is how many rows of a tile a warp takes.
template <class F>
void for_stem_shape(int64_t kernel, int64_t outputs, int64_t variant, F&& f) {
  STD_TORCH_CHECK(variant == 0 || variant == 1, "vramkit: there is no stem variant ", variant);
  const auto for_groups = [&]<int kSize>() {
    if (outputs > 2 * kStemChannels) return f(StemShape<kSize, 3, 2>{});
    if (outputs > kStemChannels) {
      return variant == 0 ? f(StemShape<kSize, 2, 2>{}) : f(StemShape<kSize, 2, 4>{});
    }
    variant == 0 ? f(StemShape<kSize, 1, 2>{}) : f(StemShape<kSize, 1, 4>{});
  };
  kernel == 3 ? for_groups.template operator()<3>() : for_groups.template operator()<7>();
}

inline Stem stem_of(const Tensor& x, const Tensor& weight, int64_t pad_top, int64_t pad_left) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1) &&
                      (x.size(1) == 3 || x.size(1) == 4),
                  "vramkit: a stem convolves (N, C, H, W) of 3 or 4 channels");
  const int64_t kernel = weight.size(2);
  STD_TORCH_CHECK((kernel == 3 || kernel == 7) && weight.size(3) == kernel,
                  "vramkit: a stem has 3 x 3 or 7 x 7 taps");
  STD_TORCH_CHECK(weight.size(0) % 8 == 0 && weight.size(0) <= 3 * kStemChannels,
                  "vramkit: a stem has 8, 16, ... or 96 output channels, got ", weight.size(0));
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
                  "vramkit: the weight must have the dtype of the input");
  const int64_t height = x.size(2) + 2 * pad_top;
  const int64_t width = x.size(3) + 2 * pad_left;
  STD_TORCH_CHECK(pad_top >= 0 && pad_left >= 0 && height >= kernel && width >= kernel,
                  "vramkit: the kernel is larger than the padded input");
  STD_TORCH_CHECK(std::max({x.size(0), height, width}) <= std::numeric_limits<int>::max() / 4,
                  "vramkit: the input of the stem is too large");
  Stem stem{};
  stem.batch = static_cast<int>(x.size(0));
  stem.channels = static_cast<int>(x.size(1));
  stem.height = static_cast<int>(x.size(2));
  stem.width = static_cast<int>(x.size(3));
  stem.outputs = static_cast<int>(weight.size(0));
  stem.out_height = static_cast<int>((height - kernel) / 2 + 1);
  stem.out_width = static_cast<int>((width - kernel) / 2 + 1);
  stem.pad_top = static_cast<int>(pad_top);
  stem.pad_left = static_cast<int>(pad_left);
  for (int dim = 0; dim < 4; ++dim) {
    stem.strides[dim] = x.stride(dim);
    stem.weight_strides[dim] = weight.stride(dim);
  }
  return stem;
}

template <class Shape>
void divide_stem(Stem& stem) {
  stem.rows = (stem.out_height + Shape::kHeight - 1) / Shape::kHeight;
  stem.columns = (stem.out_width + kStemWidth - 1) / kStemWidth;
  const int64_t tiles = int64_t{stem.batch} * stem.rows * stem.columns;
  STD_TORCH_CHECK(tiles < std::numeric_limits<int>::max() / 2,
                  "vramkit: the input of the stem is too large");
  stem.tiles = static_cast<int>(tiles);
}

/// The operator, but for how a device runs the blocks.
template <class Runner>
Tensor stem_conv_relu(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t pad_top,
                      int64_t pad_left, bool relu, int64_t variant) {
  Stem stem = stem_of(x, weight, pad_top, pad_left);
  Tensor result = torch::stable::empty({stem.batch, stem.outputs, stem.out_height, stem.out_width},
                                       x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                       torch::headeronly::MemoryFormat::ChannelsLast);
  if (bias.has_value()) check_bias(result, *bias);
  if (result.numel() == 0) return result;
  for_half_type_of(x, "a stem", [&]<class Type>(Type) {
    using Bits = typename Type::Bits;
    for_stem_shape(weight.size(2), stem.outputs, variant, [&]<class Shape>(Shape) {
      divide_stem<Shape>(stem);
      const auto* const biases =
          bias.has_value() ? static_cast<const Bits*>(bias->const_data_ptr()) : nullptr;
      const StemPass<Type> pass{static_cast<const Bits*>(x.const_data_ptr()),
                                static_cast<const Bits*>(weight.const_data_ptr()),
                                biases,
                                static_cast<Bits*>(result.mutable_data_ptr()),
                                stem,
                                relu};
      Runner::template run<Shape>(x, pass);
    });
  });
  return result;
}

}  // namespace vramkit::ops
