// Rows in device memory: pages, where a row's values and state begin, vectors of elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ops/embedding/table_config.h"
#include "ops/on_both.h"

namespace vramkit::embedding::device {

/// What the table keeps of a row besides values and state: apart, so that these are aligned.
struct Meta {
  int64_t key;
  Stamps stamps;
  float sum;  // of squares, for row-wise Adagrad
};
static_assert(sizeof(Meta) == 24);

/// Rows are in the memory of the device or of the host, their Metas always on the device. After the
/// Metas follow the scales of scaled rows, and the turns of tables with tiers.
struct Page {
  char* rows;
  Meta* metas;
};

/// Owns nothing.
struct RowsView {
  RowLayout layout;
  uint32_t shift;
  uint32_t mask;
  const Page* pages;
  uint32_t host_from;  // slots from this one on have their rows in host memory; kMissing: none
  bool has_turns;

  VRAMKIT_ON_BOTH char* row(uint32_t slot) const {
    return pages[slot >> shift].rows + uint64_t{slot & mask} * layout.stride_bytes();
  }
  VRAMKIT_ON_BOTH float* state(uint32_t slot) const {
    return reinterpret_cast<float*>(row(slot) + layout.state_at());
  }
  VRAMKIT_ON_BOTH Meta& meta(uint32_t slot) const {
    return pages[slot >> shift].metas[slot & mask];
  }
  /// What the values of a scaled row are multiplied by.
  VRAMKIT_ON_BOTH float& scale(uint32_t slot) const {
    return reinterpret_cast<float*>(pages[slot >> shift].metas + mask + 1)[slot & mask];
  }
  /// The last move of rows that the row had to be on the device for; only if `has_turns`.
  VRAMKIT_ON_BOTH uint32_t& turn(uint32_t slot) const {
    char* const scales = reinterpret_cast<char*>(pages[slot >> shift].metas + mask + 1);
    const uint64_t bytes_of_scales = layout.is_scaled() ? (mask + 1) * sizeof(float) : 0;
    return reinterpret_cast<uint32_t*>(scales + bytes_of_scales)[slot & mask];
  }
  /// Of a row, on the device wherever the row is.
  static uint32_t meta_bytes(const RowLayout& layout, bool has_turns) {
    const size_t turn = has_turns ? sizeof(uint32_t) : 0;
    const size_t scale = layout.is_scaled() ? sizeof(float) : 0;
    return static_cast<uint32_t>(sizeof(Meta) + scale + turn);
  }
};

template <int kWidth>
struct Vec {
  float at[kWidth];
};

/// Rows and their state begin at multiples of it.
inline constexpr size_t kVectorBytes = 16;

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < kVectorBytes ? sizeof(T) * kWidth : kVectorBytes) Pack {
  T at[kWidth];
};

/// Consecutive elements as floats, int8 values not multiplied by their scale.
template <class Type, int kWidth>
VRAMKIT_ON_BOTH Vec<kWidth> load(const void* from, uint64_t first) {
  using P = Pack<typename Type::Stored, kWidth>;
  const auto* const stored = static_cast<const typename Type::Stored*>(from) + first;
  const P pack = *reinterpret_cast<const P*>(stored);
  Vec<kWidth> result;
  for (int i = 0; i < kWidth; ++i) result.at[i] = Type::load(pack.at[i]);
  return result;
}

template <class Type, int kWidth>
VRAMKIT_ON_BOTH void store(void* to, uint64_t first, const Pack<typename Type::Stored, kWidth>& p) {
  auto* const stored = static_cast<typename Type::Stored*>(to) + first;
  *reinterpret_cast<Pack<typename Type::Stored, kWidth>*>(stored) = p;
}

template <class Type, int kWidth>
VRAMKIT_ON_BOTH void store_nearest(void* to, uint64_t first, const Vec<kWidth>& values) {
  Pack<typename Type::Stored, kWidth> pack;
  for (int i = 0; i < kWidth; ++i) pack.at[i] = Type::nearest(values.at[i]);
  store<Type, kWidth>(to, first, pack);
}

/// Stores what is not read again soon: rows should stay in the device's cache instead.
template <class T, int kWidth>
VRAMKIT_ON_BOTH void store_streaming(T* to, const Pack<T, kWidth>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof pack == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof bits);
    __stcs(reinterpret_cast<uint4*>(to), bits);
    return;
  } else if constexpr (sizeof pack == sizeof(uint2)) {
    uint2 bits;
    memcpy(&bits, &pack, sizeof bits);
    __stcs(reinterpret_cast<uint2*>(to), bits);
    return;
  }
#endif
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

/// As `load`, of a type that is known when the kernel runs: float32, bfloat16 or float16.
template <int kWidth>
VRAMKIT_ON_BOTH Vec<kWidth> load_as(RowType type, const void* from, uint64_t first) {
  if (type == RowType::kFloat32) return load<Float32, kWidth>(from, first);
  if (type == RowType::kBFloat16) return load<BFloat16, kWidth>(from, first);
  return load<Float16, kWidth>(from, first);
}

template <int kWidth>
VRAMKIT_ON_BOTH void store_as(RowType type, void* to, uint64_t first, const Vec<kWidth>& values) {
  if (type == RowType::kFloat32) return store_nearest<Float32, kWidth>(to, first, values);
  if (type == RowType::kBFloat16) return store_nearest<BFloat16, kWidth>(to, first, values);
  store_nearest<Float16, kWidth>(to, first, values);
}

/// The columns of a lane: f(first column), for vectors of kWidth.
template <int kWidth, class Lanes, class F>
VRAMKIT_ON_BOTH void for_columns(const Lanes& lanes, uint32_t dim, const F& f) {
  for (uint32_t at = lanes.rank() * kWidth; at < dim; at += lanes.count() * kWidth) f(at);
}

/// Elements of the vectors of a row: the most of 1 and 4, or of 1, 4 and 8, that divide it. Eight
/// pay where narrow rows are copied, not where they are updated.
inline uint32_t width_of(const RowLayout& layout, uint32_t most) {
  if (most >= 8 && layout.type != RowType::kFloat32 && layout.dim % 8 == 0) return 8;
  return layout.dim % 4 == 0 ? 4 : 1;
}

/// Calls f<Type, kWidth>() with the row type, and the width of vectors that fit a row.
template <uint32_t kMost = 4, class F>
void with_kernel(const RowLayout& layout, const F& f) {
  const uint32_t width = width_of(layout, kMost);
  with_row_type(layout.type, [&]<class Type>(Type) {
    if constexpr (kMost == 8 && !std::is_same_v<Type, Float32>) {
      if (width == 8) return f.template operator()<Type, 8>();
    }
    if (width == 4) {
      f.template operator()<Type, 4>();
    } else {
      f.template operator()<Type, 1>();
    }
  });
}

/// The values that rows have as long as nothing has changed them.
struct Initial {
  uint64_t seed;
  float deviation;
  float state;
  bool has_padding;
  int64_t padding;

  VRAMKIT_ON_BOTH bool is_padding(int64_t id) const { return has_padding && id == padding; }
  VRAMKIT_ON_BOTH uint64_t base(int64_t key) const { return mix(seed, static_cast<uint64_t>(key)); }
  VRAMKIT_ON_BOTH float value(int64_t key, uint64_t base, uint32_t column) const {
    if (deviation == 0 || is_padding(key)) return 0;
    return normal(mix(base + column)) * deviation;
  }
  /// The scale of such a row; each lane gets it.
  template <class Type, class Lanes>
  VRAMKIT_ON_BOTH float scale(const Lanes& lanes, int64_t key, uint32_t dim) const {
    if (!Type::kScaled) return 1;
    double largest = 0;
    for_columns<1>(lanes, dim, [&](uint32_t at) {
      const double magnitude = fabs(static_cast<double>(value(key, base(key), at)));
      largest = magnitude > largest ? magnitude : largest;
    });
    return fitting_scale(0, static_cast<float>(lanes.largest(largest)));
  }
  template <class Type, int kWidth>
  VRAMKIT_ON_BOTH Pack<typename Type::Stored, kWidth> pack(int64_t key, float scale,
                                                           uint32_t first) const {
    const uint64_t from = base(key);
    const float inverse = scale > 0 ? 1.0F / scale : 0.0F;
    Pack<typename Type::Stored, kWidth> result;
    for (int i = 0; i < kWidth; ++i) {
      result.at[i] = Type::nearest(value(key, from, first + static_cast<uint32_t>(i)) * inverse);
    }
    return result;
  }
};

}  // namespace vramkit::embedding::device
