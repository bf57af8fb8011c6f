// The grouped operators, but for how a device runs the blocks: that is what a Runner does.
#pragma once

#include <limits>
#include <optional>

#include "ops/conv/grouped_weight.h"

namespace vramkit::ops {

inline constexpr float kUnbounded = -std::numeric_limits<float>::infinity();

template <class Runner>
Tensor grouped_conv_relu(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t stride,
                         int64_t pad_top, int64_t pad_left, bool relu, int64_t variant) {
  check_operand(x, weight, "the input");
  check_grouped_weight(weight, x.size(1));
  const Grouped conv = grouped_of(x.size(0), x.size(1), x.size(2), x.size(3), weight.size(1),
                                  stride, pad_top, pad_left);
  Tensor result =
      empty_channels_last(x, conv.batch, conv.channels, conv.out_height, conv.out_width);
  if (bias.has_value()) check_bias(result, *bias);
  if (result.numel() == 0) return result;
  for_half_type_of(x, "a grouped convolution", [&]<class Type>(Type) {
    const GroupedPass<Type> pass{
        bits_in<Type>(x),        mutable_bits_in<Type>(result),
        bits_in<Type>(weight),   bias.has_value() ? bits_in<Type>(*bias) : nullptr,
        conv.forward(),          grouped_weights(conv.group, !weight.is_contiguous()),
        relu ? 0.0F : kUnbounded};
    for_grouped_shape(conv.group, variant, [&]<class Shape>(Shape) {
      const Runner runner(x);
      stride == 1 ? runner.template convolve<Shape, GroupedForward<1>>(pass)
                  : runner.template convolve<Shape, GroupedForward<2>>(pass);
    });
  });
  return result;
}

template <class Runner>
Tensor grouped_grad_input(Tensor grad, Tensor weight, int64_t height, int64_t width, int64_t stride,
                          int64_t pad_top, int64_t pad_left, int64_t variant) {
  check_operand(grad, weight, "the gradient");
  check_grouped_weight(weight, grad.size(1));
  const Grouped conv = grouped_of(grad.size(0), grad.size(1), height, width, weight.size(1), stride,
                                  pad_top, pad_left);
  STD_TORCH_CHECK(grad.size(2) == conv.out_height && grad.size(3) == conv.out_width,
                  "vramkit: the gradient must have the shape of the output");
  Tensor result = empty_channels_last(grad, conv.batch, conv.channels, height, width);
  if (result.numel() == 0) return result;
  GroupedWeights weights = grouped_weights(conv.group, !weight.is_contiguous());
  weights.transposed = true;
  weights.first_tap = kGroupedTaps - 1;
  weights.tap_step = stride == 1 ? -1 : -2;
  for_half_type_of(grad, "a grouped convolution", [&]<class Type>(Type) {
    const GroupedPass<Type> pass{bits_in<Type>(grad),
                                 mutable_bits_in<Type>(result),
                                 bits_in<Type>(weight),
                                 nullptr,
                                 conv.backward(),
                                 weights,
                                 kUnbounded};
    for_grouped_shape(conv.group, variant, [&]<class Shape>(Shape) {
      const Runner runner(grad);
      stride == 1 ? runner.template convolve<Shape, GroupedForward<1>>(pass)
                  : runner.template convolve<Shape, GroupedTransposed>(pass);
    });
  });
  return result;
}

template <class Runner>
Tensor grouped_grad_weight(Tensor grad, Tensor x, int64_t group, int64_t stride, int64_t pad_top,
                           int64_t pad_left, bool channels_last, int64_t variant) {
  check_operand(grad, x, "the gradient");
  check_operand(x, grad, "the input");
  const Grouped conv =
      grouped_of(x.size(0), x.size(1), x.size(2), x.size(3), group, stride, pad_top, pad_left);
  STD_TORCH_CHECK(grad.size(0) == conv.batch && grad.size(1) == conv.channels &&
                      grad.size(2) == conv.out_height && grad.size(3) == conv.out_width,
                  "vramkit: the gradient must have the shape of the output");
  using torch::headeronly::MemoryFormat;
  Tensor result = torch::stable::empty(
      {conv.channels, group, kGroupedTaps, kGroupedTaps}, x.scalar_type(), std::nullopt, x.device(),
      std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  if (grad.numel() == 0) return torch::stable::zero_(result);
  for_half_type_of(x, "a grouped convolution", [&]<class Type>(Type) {
    const GroupedWeightPass<Type> pass{bits_in<Type>(x), bits_in<Type>(grad), nullptr,
                                       conv.forward(), grouped_weights(conv.group, channels_last)};
    for_grouped_shape(conv.group, variant, [&]<class Shape>(Shape) {
      const Runner runner(x);
      stride == 1 ? runner.template add_weights<Shape, GroupedForward<1>>(pass, result)
                  : runner.template add_weights<Shape, GroupedForward<2>>(pass, result);
    });
  });
  return result;
}

}  // namespace vramkit::ops
