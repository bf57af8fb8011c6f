// Sums of rows on the CPU: the rows of coming positions are fetched meanwhile, and sums stay in
// registers, with AVX2 where the processor has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/embedding/row_codec.h"
#include "ops/embedding/row_vectors.h"
#include "ops/embedding/store.h"

namespace vramkit::embedding {

/// The rows of successive positions: each is fetched kAhead positions before it is read. Functions
/// that fetch are inlined always: GCC takes a function that does nothing else for one without
/// effect, and drops the calls.
class Fetched {
 public:
  /// Finds the ids if `slots` is null.
  Fetched(const Store& store, const int64_t* ids, const uint32_t* slots, int64_t first,
          int64_t last)
      : store_(store),
        first_(first),
        last_(last),
        lines_((std::min(store.layout().value_bytes(), kFetchedBytes) + 63) / 64) {
    if (slots == nullptr) {
      found_.resize(static_cast<size_t>(last - first));
      store.find(ids + first, last - first, found_.data());
      slots_ = found_.data();
    } else {
      slots_ = slots + first;
    }
    for (int64_t at = first; at < std::min(first + kAhead, last); ++at) fetch(at);
  }

  /// How many of the ids that it found have a row.
  int64_t hits() const {
    return std::count_if(found_.begin(), found_.end(), [](uint32_t of) { return of != kMissing; });
  }
  [[gnu::always_inline]] uint32_t slot(int64_t position) const { return slots_[position - first_]; }

  /// To be called for each position in turn, before the row is read.
  [[gnu::always_inline]] void advance(int64_t position) {
    if (position + kAhead < last_) fetch(position + kAhead);
  }
  /// Of the position that advance() had last, and of the kLatest before it; null if the id has no
  /// row.
  [[gnu::always_inline]] const char* row(int64_t position) const {
    return rows_[static_cast<uint64_t>(position) % kPlaces];
  }
  template <class Type>
  [[gnu::always_inline]] float scale(int64_t position) const {
    return Type::kScaled ? store_.meta(slot(position)).scale : 1.0F;
  }

  static constexpr int64_t kLatest = 32;

 private:
  static constexpr int64_t kAhead = 16;
  static constexpr int64_t kPlaces = 64;
  static_assert(kLatest + kAhead <= kPlaces);
  static constexpr uint32_t kFetchedBytes = 512;

  [[gnu::always_inline]] void fetch(int64_t position) {
    const uint32_t slot = this->slot(position);
    const char* const row = slot == kMissing ? nullptr : store_.row(slot);
    rows_[static_cast<uint64_t>(position) % kPlaces] = row;
    if (row == nullptr) return;
    for (uint32_t line = 0; line < lines_; ++line) __builtin_prefetch(row + 64 * line);
    if (store_.layout().is_scaled()) __builtin_prefetch(&store_.meta(slot));
  }

  const Store& store_;
  const uint32_t* slots_;
  int64_t first_;
  int64_t last_;
  uint32_t lines_;
  const char* rows_[kPlaces];
  std::vector<uint32_t> found_;
};

/// Positions of one bag, one after the other, and what their rows are multiplied by.
struct Run {
  const int64_t* ids;
  const float* weights;  // or null
  int64_t padding;
  bool has_padding;
  int64_t begin;
  int64_t end;

  bool is_padding(int64_t position) const { return has_padding && ids[position] == padding; }
};

/// Some vectors of each row, added up in registers.
template <class Type, int kVectors>
struct Strip {
  static constexpr uint32_t kWidth = kVectors * kVector;
  Floats sums[kVectors];

  [[gnu::always_inline]] void add(const typename Type::Stored* values) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      Floats loaded;
      load_floats<Type>(values + i * kVector, loaded);
      sums[i] += loaded;
    }
  }
  [[gnu::always_inline]] void add(const typename Type::Stored* values, float factor) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      Floats loaded;
      load_floats<Type>(values + i * kVector, loaded);
      sums[i] += factor * loaded;
    }
  }
};

/// One element.
template <class Type>
struct Strip<Type, 0> {
  static constexpr uint32_t kWidth = 1;
  float sums[1];

  [[gnu::always_inline]] void add(const typename Type::Stored* values) {
    sums[0] += Type::load(*values);
  }
  [[gnu::always_inline]] void add(const typename Type::Stored* values, float factor) {
    sums[0] += factor * Type::load(*values);
  }
};

/// Adds a strip of each row. The first strip of a run finds where it ends.
template <class Type, int kVectors, bool kIsFirst, bool kIsPlain>
[[gnu::always_inline]] inline void add_strip(Fetched& fetched, Run& run, uint32_t column,
                                             float* sum) {
  Strip<Type, kVectors> strip;
  std::memcpy(strip.sums, sum + column, sizeof strip.sums);
  for (int64_t at = run.begin; at < run.end; ++at) {
    const char* const row = fetched.row(at);
    if constexpr (kIsFirst) {
      if (row == nullptr || run.is_padding(at)) {
        run.end = at;
        break;
      }
      fetched.advance(at);
    }
    const auto* const values = values_of<Type>(row) + column;
    if constexpr (kIsPlain) {
      strip.add(values);
    } else {
      const float weight = run.weights == nullptr ? 1.0F : run.weights[at];
      strip.add(values, weight * fetched.scale<Type>(at));
    }
  }
  std::memcpy(sum + column, strip.sums, sizeof strip.sums);
}

template <class Type, int kVectors, bool kIsPlain>
[[gnu::always_inline]] inline void add_strips(Fetched& fetched, Run& run, uint32_t& column,
                                              uint32_t dim, float* sum) {
  constexpr uint32_t kWidth = Strip<Type, kVectors>::kWidth;
  if (column == 0 && kWidth <= dim) {
    add_strip<Type, kVectors, true, kIsPlain>(fetched, run, column, sum);
    column += kWidth;
  }
  for (; column + kWidth <= dim; column += kWidth) {
    add_strip<Type, kVectors, false, kIsPlain>(fetched, run, column, sum);
  }
}

/// Adds the rows of a run, each element in their order, and shortens it to those that it added.
template <class Type, int kVectors, bool kIsPlain>
[[gnu::always_inline]] inline void add_all(Fetched& fetched, Run& run, uint32_t dim, float* sum) {
  uint32_t column = 0;
  add_strips<Type, kVectors, kIsPlain>(fetched, run, column, dim, sum);
  add_strips<Type, 2, kIsPlain>(fetched, run, column, dim, sum);
  add_strips<Type, 1, kIsPlain>(fetched, run, column, dim, sum);
  add_strips<Type, 0, kIsPlain>(fetched, run, column, dim, sum);
}

#if defined(__x86_64__)
// Without fused multiplication and addition, which would round once: results have the same bits on
// each machine.
template <class Type, bool kIsPlain>
[[gnu::target("avx2")]] void add_with_avx2(Fetched& fetched, Run& run, uint32_t dim, float* sum) {
  add_all<Type, 8, kIsPlain>(fetched, run, dim, sum);
}
inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}
#endif

template <class Type, bool kIsPlain>
void add_run(Fetched& fetched, Run& run, uint32_t dim, float* sum) {
#if defined(__x86_64__)
  if (has_avx2()) return add_with_avx2<Type, kIsPlain>(fetched, run, dim, sum);
#endif
  add_all<Type, 4, kIsPlain>(fetched, run, dim, sum);
}

template <class Type>
void add_run(Fetched& fetched, Run& run, uint32_t dim, float* sum) {
  if constexpr (!Type::kScaled) {
    if (run.weights == nullptr) return add_run<Type, true>(fetched, run, dim, sum);
  }
  add_run<Type, false>(fetched, run, dim, sum);
}

}  // namespace vramkit::embedding
