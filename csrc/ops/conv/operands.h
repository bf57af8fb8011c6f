// Tensors of convolutions: what is refused, how they are made, and how their work is divided.
#pragma once

#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/conv/vectors.h"

namespace vramkit::ops {

VRAMKIT_ON_BOTH constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Of the numbers up to `most`, the one that divides `count` into the fewest parts, as equal as can
/// be.
constexpr int even_part(int count, int most) {
  return ceil_div(count, ceil_div(count, std::max(1, most)));
}

inline Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

inline int checked_int(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(),
                  "vramkit: a size of the convolution is out of range: ", value);
  return static_cast<int>(value);
}

inline void check_operand(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4 && is_channels_last(tensor), "vramkit: ", name,
                  " must be (N, C, H, W), channels-last");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "vramkit: ", name,
                  " must have the dtype of the other tensors");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0, "vramkit: ", name,
                  " must be aligned to 16 bytes");
}

template <class Type>
const typename Type::Bits* bits_in(const Tensor& tensor) {
  return static_cast<const typename Type::Bits*>(tensor.const_data_ptr());
}

template <class Type>
typename Type::Bits* mutable_bits_in(const Tensor& tensor) {
  return static_cast<typename Type::Bits*>(tensor.mutable_data_ptr());
}

}  // namespace vramkit::ops
