// ReLU after a convolution, for CPU and CUDA alike: which elements it keeps, how their mask is
// stored, and how the elements of a channel lie in memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "ops/on_both.h"

namespace vramkit::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// The gradient, and the gradient of the bias, which has no elements where none is wanted.
using Gradients = std::tuple<Tensor, Tensor>;

/// std::bit_cast, which nvcc allows on the host only.
template <class To, class From>
VRAMKIT_ON_BOTH inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

/// An element type as its bits: kInfinity is the encoding of +infinity, Sum the type to add up in.
struct Float32 {
  using Bits = uint32_t;
  using Value = float;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7f800000;
  VRAMKIT_ON_BOTH static float widen(Bits bits) { return bits_as<float>(bits); }
};
struct Float64 {
  using Bits = uint64_t;
  using Value = double;
  using Sum = double;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
  VRAMKIT_ON_BOTH static double widen(Bits bits) { return bits_as<double>(bits); }
};
struct Float16 {
  using Bits = uint16_t;
  using Value = torch::headeronly::Half;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7c00;
  /// Without branches, so that compilers vectorise it: scaling by 2^112 adjusts the bias of the
  /// exponent, of denormal numbers too.
  VRAMKIT_ON_BOTH static float widen(Bits bits) {
    const uint32_t magnitude = bits & 0x7fffU;
    const uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112F);
    const uint32_t special = magnitude >= kInfinity ? Float32::kInfinity : 0U;
    return bits_as<float>(scaled | special | (bits & 0x8000U) << 16);
  }
};
struct BFloat16 {
  using Bits = uint16_t;
  using Value = torch::headeronly::BFloat16;
  using Sum = float;
  static constexpr Bits kInfinity = 0x7f80;
  VRAMKIT_ON_BOTH static float widen(Bits bits) {
    return bits_as<float>(static_cast<uint32_t>(bits) << 16);
  }
};

/// Returns all ones where ReLU keeps an element, that is, where it is positive or NaN as in torch,
/// and zero elsewhere. Signed comparisons are those that every vector unit has.
template <class Type>
VRAMKIT_ON_BOTH constexpr typename Type::Bits kept(typename Type::Bits bits) {
  using Bits = typename Type::Bits;
  using Signed = std::make_signed_t<Bits>;
  constexpr auto kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  constexpr auto kMinusInfinity = static_cast<Signed>(kSign | Type::kInfinity);
  const auto value = static_cast<Signed>(bits);
  const int negative_nan = static_cast<int>(value < 0) & static_cast<int>(value > kMinusInfinity);
  return static_cast<Bits>(-(static_cast<int>(value > 0) | negative_nan));
}

/// How the elements lie in memory: batch x channels x inner, or batch x inner x channels where
/// `channels_last` is set.
struct Layout {
  int64_t batch;
  int64_t channels;
  int64_t inner;
  bool channels_last;

  int64_t size() const { return batch * channels * inner; }
};

/// Bytes of a mask with one bit for each element, in the order of memory; the first element has
/// the lowest bit of the first byte.
inline int64_t mask_bytes(int64_t elements) { return (elements + 7) / 8; }

inline bool is_channels_last(const Tensor& tensor) {
  int64_t expected = tensor.size(1);
  if (tensor.size(1) != 1 && tensor.stride(1) != 1) return false;
  for (int64_t dim = tensor.dim() - 1; dim >= 2; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return tensor.size(0) == 1 || tensor.stride(0) == expected;
}

/// The layout of (N, C, ...): throws where the tensor is neither contiguous nor channels-last.
inline Layout layout_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() >= 2, "vramkit: expected (N, C, ...), got ", tensor.dim(),
                  " dimension(s)");
  const bool contiguous = tensor.is_contiguous();
  STD_TORCH_CHECK(contiguous || is_channels_last(tensor),
                  "vramkit: the tensor must be contiguous or channels-last; call contiguous() on "
                  "it first");
  int64_t inner = 1;
  for (int64_t dim = 2; dim < tensor.dim(); ++dim) inner *= tensor.size(dim);
  return {tensor.size(0), tensor.size(1), inner, !contiguous};
}

inline void check_bias(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == x.size(1) && bias.is_contiguous(),
                  "vramkit: expected one bias for each of ", x.size(1), " channels");
  STD_TORCH_CHECK(bias.scalar_type() == x.scalar_type(),
                  "vramkit: the bias must have the dtype of the tensor that it is added to");
}

inline void check_mask(const Tensor& grad, const Tensor& mask) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.is_contiguous() &&
                      mask.numel() == mask_bytes(grad.numel()),
                  "vramkit: a gradient of ", grad.numel(), " elements needs a mask of ",
                  mask_bytes(grad.numel()), " bytes, got one of ", mask.numel());
}

inline void check_output(const Tensor& grad, const Tensor& output) {
  const bool same_layout = layout_of(grad).channels_last == layout_of(output).channels_last;
  bool same_shape = grad.dim() == output.dim();
  for (int64_t dim = 0; same_shape && dim < grad.dim(); ++dim) {
    same_shape = grad.size(dim) == output.size(dim);
  }
  STD_TORCH_CHECK(same_shape && same_layout && grad.scalar_type() == output.scalar_type(),
                  "vramkit: the gradient must have the shape, memory format and dtype of the "
                  "output");
}

inline Tensor new_mask(const Tensor& x) {
  return torch::stable::new_empty(x, {mask_bytes(x.numel())}, ScalarType::Byte);
}

/// Calls `f` with the Float32, Float64, Float16 or BFloat16 that a tensor's elements are.
template <class F>
void for_type_of(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(Float32{});
    case ScalarType::Double:
      return f(Float64{});
    case ScalarType::Half:
      return f(Float16{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "vramkit: expected float32, float64, float16 or bfloat16");
  }
}

}  // namespace vramkit::ops
