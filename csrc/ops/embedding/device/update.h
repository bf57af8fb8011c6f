// Kernels of an update: the gradient of each row is added up in the order of positions, in parts of
// kPart positions, and the optimizer's rule applied. The result depends on no order of threads.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/embedding/bags.h"
#include "ops/embedding/device/index.h"
#include "ops/embedding/device/rows.h"
#include "ops/embedding/rules.h"

namespace vramkit::embedding::device {

/// The gradient of one forward pass; its positions are numbered from `first` on.
struct GradientPart {
  Bags bags;
  const uint32_t* slots;  // of each position; null: ids are found again
  const void* grad;       // bags x dim
  const int64_t* argmax;  // kMax only
  int64_t first;
  int64_t first_bag;
  bool by_frequency;
};

/// The keys that positions of a table are sorted by: `first` and the slot, or `none`.
struct Keys {
  uint32_t first;
  uint32_t none;

  VRAMKIT_ON_BOTH uint32_t slot(uint32_t key) const { return key - first; }
};

/// Positions of all parts, to be sorted by key.
struct Prepare {
  GradientPart part;
  Initial initial;
  RowsView rows;
  IndexView index;
  Keys of;
  uint32_t* keys;
  uint32_t* positions;
  uint32_t* bag_of;      // null where each position has a gradient of its own
  uint32_t* members;     // of each bag: ids that count for the mean; null: all of them
  uint32_t* long_count;  // becomes 0
  uint32_t* lost;        // counts positions whose row is not there any more; or null

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const int64_t id = part.bags.ids[i];
    const int64_t at = part.first + i;
    if (at == 0) *long_count = 0;
    positions[at] = static_cast<uint32_t>(at);
    keys[at] = of.none;
    if (part.bags.bags == 0 || initial.is_padding(id)) return;
    const uint32_t slot = part.slots != nullptr ? part.slots[i] : index.find(id, rows);
    if (slot != kMissing) {
      keys[at] = of.first + slot;
    } else if (lost != nullptr) {
      fetch_add(lost, 1);
    }
    if (part.bags.mode == Mode::kNone) return;
    const uint32_t bag = find_bag(i);
    bag_of[at] = bag;
    if (members != nullptr) fetch_add(&members[part.first_bag + bag], 1);
  }

  /// The last bag that begins at or before a position.
  VRAMKIT_ON_BOTH uint32_t find_bag(int64_t position) const {
    if (part.bags.bounds == nullptr) return static_cast<uint32_t>(position / part.bags.width);
    int64_t low = 0;
    int64_t high = part.bags.bags - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (part.bags.begin_of(middle) <= position) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return static_cast<uint32_t>(low);
  }
};

struct CountSlots {
  Keys of;
  const uint32_t* keys;
  uint32_t* counts;  // one more than slots

  VRAMKIT_ON_BOTH void operator()(int64_t i) const { fetch_add(&counts[of.slot(keys[i])], 1); }
};

/// factors[i] = what the gradient of position i is multiplied by, of those that have a row.
struct Factors {
  GradientPart part;
  Keys of;
  const uint32_t* keys;
  const uint32_t* bag_of;
  const uint32_t* members;
  const uint32_t* counts;
  float* factors;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const int64_t at = part.first + i;
    if (keys[at] == of.none) return;
    float factor = 1;
    if (part.bags.mode == Mode::kMean) {
      const uint32_t bag = bag_of[at];
      const int64_t count = members == nullptr ? part.bags.end_of(bag) - part.bags.begin_of(bag)
                                               : members[part.first_bag + bag];
      factor = 1.0F / static_cast<float>(count);
    }
    if (part.bags.weights != nullptr) factor *= part.bags.weights[i];
    if (part.by_frequency) factor /= static_cast<float>(counts[of.slot(keys[at])]);
    factors[at] = factor;
  }
};

/// Sorted positions and where their gradients are.
struct Sorted {
  const uint32_t* keys;
  const uint32_t* positions;
  int64_t count;
  Keys of;
  uint32_t dim;
  GradientPart only;          // the part, if there is one
  const GradientPart* parts;  // else all of them
  int part_count;
  const uint32_t* bag_of;
  const float* factors;  // null: 1
  RowType type;

  /// The sum of the gradients of sorted positions, columns from `at` on. Added in their order, but
  /// several are on their way from memory at the same time.
  template <int kWidth>
  VRAMKIT_ON_BOTH Vec<kWidth> sum(int64_t first, int64_t last, uint32_t at) const {
    constexpr int kAtOnce = 2;
    Vec<kWidth> total = {};
    for (; first < last; first += kAtOnce) {
      Vec<kWidth> grads[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        grads[i] = first + i < last ? scaled<kWidth>(first + i, at) : Vec<kWidth>{};
      }
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= last) break;
        for (int k = 0; k < kWidth; ++k) total.at[k] += grads[i].at[k];
      }
    }
    return total;
  }

 private:
  /// The gradient of a sorted position, 0 where the maximum came from another one.
  template <int kWidth>
  VRAMKIT_ON_BOTH Vec<kWidth> scaled(int64_t i, uint32_t at) const {
    const uint32_t position = positions[i];
    const GradientPart& part = part_count == 1 ? only : part_of(position);
    const int64_t own = position - part.first;
    const uint64_t bag = part.bags.mode == Mode::kNone ? static_cast<uint64_t>(own)
                                                       : static_cast<uint64_t>(bag_of[position]);
    const float factor = factors == nullptr ? 1.0F : factors[position];
    Vec<kWidth> grad = load_as<kWidth>(type, part.grad, bag * dim + at);
    for (int k = 0; k < kWidth; ++k) {
      grad.at[k] *= factor;
      if (part.argmax == nullptr) continue;
      if (part.argmax[bag * dim + at + static_cast<uint32_t>(k)] != own) grad.at[k] = 0;
    }
    return grad;
  }

  VRAMKIT_ON_BOTH const GradientPart& part_of(uint32_t position) const {
    int part = part_count - 1;
    while (parts[part].first > position) --part;
    return parts[part];
  }
};

inline constexpr int64_t kPart = 16;
// A row with more parts is summed by many groups of lanes.
inline constexpr int64_t kShort = 32;

/// Updates a row by its gradient.
template <class Type, int kWidth>
struct Apply {
  RowsView rows;
  Step step;
  float factor;
  uint64_t draws;
  uint32_t clock;

  /// `sum_of(column)` is the gradient; it is called again where a rule needs all of it first.
  template <class Lanes, class SumOf>
  VRAMKIT_ON_BOTH void row(const Lanes& lanes, uint32_t slot, int64_t /*first*/,
                           const SumOf& sum_of) const {
    const uint32_t dim = rows.layout.dim;
    Target to{rows.row(slot), rows.state(slot), 1, step.rate};
    Meta& meta = rows.meta(slot);
    const uint64_t draw = mix(draws, static_cast<uint64_t>(meta.key));
    if (Type::kScaled) to.scale = rows.scale(slot);
    float total = 0;
    if (rows.layout.rule == Rule::kRowwiseAdagrad) {
      total = meta.sum + mean_of_squares(squares(lanes, sum_of), dim);
      to.rate = rowwise_rate(step, total);
    }
    float scale = to.scale;
    if (Type::kScaled) {
      double largest = 0;
      for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
        const Elements next = updated(to, at, sum_of);
        for (const float value : next.values.at) {
          const double magnitude = magnitude_of(value);
          largest = magnitude > largest ? magnitude : largest;
        }
      });
      scale = fitting_scale(to.scale, static_cast<float>(lanes.largest(largest)));
    }
    for_columns<kWidth>(lanes, dim,
                        [&](uint32_t at) { write(to, at, updated(to, at, sum_of), scale, draw); });
    lanes.meet();
    if (lanes.rank() != 0) return;
    if (Type::kScaled) rows.scale(slot) = scale;
    if (rows.layout.rule == Rule::kRowwiseAdagrad) meta.sum = total;
    meta.stamps.changed = clock;
  }

 private:
  using State = Pack<float, kWidth>;
  struct Target {
    char* row;
    float* state;
    float scale;
    float rate;
  };
  struct Elements {
    Vec<kWidth> values;
    State first;
    State second;
  };

  VRAMKIT_ON_BOTH State* state_at(const Target& to, uint32_t at) const {
    return reinterpret_cast<State*>(to.state + at);
  }

  template <class SumOf>
  VRAMKIT_ON_BOTH Vec<kWidth> gradient(const SumOf& sum_of, uint32_t at) const {
    Vec<kWidth> grad = sum_of(at);
    if (factor != 1.0F) {
      for (float& value : grad.at) value *= factor;
    }
    return grad;
  }

  template <class Lanes, class SumOf>
  VRAMKIT_ON_BOTH float squares(const Lanes& lanes, const SumOf& sum_of) const {
    float total = 0;
    for_columns<kWidth>(lanes, rows.layout.dim, [&](uint32_t at) {
      const Vec<kWidth> grad = gradient(sum_of, at);
      for (const float value : grad.at) total += value * value;
    });
    return lanes.sum(total);
  }

  /// What is in memory is asked for before the gradient, so that both are under way at once.
  template <class SumOf>
  VRAMKIT_ON_BOTH Elements updated(const Target& to, uint32_t at, const SumOf& sum_of) const {
    const Rule rule = rows.layout.rule;
    Elements next{load<Type, kWidth>(to.row, at), {}, {}};
    if (rule == Rule::kAdagrad || rule == Rule::kAdam) next.first = *state_at(to, at);
    if (rule == Rule::kAdam) next.second = *state_at(to, rows.layout.dim + at);
    const Vec<kWidth> grad = gradient(sum_of, at);
    for (int i = 0; i < kWidth; ++i) {
      float& value = next.values.at[i];
      if (Type::kScaled) value *= to.scale;
      if (rule == Rule::kSgd) {
        sgd(step, grad.at[i], value);
      } else if (rule == Rule::kRowwiseAdagrad) {
        value -= to.rate * grad.at[i];
      } else if (rule == Rule::kAdagrad) {
        adagrad(step, grad.at[i], value, next.first.at[i]);
      } else {
        adam(step, grad.at[i], value, next.first.at[i], next.second.at[i]);
      }
    }
    return next;
  }

  VRAMKIT_ON_BOTH void write(const Target& to, uint32_t at, const Elements& next, float scale,
                             uint64_t draw) const {
    const Rule rule = rows.layout.rule;
    if (rule == Rule::kAdagrad || rule == Rule::kAdam) *state_at(to, at) = next.first;
    if (rule == Rule::kAdam) *state_at(to, rows.layout.dim + at) = next.second;
    const float inverse = scale > 0 ? 1.0F / scale : 0.0F;
    Pack<typename Type::Stored, kWidth> pack;
    // The vectors of a row begin at multiples of their width.
    uint64_t drawn = 0;
    for (uint32_t i = 0; i < kWidth; ++i) {
      const uint32_t part = (kWidth == 1 ? at : i) % kPerDraw;
      if (i % kPerDraw == 0) drawn = mix(draw + at + i - (kWidth == 1 ? part : 0));
      pack.at[i] = Type::stochastic(next.values.at[i] * inverse, part_of_draw(drawn, part));
    }
    store<Type, kWidth>(to.row, at, pack);
  }
};

/// squares[first position of the row] = the square of the 2-norm of its gradient.
template <int kWidth>
struct SquareNorm {
  uint32_t dim;
  double* squares;

  template <class Lanes, class SumOf>
  VRAMKIT_ON_BOTH void row(const Lanes& lanes, uint32_t /*slot*/, int64_t first,
                           const SumOf& sum_of) const {
    double total = 0;
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      const Vec<kWidth> grad = sum_of(at);
      for (const float value : grad.at) total += static_cast<double>(value) * value;
    });
    total = lanes.sum(total);
    if (lanes.rank() == 0) squares[first] = total;
  }
};

/// Sums of a part: of the row that began before it, and of the row that goes on after it.
struct Partials {
  float* sums;  // parts x 2 x dim

  VRAMKIT_ON_BOTH float* of(int64_t part, int which, uint32_t dim) const {
    return sums + (2 * part + which) * static_cast<int64_t>(dim);
  }
};

template <int kWidth>
VRAMKIT_ON_BOTH void store_sum(float* to, const Vec<kWidth>& sum) {
  store_nearest<Float32, kWidth>(to, 0, sum);
}

/// A row whose positions lie in several parts.
struct LongRow {
  int64_t part;  // where it begins
  int64_t last;  // the part where it ends
};

/// Item i adds up the gradients of part i, and hands rows that lie in it to the sink.
template <int kWidth, class Sink>
struct SumParts {
  Sorted sorted;
  Partials partials;
  Sink sink;

  VRAMKIT_ON_BOTH int64_t items() const { return (sorted.count + kPart - 1) / kPart; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t part, const Lanes& lanes) const {
    const int64_t begin = part * kPart;
    const int64_t end = begin + kPart < sorted.count ? begin + kPart : sorted.count;
    for (int64_t first = begin; first < end;) {
      const uint32_t key = sorted.keys[first];
      if (key == sorted.of.none) return;
      int64_t last = first + 1;
      while (last < end && sorted.keys[last] == key) ++last;
      const bool begun = first == begin && begin > 0 && sorted.keys[begin - 1] == key;
      const bool goes_on = last == end && end < sorted.count && sorted.keys[end] == key;
      const auto sum_of = [&](uint32_t at) { return sorted.sum<kWidth>(first, last, at); };
      if (begun || goes_on) {
        float* const to = partials.of(part, begun ? 0 : 1, sorted.dim);
        for_columns<kWidth>(lanes, sorted.dim,
                            [&](uint32_t at) { store_sum(to + at, sum_of(at)); });
      } else {
        sink.row(lanes, sorted.of.slot(key), first, sum_of);
      }
      first = last;
    }
  }
};

/// Sums the partials of a row from part `begin` on, each `step`-th one.
template <int kWidth>
VRAMKIT_ON_BOTH Vec<kWidth> sum_of_partials(const Partials& partials, const LongRow& row,
                                            int64_t begin, int64_t step, uint32_t dim,
                                            uint32_t at) {
  Vec<kWidth> sum = {};
  for (int64_t part = begin; part <= row.last; part += step) {
    const float* const from = partials.of(part, part == row.part ? 1 : 0, dim);
    const Vec<kWidth> values = load<Float32, kWidth>(from, at);
    for (int k = 0; k < kWidth; ++k) sum.at[k] += values.at[k];
  }
  return sum;
}

/// Item i finishes the row that goes on after part i, if it begins there; long ones are listed.
template <int kWidth, class Sink>
struct SumShort {
  Sorted sorted;
  Partials partials;
  Sink sink;
  LongRow* long_rows;
  uint32_t* long_count;

  /// The last part has no next one.
  VRAMKIT_ON_BOTH int64_t items() const { return (sorted.count - 1) / kPart; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t part, const Lanes& lanes) const {
    const int64_t begin = part * kPart;
    const int64_t end = begin + kPart;
    const uint32_t key = sorted.keys[end - 1];
    const bool begun = begin > 0 && sorted.keys[begin - 1] == key;
    if (key == sorted.of.none || sorted.keys[end] != key || begun) return;
    const LongRow row{part, (end_of(key, end) - 1) / kPart};
    if (row.last - row.part >= kShort) {
      if (lanes.rank() == 0) long_rows[fetch_add(long_count, 1)] = row;
      return;
    }
    sink.row(lanes, sorted.of.slot(key), end - 1, [&](uint32_t at) {
      return sum_of_partials<kWidth>(partials, row, part, 1, sorted.dim, at);
    });
  }

 private:
  /// Where the positions of a key end that has position `from`: near, most often.
  VRAMKIT_ON_BOTH int64_t end_of(uint32_t key, int64_t from) const {
    int64_t low = from;
    int64_t step = 1;
    while (low + step < sorted.count && sorted.keys[low + step] == key) {
      low += step;
      step *= 2;
    }
    int64_t high = low + step < sorted.count ? low + step : sorted.count;
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      if (sorted.keys[middle] == key) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low + 1;
  }
};

/// Item i finishes long row i; every group of a team calls it.
template <int kWidth, class Sink>
struct SumLong {
  Sorted sorted;
  Partials partials;
  Sink sink;
  const LongRow* long_rows;
  const uint32_t* long_count;

  VRAMKIT_ON_BOTH int64_t items() const { return *long_count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const LongRow row = long_rows[item];
    const uint32_t dim = sorted.dim;
    float* const total = partials.of(row.part, 1, dim);
    // All lanes take part in each round, as their groups wait for each other.
    for (uint32_t base = 0; base < dim; base += lanes.count() * kWidth) {
      const uint32_t at = base + lanes.rank() * kWidth;
      Vec<kWidth> sum = {};
      if (at < dim) {
        const int64_t begin = row.part + lanes.group();
        sum = sum_of_partials<kWidth>(partials, row, begin, lanes.groups(), dim, at);
      }
      sum = lanes.over_groups(sum);
      if (at < dim && lanes.group() == 0) store_sum(total + at, sum);
    }
    if (lanes.group() != 0) return;
    const int64_t end = (row.part + 1) * kPart;
    sink.row(lanes, sorted.of.slot(sorted.keys[end]), end - 1,
             [&](uint32_t at) { return load<Float32, kWidth>(total, at); });
  }
};

}  // namespace vramkit::embedding::device
