// Vectors of neighbouring channels: how they are read, widened to float, rounded and written.
#pragma once

#include "ops/conv/rectify.h"

namespace vramkit::ops {

template <class Type>
VRAMKIT_ON_BOTH inline float to_float(typename Type::Bits bits) {
#if defined(__CUDA_ARCH__)
  // One instruction, for float16 too.
  return static_cast<float>(bits_as<typename Type::Value>(bits));
#else
  return Type::widen(bits);
#endif
}

template <class Type>
VRAMKIT_ON_BOTH inline typename Type::Bits from_float(float value) {
  return bits_as<typename Type::Bits>(static_cast<typename Type::Value>(value));
}

/// ReLU as torch's: NaN stays.
VRAMKIT_ON_BOTH inline float rectified(float value) { return value <= 0.0F ? 0.0F : value; }

/// sum += a * b, with one rounding on a GPU, whose instruction for it must be asked for.
VRAMKIT_ON_BOTH inline void add_product(float& sum, float a, float b) {
#if defined(__CUDA_ARCH__)
  sum = __fmaf_rn(a, b, sum);
#else
  sum += a * b;
#endif
}

template <class Element, int kCount>
struct alignas(kCount * sizeof(Element)) Vector {
  Element at[kCount];
};

template <class Element, int kCount>
VRAMKIT_ON_BOTH inline Vector<Element, kCount> load_vector(const Element* from) {
  return *reinterpret_cast<const Vector<Element, kCount>*>(from);
}

template <class Type, int kCount>
VRAMKIT_ON_BOTH inline Vector<float, kCount> load_floats(const typename Type::Bits* from) {
  const auto vector = load_vector<typename Type::Bits, kCount>(from);
  Vector<float, kCount> result;
  VRAMKIT_UNROLL
  for (int i = 0; i < kCount; ++i) result.at[i] = to_float<Type>(vector.at[i]);
  return result;
}

template <class Type, int kCount>
VRAMKIT_ON_BOTH inline void store_floats(typename Type::Bits* to, const float* values) {
  Vector<typename Type::Bits, kCount> vector;
  VRAMKIT_UNROLL
  for (int i = 0; i < kCount; ++i) vector.at[i] = from_float<Type>(values[i]);
  *reinterpret_cast<Vector<typename Type::Bits, kCount>*>(to) = vector;
}

/// The larger of a value and `least`; NaN stays.
VRAMKIT_ON_BOTH inline float at_least(float least, float value) {
#if defined(__CUDA_ARCH__)
  // One instruction, where a comparison and a selection are two.
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(least));
  return result;
#else
  return value <= least ? least : value;
#endif
}

/// Two neighbours of 16 bits, rounded.
template <class Type>
VRAMKIT_ON_BOTH inline uint32_t packed(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  if constexpr (std::is_same_v<Type, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  return from_float<Type>(low) | static_cast<uint32_t>(from_float<Type>(high)) << 16;
#endif
}

/// Calls `f` with the Float32, Float16 or BFloat16 that a tensor's elements are.
template <class F>
void for_float_type_of(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(Float32{});
    case ScalarType::Half:
      return f(Float16{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "vramkit: expected float32, float16 or bfloat16");
  }
}

/// Calls `f` with Float16 or BFloat16.
template <class F>
void for_half_type_of(const Tensor& tensor, const char* what, F&& f) {
  if (tensor.scalar_type() == ScalarType::Half) return f(Float16{});
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::BFloat16, "vramkit: ", what,
                  " needs float16 or bfloat16");
  f(BFloat16{});
}

}  // namespace vramkit::ops
