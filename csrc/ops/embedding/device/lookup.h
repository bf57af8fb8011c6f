// Kernels that read a table: rows for ids, bags of rows, gradients of the weights of bags. A lane
// works on every count()-th vector of columns.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/embedding/bags.h"
#include "ops/embedding/device/index.h"
#include "ops/embedding/device/rows.h"

namespace vramkit::embedding::device {

/// Written by kernels and read by the host at the next call, without waiting for the device.
struct Alarm {
  enum Kind : uint32_t { kNone = 0, kId = 1, kOffsets = 2 };
  int64_t value;
  uint32_t kind;

  VRAMKIT_ON_BOTH void raise(Kind of, int64_t with) {
    value = with;
#if defined(__CUDA_ARCH__)
    __threadfence_system();
#endif
    kind = of;
  }
};

/// Rows without a slot that were looked up are counted here, each of the counters by some threads.
inline constexpr uint32_t kMissCounters = 64;

// Rows whose memory accesses of one group of lanes are under way at the same time.
inline constexpr uint32_t kInFlight = 4;

// Instead of slots: an id outside the table, and one that counts as none.
inline constexpr uint32_t kOutside = kErased - 1;
inline constexpr uint32_t kSkipped = kErased - 2;

struct Lookup {
  RowsView rows;
  IndexView index;
  Initial initial;
  int64_t num_rows;
  Bags bags;
  const uint32_t* slots;  // of each position, or null: ids are found in the index
  const float* limited;   // what the row of each position is multiplied by, or null
  RowType type;           // of the output
  void* output;
  int64_t* argmax;
  Alarm* alarm;      // null: something else checks the ids and offsets
  uint32_t* misses;  // or null
  bool counts_host;  // a row in host memory is a miss

  VRAMKIT_ON_BOTH bool is_outside(int64_t id) const {
    return num_rows >= 0 && (id < 0 || id >= num_rows);
  }
  VRAMKIT_ON_BOTH uint32_t slot_at(int64_t position) const {
    const int64_t id = bags.ids[position];
    if (is_outside(id)) return kOutside;
    if (bags.mode != Mode::kNone && initial.is_padding(id)) return kSkipped;
    return slots != nullptr ? slots[position] : index.find(id, rows);
  }
  /// The slots of kInFlight positions, kSkipped for those from `end` on.
  template <class Lanes>
  VRAMKIT_ON_BOTH void find(const Lanes& lanes, int64_t first, int64_t end,
                            uint32_t (&found)[kInFlight]) const {
    spread<kInFlight>(lanes, found,
                      [&](uint32_t i) { return first + i < end ? slot_at(first + i) : kSkipped; });
  }
  /// The positions of a bag; offsets that are none raise the alarm.
  VRAMKIT_ON_BOTH bool bounds_of(int64_t bag, int64_t& begin, int64_t& end) const {
    begin = bags.begin_of(bag);
    end = bags.end_of(bag);
    const bool fits = begin <= end && begin >= 0 && end <= bags.positions &&
                      (bag != 0 || begin == 0) && (bag + 1 != bags.bags || end == bags.positions);
    if (!fits && alarm != nullptr) alarm->raise(Alarm::kOffsets, bag);
    return fits;
  }
};

struct CheckOffsets {
  Lookup of;

  VRAMKIT_ON_BOTH void operator()(int64_t bag) const {
    int64_t begin;
    int64_t end;
    of.bounds_of(bag, begin, end);
  }
};

/// A row, stored or not, that some lanes read together.
template <class Type, int kWidth>
struct Source {
  const char* values;  // null: a row that is not stored
  float scale;
  float limited;  // the factor that limits its norm
  int64_t id;
  bool outside;

  template <class Lanes>
  VRAMKIT_ON_BOTH Source(const Lanes& lanes, const Lookup& of, int64_t position, uint32_t slot,
                         bool counts = true)
      : values(slot < kSkipped ? of.rows.row(slot) : nullptr),
        scale(1),
        limited(1),
        id(0),
        outside(slot == kOutside) {
    if (values != nullptr) {
      if (Type::kScaled) scale = of.rows.scale(slot);
    } else if (slot == kMissing || outside) {
      id = of.bags.ids[position];
      if (!outside) scale = of.initial.scale<Type>(lanes, id, of.rows.layout.dim);
      if (lanes.rank() == 0 && counts) tell(of, position);
    }
    if (of.limited != nullptr && slot != kSkipped) limited = of.limited[position];
  }

  /// Not multiplied by the scale. An id outside the table has no values but NaN.
  VRAMKIT_ON_BOTH Vec<kWidth> raw(const Lookup& of, uint32_t column) const {
    if (values != nullptr) return load<Type, kWidth>(values, column);
    Vec<kWidth> result;
    if (outside) {
      for (float& value : result.at) value = NAN;
      return result;
    }
    const auto pack = of.initial.pack<Type, kWidth>(id, scale, column);
    for (int i = 0; i < kWidth; ++i) result.at[i] = Type::load(pack.at[i]);
    return result;
  }
  VRAMKIT_ON_BOTH Vec<kWidth> read(const Lookup& of, uint32_t column) const {
    Vec<kWidth> result = raw(of, column);
    for (float& value : result.at) value = value * scale * limited;
    return result;
  }

 private:
  VRAMKIT_ON_BOTH void tell(const Lookup& of, int64_t position) const {
    if (outside) {
      if (of.alarm != nullptr) of.alarm->raise(Alarm::kId, id);
    } else if (of.misses != nullptr) {
      fetch_add(of.misses + position % kMissCounters, 1);
    }
  }
};

/// What a row is multiplied by so that its norm is at most the limit's, as in torch.
template <int kWidth, class Lanes, class Values>
VRAMKIT_ON_BOTH float limit_of(const Lanes& lanes, NormLimit limit, uint32_t dim,
                               const Values& values) {
  double sum = 0;
  const bool is_largest = limit.degree > 1e308;  // infinite
  for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
    const Vec<kWidth> vec = values(at);
    for (const float value : vec.at) {
      const double magnitude = fabs(static_cast<double>(value));
      if (is_largest) {
        sum = magnitude > sum ? magnitude : sum;
      } else {
        sum += limit.degree == 2 ? magnitude * magnitude : pow(magnitude, limit.degree);
      }
    }
  });
  const double total = is_largest ? lanes.largest(sum) : lanes.sum(sum);
  const double norm = is_largest ? total : pow(total, 1 / limit.degree);
  return norm > limit.most ? static_cast<float>(limit.most / (norm + 1e-7)) : 1.0F;
}

/// factors[i] = what limits the norm of the row of position i.
template <class Type, int kWidth>
struct LimitFactors {
  Lookup of;
  NormLimit limit;
  float* factors;

  VRAMKIT_ON_BOTH int64_t items() const { return of.bags.positions; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t position, const Lanes& lanes) const {
    const uint32_t slot = of.slot_at(position);
    float factor = 1;
    if (slot != kSkipped && slot != kOutside) {
      const Source<Type, kWidth> source(lanes, of, position, slot, false);
      factor = limit_of<kWidth>(lanes, limit, of.rows.layout.dim,
                                [&](uint32_t at) { return source.read(of, at); });
    }
    if (lanes.rank() == 0) factors[position] = factor;
  }
};

/// Rows of float types are read as what they are; int8 rows as any of these.
template <class Type, int kWidth>
VRAMKIT_ON_BOTH void store_output(RowType type, void* to, uint64_t first, const Vec<kWidth>& vec) {
  if constexpr (Type::kScaled) {
    store_as<kWidth>(type, to, first, vec);
  } else {
    using Stored = typename Type::Stored;
    Pack<Stored, kWidth> pack;
    for (int i = 0; i < kWidth; ++i) pack.at[i] = Type::nearest(vec.at[i]);
    store_streaming(static_cast<Stored*>(to) + first, pack);
  }
}

/// Rows that are in the table or skipped, as most often.
template <class Type>
struct Stored {
  const char* rows[kInFlight];  // null: skipped
  float scales[kInFlight];

  VRAMKIT_ON_BOTH static bool fits(const Lookup& of, const uint32_t (&slots)[kInFlight]) {
    bool all = of.limited == nullptr;
    for (const uint32_t slot : slots) all = all && slot <= kSkipped;
    return all;
  }
  VRAMKIT_ON_BOTH Stored(const Lookup& of, const uint32_t (&slots)[kInFlight]) {
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const bool skipped = slots[i] == kSkipped;
      rows[i] = skipped ? nullptr : of.rows.row(slots[i]);
      scales[i] = Type::kScaled && !skipped ? of.rows.scale(slots[i]) : 1.0F;
    }
  }
  template <int kWidth>
  VRAMKIT_ON_BOTH void load_at(uint32_t at, Vec<kWidth> (&values)[kInFlight]) const {
    for (uint32_t i = 0; i < kInFlight; ++i) {
      values[i] = rows[i] == nullptr ? Vec<kWidth>{} : load<Type, kWidth>(rows[i], at);
    }
  }
};

/// Item i copies the rows of kInFlight positions from i * kInFlight on.
template <class Type, int kWidth>
struct Gather {
  Lookup of;

  VRAMKIT_ON_BOTH int64_t items() const { return (of.bags.positions + kInFlight - 1) / kInFlight; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const int64_t first = item * kInFlight;
    const uint32_t dim = of.rows.layout.dim;
    uint32_t slots[kInFlight];
    of.find(lanes, first, of.bags.positions, slots);
    if (!Stored<Type>::fits(of, slots)) {
      for (uint32_t i = 0; i < kInFlight; ++i) any(lanes, first + i, slots[i]);
      return;
    }
    const Stored<Type> from(of, slots);
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      Vec<kWidth> values[kInFlight];
      from.load_at(at, values);
      for (uint32_t i = 0; i < kInFlight; ++i) {
        if (from.rows[i] == nullptr) continue;
        if (Type::kScaled) {
          for (float& value : values[i].at) value *= from.scales[i];
        }
        const uint64_t to = static_cast<uint64_t>(first + i) * dim + at;
        store_output<Type, kWidth>(of.type, of.output, to, values[i]);
      }
    });
  }

 private:
  template <class Lanes>
  __attribute__((noinline)) VRAMKIT_ON_BOTH void any(Lanes lanes, int64_t position,
                                                     uint32_t slot) const {
    if (slot == kSkipped) return;
    const uint32_t dim = of.rows.layout.dim;
    const Source<Type, kWidth> source(lanes, of, position, slot);
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      const uint64_t to = static_cast<uint64_t>(position) * dim + at;
      store_output<Type, kWidth>(of.type, of.output, to, source.read(of, at));
    });
  }
};

/// Item i is the sum or mean of bag i.
template <class Type, int kWidth>
struct AddUp {
  Lookup of;

  VRAMKIT_ON_BOTH int64_t items() const { return of.bags.bags; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t bag, const Lanes& lanes) const {
    int64_t begin;
    int64_t end;
    const bool fits = of.bounds_of(bag, begin, end);
    const uint32_t dim = of.rows.layout.dim;
    const uint32_t step = lanes.count() * kWidth;
    // All lanes take part in each round, as they find rows together.
    for (uint32_t base = 0; base < dim; base += step) {
      const uint32_t at = base + lanes.rank() * kWidth;
      Vec<kWidth> sum;
      for (float& value : sum.at) value = fits ? 0.0F : NAN;
      int64_t count = 0;
      for (int64_t first = begin; fits && first < end; first += kInFlight) {
        count += add(lanes, first, end, at, base == 0, sum);
      }
      if (of.bags.mode == Mode::kMean && count > 1) {
        for (float& value : sum.at) value /= static_cast<float>(count);
      }
      if (at < dim) {
        const uint64_t to = static_cast<uint64_t>(bag) * dim + at;
        store_output<Type, kWidth>(of.type, of.output, to, sum);
      }
    }
  }

 private:
  VRAMKIT_ON_BOTH float weight_at(int64_t position) const {
    return of.bags.weights == nullptr ? 1.0F : of.bags.weights[position];
  }

  /// Returns the number of rows that are not skipped.
  template <class Lanes>
  VRAMKIT_ON_BOTH uint32_t add(const Lanes& lanes, int64_t first, int64_t end, uint32_t at,
                               bool counts, Vec<kWidth>& sum) const {
    uint32_t slots[kInFlight];
    of.find(lanes, first, end, slots);
    if (!Stored<Type>::fits(of, slots)) {
      uint32_t count = 0;
      for (uint32_t i = 0; i < kInFlight; ++i) {
        if (slots[i] == kSkipped) continue;
        ++count;
        sum = any(lanes, first + i, slots[i], at, counts, sum);
      }
      return count;
    }
    const Stored<Type> from(of, slots);
    Vec<kWidth> values[kInFlight] = {};
    if (at < of.rows.layout.dim) from.load_at(at, values);
    uint32_t count = 0;
    for (uint32_t i = 0; i < kInFlight; ++i) {
      if (from.rows[i] == nullptr) continue;
      ++count;
      const float factor = weight_at(first + i) * from.scales[i];
      for (int k = 0; k < kWidth; ++k) sum.at[k] += factor * values[i].at[k];
    }
    return count;
  }

  /// Of any row, in the order of operations of the CPU. Returns the new sum.
  template <class Lanes>
  __attribute__((noinline)) VRAMKIT_ON_BOTH Vec<kWidth> any(Lanes lanes, int64_t position,
                                                            uint32_t slot, uint32_t at, bool counts,
                                                            Vec<kWidth> sum) const {
    const Source<Type, kWidth> source(lanes, of, position, slot, counts);
    if (at >= of.rows.layout.dim) return sum;
    const Vec<kWidth> values = source.raw(of, at);
    const float weight = weight_at(position);
    const float factor = weight * source.scale;
    for (int i = 0; i < kWidth; ++i) {
      if (of.limited != nullptr) {
        sum.at[i] += weight * (values.at[i] * source.scale * source.limited);
      } else {
        sum.at[i] += factor * values.at[i];
      }
    }
    return sum;
  }
};

/// Item i is the maximum of bag i, element by element.
template <class Type, int kWidth>
struct Largest {
  Lookup of;

  VRAMKIT_ON_BOTH int64_t items() const { return of.bags.bags; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t bag, const Lanes& lanes) const {
    int64_t begin;
    int64_t end;
    const bool fits = of.bounds_of(bag, begin, end);
    const uint32_t dim = of.rows.layout.dim;
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      for (int i = 0; i < kWidth; ++i) argmax_at(bag, at)[i] = -1;
      Vec<kWidth> most;
      for (float& value : most.at) value = fits ? 0.0F : NAN;
      store_as<kWidth>(of.type, of.output, static_cast<uint64_t>(bag) * dim + at, most);
    });
    for (int64_t position = begin; fits && position < end; ++position) {
      const uint32_t slot = of.slot_at(position);
      if (slot == kSkipped) continue;
      const Source<Type, kWidth> source(lanes, of, position, slot);
      for_columns<kWidth>(lanes, dim, [&](uint32_t at) { raise(bag, position, source, at); });
    }
  }

 private:
  VRAMKIT_ON_BOTH int64_t* argmax_at(int64_t bag, uint32_t at) const {
    return of.argmax + static_cast<uint64_t>(bag) * of.rows.layout.dim + at;
  }
  VRAMKIT_ON_BOTH void raise(int64_t bag, int64_t position, const Source<Type, kWidth>& source,
                             uint32_t at) const {
    const uint64_t to = static_cast<uint64_t>(bag) * of.rows.layout.dim + at;
    int64_t* const argmax = argmax_at(bag, at);
    const Vec<kWidth> values = source.read(of, at);
    Vec<kWidth> most = load_as<kWidth>(of.type, of.output, to);
    for (int i = 0; i < kWidth; ++i) {
      if (argmax[i] >= 0 && !(values.at[i] > most.at[i]) && !source.outside) continue;
      most.at[i] = values.at[i];
      argmax[i] = position;
    }
    store_as<kWidth>(of.type, of.output, to, most);
  }
};

/// result[i] = the product of row i and the gradient of its bag, where nothing is padding. Item i
/// is bag i; `of.output` is the gradient.
template <class Type, int kWidth>
struct WeightGradients {
  Lookup of;
  float* result;

  VRAMKIT_ON_BOTH int64_t items() const { return of.bags.bags; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t bag, const Lanes& lanes) const {
    int64_t begin;
    int64_t end;
    if (!of.bounds_of(bag, begin, end)) return;
    const uint32_t dim = of.rows.layout.dim;
    for (int64_t position = begin; position < end; ++position) {
      const uint32_t slot = of.slot_at(position);
      float sum = 0;
      if (slot != kSkipped) {
        const Source<Type, kWidth> source(lanes, of, position, slot);
        for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
          const Vec<kWidth> values = source.read(of, at);
          const uint64_t from = static_cast<uint64_t>(bag) * dim + at;
          const Vec<kWidth> grad = load_as<kWidth>(of.type, of.output, from);
          for (int i = 0; i < kWidth; ++i) sum += values.at[i] * grad.at[i];
        });
      }
      sum = lanes.sum(sum);
      if (lanes.rank() == 0) result[position] = sum;
    }
  }
};

/// Item i scales row slots[i] to the limit.
template <class Type, int kWidth>
struct LimitNorms {
  RowsView rows;
  NormLimit limit;
  const uint32_t* slots;
  int64_t count;
  uint32_t clock;

  VRAMKIT_ON_BOTH int64_t items() const { return count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const uint32_t slot = slots[item];
    char* const row = rows.row(slot);
    const float scale = Type::kScaled ? rows.scale(slot) : 1.0F;
    const auto values = [&](uint32_t at) {
      Vec<kWidth> result = load<Type, kWidth>(row, at);
      for (float& value : result.at) value *= scale;
      return result;
    };
    const uint32_t dim = rows.layout.dim;
    const float factor = limit_of<kWidth>(lanes, limit, dim, values);
    if (factor == 1.0F) return;
    const float limited = Type::kScaled ? scale * factor : 1.0F;
    const float inverse = limited > 0 ? 1.0F / limited : 0.0F;
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      Vec<kWidth> scaled = values(at);
      for (float& value : scaled.at) value = value * factor * inverse;
      store_nearest<Type, kWidth>(row, at, scaled);
    });
    lanes.meet();
    if (lanes.rank() != 0) return;
    if (Type::kScaled) rows.scale(slot) = limited;
    rows.meta(slot).stamps.changed = clock;
  }
};

}  // namespace vramkit::embedding::device
