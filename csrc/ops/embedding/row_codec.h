// The values of a row on the CPU: from stored elements to floats and back. `scale` is what int8
// elements are multiplied by; other types ignore it.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/embedding/rows.h"

namespace vramkit::embedding {

template <class Type>
auto* values_of(char* row) {
  return reinterpret_cast<typename Type::Stored*>(row);
}
template <class Type>
auto* values_of(const char* row) {
  return reinterpret_cast<const typename Type::Stored*>(row);
}

template <class Type>
void decode(const char* row, float scale, uint32_t dim, float* to) {
  const auto* const values = values_of<Type>(row);
  const float factor = Type::kScaled ? scale : 1.0F;
  for (uint32_t i = 0; i < dim; ++i) to[i] = Type::load(values[i]) * factor;
}

template <class Type>
float inverse_of(float scale) {
  if (!Type::kScaled) return 1;
  return scale > 0 ? 1.0F / scale : 0.0F;
}

/// Stores values rounded to the nearest.
template <class Type>
void encode_nearest(char* row, float scale, uint32_t dim, const float* from) {
  auto* const values = values_of<Type>(row);
  const float inverse = inverse_of<Type>(scale);
  for (uint32_t i = 0; i < dim; ++i) values[i] = Type::nearest(from[i] * inverse);
}

/// Stores values rounded up or down at random; `draw` selects the random numbers. Int8 rows get
/// another scale where the present one does not fit.
template <class Type>
void encode_stochastic(char* row, float& scale, uint32_t dim, const float* from, uint64_t draw) {
  if constexpr (sizeof(typename Type::Stored) == sizeof(float)) {
    std::memcpy(row, from, dim * sizeof(float));
  } else {
    if (Type::kScaled) scale = fitting_scale(scale, largest_magnitude(from, dim));
    auto* const values = values_of<Type>(row);
    const float inverse = inverse_of<Type>(scale);
    for (uint32_t first = 0; first < dim; first += kPerDraw) {
      const uint64_t drawn = mix(draw + first);
      const uint32_t count = dim - first < kPerDraw ? dim - first : kPerDraw;
      for (uint32_t i = 0; i < count; ++i) {
        const float value = from[first + i] * inverse;
        values[first + i] = Type::stochastic(value, part_of_draw(drawn, i));
      }
    }
  }
}

}  // namespace vramkit::embedding
