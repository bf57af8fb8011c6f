// The depthwise operators, but for how a device runs the blocks: that is what a Runner does.
#pragma once

#include <optional>

#include "ops/conv/depthwise_weight.h"

namespace vramkit::ops {

template <class Runner>
Tensor depthwise_conv_relu(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t stride,
                           int64_t pad_top, int64_t pad_left, bool relu, int64_t variant) {
  check_operand(x, weight, "the input");
  check_depthwise_weight(weight, x.size(1));
  const Depthwise conv = depthwise_of(x.size(0), x.size(1), x.size(2), x.size(3), weight.size(2),
                                      stride, pad_top, pad_left);
  Tensor result =
      empty_channels_last(x, conv.batch, conv.channels, conv.out_height, conv.out_width);
  if (bias.has_value()) check_bias(result, *bias);
  if (result.numel() == 0) return result;
  for_float_type_of(x, [&]<class Type>(Type) {
    const auto* const biases = bias.has_value() ? bits_in<Type>(*bias) : nullptr;
    const TilePass<Type> pass{bits_in<Type>(x),
                              mutable_bits_in<Type>(result),
                              bits_in<Type>(weight),
                              biases,
                              conv.forward(),
                              false,
                              relu};
    for_forward(conv, [&]<class Map>(Map) {
      for_tile<Map>(variant,
                    [&]<class Tile>(Tile) { Runner(x).template convolve<Map, Tile>(pass); });
    });
  });
  return result;
}

template <class Runner>
Tensor depthwise_grad_input(Tensor grad, Tensor weight, int64_t height, int64_t width,
                            int64_t stride, int64_t pad_top, int64_t pad_left, int64_t variant) {
  check_operand(grad, weight, "the gradient");
  check_depthwise_weight(weight, grad.size(1));
  const Depthwise conv = depthwise_of(grad.size(0), grad.size(1), height, width, weight.size(2),
                                      stride, pad_top, pad_left);
  STD_TORCH_CHECK(grad.size(2) == conv.out_height && grad.size(3) == conv.out_width,
                  "vramkit: the gradient must have the shape of the output");
  Tensor result = empty_channels_last(grad, conv.batch, conv.channels, height, width);
  if (result.numel() == 0) return result;
  for_float_type_of(grad, [&]<class Type>(Type) {
    const TilePass<Type> pass{bits_in<Type>(grad),
                              mutable_bits_in<Type>(result),
                              bits_in<Type>(weight),
                              nullptr,
                              conv.backward(),
                              stride == 1,
                              false};
    for_backward(conv, [&]<class Map>(Map) {
      for_tile<Map>(variant,
                    [&]<class Tile>(Tile) { Runner(grad).template convolve<Map, Tile>(pass); });
    });
  });
  return result;
}

template <class Runner>
Tensor depthwise_grad_weight(Tensor grad, Tensor x, int64_t kernel, int64_t stride, int64_t pad_top,
                             int64_t pad_left, int64_t variant) {
  check_operand(grad, x, "the gradient");
  check_operand(x, grad, "the input");
  const Depthwise conv =
      depthwise_of(x.size(0), x.size(1), x.size(2), x.size(3), kernel, stride, pad_top, pad_left);
  STD_TORCH_CHECK(grad.size(0) == conv.batch && grad.size(1) == conv.channels &&
                      grad.size(2) == conv.out_height && grad.size(3) == conv.out_width,
                  "vramkit: the gradient must have the shape of the output");
  if (grad.numel() == 0) return torch::stable::new_zeros(x, {x.size(1), 1, kernel, kernel});
  Tensor result = torch::stable::new_empty(x, {x.size(1), 1, kernel, kernel});
  for_float_type_of(x, [&]<class Type>(Type) {
    const WeightPass<Type> pass{bits_in<Type>(x), bits_in<Type>(grad), nullptr, conv.forward()};
    for_forward(conv, [&]<class Map>(Map) {
      for_tile<Map>(variant, [&]<class Tile>(Tile) {
        Runner(x).template add_weights<Map, Tile>(pass, result);
      });
    });
  });
  return result;
}

}  // namespace vramkit::ops
