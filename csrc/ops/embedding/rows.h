// What a row looks like in memory: the values in the row type, then the optimizer's state. Shared
// by CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/embedding/random.h"
#include "ops/on_both.h"

namespace vramkit::embedding {

enum class RowType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };
enum class Rule : int32_t { kSgd = 0, kAdagrad = 1, kRowwiseAdagrad = 2, kAdam = 3 };

struct RowLayout {
  RowType type;
  Rule rule;
  uint32_t dim;

  VRAMKIT_ON_BOTH constexpr uint32_t element_bytes() const {
    return type == RowType::kFloat32 ? 4 : type == RowType::kInt8 ? 1 : 2;
  }
  VRAMKIT_ON_BOTH constexpr bool is_scaled() const { return type == RowType::kInt8; }
  VRAMKIT_ON_BOTH constexpr uint32_t value_bytes() const { return dim * element_bytes(); }
  /// Floats of state for each row, besides the sum of row-wise Adagrad.
  VRAMKIT_ON_BOTH constexpr uint32_t state_count() const {
    return rule == Rule::kAdagrad ? dim : rule == Rule::kAdam ? 2 * dim : 0;
  }
  VRAMKIT_ON_BOTH constexpr uint32_t state_at() const { return aligned(value_bytes()); }
  VRAMKIT_ON_BOTH constexpr uint32_t stride_bytes() const {
    return state_at() + aligned(4 * state_count());
  }

 private:
  // Values and state begin at multiples of 16 bytes, for vector accesses.
  VRAMKIT_ON_BOTH static constexpr uint32_t aligned(uint32_t bytes) { return (bytes + 15) & ~15U; }
};

/// std::bit_cast, which nvcc allows on the host only.
VRAMKIT_ON_BOTH inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
VRAMKIT_ON_BOTH inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// A number in [0, 1).
VRAMKIT_ON_BOTH inline float fraction_of(uint32_t random) {
  return static_cast<float>(random >> 8) * 0x1p-24F;
}

inline constexpr uint32_t kSign = 0x80000000U;
inline constexpr uint32_t kInfinity = 0x7f800000U;

// Each row type loads a stored element, and stores a float rounded to the nearest, or up or down by
// `random` so that the mean of many roundings is the value. Finite values stay finite.
struct Float32 {
  using Stored = float;
  static constexpr bool kScaled = false;
  VRAMKIT_ON_BOTH static float load(Stored stored) { return stored; }
  VRAMKIT_ON_BOTH static Stored nearest(float value) { return value; }
  VRAMKIT_ON_BOTH static Stored stochastic(float value, uint32_t) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr bool kScaled = false;
  VRAMKIT_ON_BOTH static float load(Stored stored) {
    return float_of(static_cast<uint32_t>(stored) << 16);
  }
  VRAMKIT_ON_BOTH static Stored nearest(float value) {
    const uint32_t bits = bits_of(value);
    return rounded(bits, 0x7fffU + (bits >> 16 & 1));
  }
  VRAMKIT_ON_BOTH static Stored stochastic(float value, uint32_t random) {
    const Stored result = rounded(bits_of(value), random >> 16);
    const bool overflown = (result & 0x7fffU) == 0x7f80U && (bits_of(value) & ~kSign) < kInfinity;
    return overflown ? static_cast<Stored>(result - 1) : result;
  }

 private:
  VRAMKIT_ON_BOTH static Stored rounded(uint32_t bits, uint32_t addend) {
    if ((bits & ~kSign) > kInfinity) return static_cast<Stored>(bits >> 16 | 0x40U);
    if ((bits & ~kSign) == kInfinity) return static_cast<Stored>(bits >> 16);
    return static_cast<Stored>((bits + addend) >> 16);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static constexpr bool kScaled = false;
  VRAMKIT_ON_BOTH static float load(Stored stored) {
    const uint32_t magnitude = stored & 0x7fffU;
    // Scaling by 2^112 adjusts the bias of the exponent, of denormal numbers too.
    const uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112F);
    const uint32_t special = magnitude >= 0x7c00U ? kInfinity : 0U;
    return float_of(scaled | special | (stored & 0x8000U) << 16);
  }
  VRAMKIT_ON_BOTH static Stored nearest(float value) {
    const uint32_t magnitude = bits_of(value) & ~kSign;
    if (magnitude >= kLimit) return with_sign(value, magnitude > kInfinity ? 0x7e00U : 0x7c00U);
    // The sum's rounding drops the bits that a denormal number has no room for.
    if (magnitude < kSmallestNormal) {
      return with_sign(value, bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F));
    }
    return with_sign(value, (magnitude + 0xfffU + (magnitude >> 13 & 1) - kBias) >> 13);
  }
  VRAMKIT_ON_BOTH static Stored stochastic(float value, uint32_t random) {
    const uint32_t magnitude = bits_of(value) & ~kSign;
    if (magnitude >= kInfinity) return nearest(value);
    if (magnitude >= kLimit) return with_sign(value, kLargest);
    uint32_t result;
    if (magnitude < kSmallestNormal) {
      const float steps = float_of(magnitude) * 0x1p24F;
      result = static_cast<uint32_t>(steps);
      result += steps - static_cast<float>(result) > fraction_of(random) ? 1U : 0U;
    } else {
      result = (magnitude + (random >> 19) - kBias) >> 13;
    }
    return with_sign(value, result > kLargest ? kLargest : result);
  }

 private:
  static constexpr uint32_t kLimit = 0x47800000U;           // 2^16
  static constexpr uint32_t kSmallestNormal = 0x38800000U;  // 2^-14
  static constexpr uint32_t kBias = 112U << 23;
  static constexpr uint32_t kLargest = 0x7bffU;
  VRAMKIT_ON_BOTH static Stored with_sign(float value, uint32_t magnitude) {
    return static_cast<Stored>(magnitude | (bits_of(value) & kSign) >> 16);
  }
};

/// Works on values divided by the row's scale.
struct Int8 {
  using Stored = int8_t;
  static constexpr bool kScaled = true;
  VRAMKIT_ON_BOTH static float load(Stored stored) { return static_cast<float>(stored); }
  VRAMKIT_ON_BOTH static Stored nearest(float value) { return clamped(rintf(value)); }
  VRAMKIT_ON_BOTH static Stored stochastic(float value, uint32_t random) {
    const float whole = floorf(value);
    return clamped(value - whole > fraction_of(random) ? whole + 1 : whole);
  }

 private:
  /// A row with a NaN or an infinity has an infinite scale: zeros of it are NaN.
  VRAMKIT_ON_BOTH static Stored clamped(float value) {
    if (value != value) return 0;
    return static_cast<Stored>(value > 127.0F ? 127.0F : value < -127.0F ? -127.0F : value);
  }
};

/// Calls `f` with the type that `type` names.
template <class F>
decltype(auto) with_row_type(RowType type, F&& f) {
  switch (type) {
    case RowType::kFloat32:
      return f(Float32{});
    case RowType::kBFloat16:
      return f(BFloat16{});
    case RowType::kFloat16:
      return f(Float16{});
    default:
      return f(Int8{});
  }
}

/// The scale for int8 values whose largest magnitude is `largest`: the old one for as long as it
/// fits, so that elements that do not change need no new rounding.
VRAMKIT_ON_BOTH inline float fitting_scale(float old, float largest) {
  const float limit = 127.0F * old;
  if (largest <= limit && largest >= 0.5F * limit) return old;
  return largest * (1.0625F / 127.0F);
}

/// Infinite for NaN, which no maximum of magnitudes may lose.
VRAMKIT_ON_BOTH inline float magnitude_of(float value) {
  return value != value ? float_of(kInfinity) : fabsf(value);
}

VRAMKIT_ON_BOTH inline float largest_magnitude(const float* values, uint32_t dim) {
  float largest = 0;
  for (uint32_t i = 0; i < dim; ++i) {
    const float magnitude = magnitude_of(values[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

}  // namespace vramkit::embedding
