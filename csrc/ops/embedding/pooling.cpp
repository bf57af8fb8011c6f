#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/embedding/batches.h"

namespace vramkit::embedding {
namespace {

constexpr int64_t kFloatsPerTask = 1 << 14;
// Rows whose first lines are being fetched.
constexpr int64_t kAhead = 16;
constexpr uint32_t kFetchedBytes = 512;

/// What a row is multiplied by so that its norm is at most the limit's, as in torch.
float limit_factor(const float* values, uint32_t dim, NormLimit limit) {
  double sum = 0;
  for (uint32_t i = 0; i < dim; ++i) {
    const double magnitude = std::abs(static_cast<double>(values[i]));
    if (std::isinf(limit.degree)) {
      sum = std::max(sum, magnitude);
    } else {
      sum += limit.degree == 2 ? magnitude * magnitude : std::pow(magnitude, limit.degree);
    }
  }
  const double norm = std::isinf(limit.degree) ? sum : std::pow(sum, 1 / limit.degree);
  return norm > limit.most ? static_cast<float>(limit.most / (norm + 1e-7)) : 1.0F;
}

/// Reads rows, those that are not stored too.
class Reader {
 public:
  Reader(const Store& store, NormLimit limit)
      : store_(store),
        limit_(limit),
        row_(store.layout().stride_bytes() + 16),
        values_(store.layout().dim) {}

  const char* row(int64_t id, uint32_t slot) {
    if (slot != kMissing) return store_.row(slot);
    char* const aligned = row_.data() + (16 - reinterpret_cast<uintptr_t>(row_.data()) % 16) % 16;
    store_.write_initial(id, aligned);
    return aligned;
  }

  /// Valid until the next call.
  template <class Type>
  const float* values(int64_t id, uint32_t slot) {
    const uint32_t dim = store_.layout().dim;
    decode<Type>(row(id, slot), dim, values_.data());
    if (limit_.most > 0) {
      const float factor = limit_factor(values_.data(), dim, limit_);
      if (factor != 1.0F) {
        for (float& value : values_) value *= factor;
      }
    }
    return values_.data();
  }

 private:
  const Store& store_;
  NormLimit limit_;
  std::vector<char> row_;
  std::vector<float> values_;
};

void prefetch_row(const Store& store, uint32_t slot) {
  if (slot == kMissing) return;
  const char* const row = store.row(slot);
  const uint32_t bytes = std::min(store.layout().value_bytes() + 16, kFetchedBytes);
  for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

template <class Output>
void store_values(const float* from, uint32_t dim, void* output, int64_t bag) {
  auto* const to = static_cast<typename Output::Stored*>(output) + bag * dim;
  for (uint32_t i = 0; i < dim; ++i) to[i] = Output::nearest(from[i]);
}

/// Stored rows of a bag that are added up together, and their factors.
struct Run {
  static constexpr int kMost = 32;
  const char* rows[kMost];
  float factors[kMost];
  int count = 0;
};

/// Adds kWidth elements of all rows, from `column`; the sums stay in registers meanwhile.
template <class Type, int kWidth>
[[gnu::always_inline]] inline void add_columns(const Run& run, uint32_t column, float* sum) {
  float sums[kWidth];
#pragma GCC unroll 32
  for (int i = 0; i < kWidth; ++i) sums[i] = sum[column + static_cast<uint32_t>(i)];
  for (int row = 0; row < run.count; ++row) {
    const auto* const values = values_of<Type>(run.rows[row]) + column;
    const float factor = run.factors[row];
#pragma GCC unroll 32
    for (int i = 0; i < kWidth; ++i) sums[i] += factor * Type::load(values[i]);
  }
#pragma GCC unroll 32
  for (int i = 0; i < kWidth; ++i) sum[column + static_cast<uint32_t>(i)] = sums[i];
}

/// Adds all rows, each element in their order.
template <class Type, uint32_t kWidth>
[[gnu::always_inline]] inline void add_all(const Run& run, uint32_t dim, float* sum) {
  uint32_t column = 0;
  for (; column + kWidth <= dim; column += kWidth) add_columns<Type, kWidth>(run, column, sum);
  for (; column + 16 <= dim; column += 16) add_columns<Type, 16>(run, column, sum);
  for (; column + 4 <= dim; column += 4) add_columns<Type, 4>(run, column, sum);
  for (; column < dim; ++column) add_columns<Type, 1>(run, column, sum);
}

#if defined(__x86_64__)
// Without fused multiplication and addition, which would round once: results have the same bits on
// each machine.
template <class Type>
[[gnu::target("avx2")]] void add_with_avx2(const Run& run, uint32_t dim, float* sum) {
  add_all<Type, 32>(run, dim, sum);
}
bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}
#endif

template <class Type>
void add_run(Run& run, uint32_t dim, float* sum) {
#if defined(__x86_64__)
  if (has_avx2()) {
    add_with_avx2<Type>(run, dim, sum);
    run.count = 0;
    return;
  }
#endif
  add_all<Type, 16>(run, dim, sum);
  run.count = 0;
}

template <class Type, class Output>
class Pooling {
 public:
  Pooling(const Store& store, const Bags& bags, const uint32_t* slots, NormLimit limit,
          void* output, int64_t* argmax)
      : store_(store),
        bags_(bags),
        slots_(slots),
        limit_(limit),
        output_(output),
        argmax_(argmax),
        dim_(store.layout().dim) {}

  void operator()(int64_t first, int64_t last) const {
    Reader reader(store_, limit_);
    std::vector<float> sum(dim_);
    for (int64_t bag = first; bag < last; ++bag) {
      if (bags_.mode == Mode::kNone) {
        copy(bag, reader);
      } else if (bags_.mode == Mode::kMax) {
        largest(bag, reader, sum.data());
      } else {
        add_up(bag, reader, sum.data());
      }
    }
  }

 private:
  void prefetch(int64_t position) const {
    if (position + kAhead < bags_.positions) prefetch_row(store_, slots_[position + kAhead]);
  }
  bool is_padding(int64_t position) const { return store_.config().padding == bags_.ids[position]; }

  void copy(int64_t position, Reader& reader) const {
    prefetch(position);
    const int64_t id = bags_.ids[position];
    if constexpr (std::is_same_v<Type, Output>) {
      if (limit_.most <= 0) {
        const char* const row = reader.row(id, slots_[position]);
        auto* const to = static_cast<typename Output::Stored*>(output_) + position * dim_;
        std::memcpy(to, values_of<Type>(row), store_.layout().value_bytes());
        return;
      }
    }
    store_values<Output>(reader.values<Type>(id, slots_[position]), dim_, output_, position);
  }

  void add_up(int64_t bag, Reader& reader, float* sum) const {
    std::fill(sum, sum + dim_, 0.0F);
    int64_t count = 0;
    Run run;
    const int64_t end = bags_.end_of(bag);
    for (int64_t at = bags_.begin_of(bag); at < end; ++at) {
      prefetch(at);
      if (is_padding(at)) continue;
      ++count;
      const float weight = bags_.weights == nullptr ? 1.0F : bags_.weights[at];
      const bool is_plain = slots_[at] != kMissing && limit_.most <= 0;
      if (run.count == Run::kMost || !is_plain) add_run<Type>(run, dim_, sum);
      if (is_plain) {
        run.rows[run.count] = store_.row(slots_[at]);
        run.factors[run.count] = weight * scale_of<Type>(run.rows[run.count]);
        ++run.count;
      } else {
        add_row(at, weight, reader, sum);
      }
    }
    add_run<Type>(run, dim_, sum);
    if (bags_.mode == Mode::kMean && count > 1) {
      for (uint32_t i = 0; i < dim_; ++i) sum[i] /= static_cast<float>(count);
    }
    store_values<Output>(sum, dim_, output_, bag);
  }

  void add_row(int64_t at, float weight, Reader& reader, float* sum) const {
    if (limit_.most > 0) {
      const float* const values = reader.values<Type>(bags_.ids[at], slots_[at]);
      for (uint32_t i = 0; i < dim_; ++i) sum[i] += weight * values[i];
      return;
    }
    const char* const row = reader.row(bags_.ids[at], slots_[at]);
    const auto* const values = values_of<Type>(row);
    const float factor = weight * scale_of<Type>(row);
    for (uint32_t i = 0; i < dim_; ++i) sum[i] += factor * Type::load(values[i]);
  }

  void largest(int64_t bag, Reader& reader, float* most) const {
    std::fill(most, most + dim_, 0.0F);
    int64_t* const argmax = argmax_ + bag * dim_;
    std::fill(argmax, argmax + dim_, int64_t{-1});
    for (int64_t at = bags_.begin_of(bag); at < bags_.end_of(bag); ++at) {
      prefetch(at);
      if (is_padding(at)) continue;
      const float* const values = reader.values<Type>(bags_.ids[at], slots_[at]);
      for (uint32_t i = 0; i < dim_; ++i) {
        if (argmax[i] < 0 || values[i] > most[i]) {
          most[i] = values[i];
          argmax[i] = at;
        }
      }
    }
    store_values<Output>(most, dim_, output_, bag);
  }

  const Store& store_;
  const Bags& bags_;
  const uint32_t* slots_;
  NormLimit limit_;
  void* output_;
  int64_t* argmax_;
  uint32_t dim_;
};

int64_t grain_of(const Store& store, const Bags& bags) {
  const int64_t mean = bags.bags == 0 ? 1 : std::max<int64_t>(1, bags.positions / bags.bags);
  return std::max<int64_t>(1, kFloatsPerTask / (mean * store.layout().dim + 1));
}

}  // namespace

void pool_bags(const Store& store, const Bags& bags, const uint32_t* slots, NormLimit limit,
               RowType type, void* output, int64_t* argmax, const Parallel& parallel) {
  with_row_type(store.layout().type, [&]<class Type>(Type) {
    with_row_type(type, [&]<class Output>(Output) {
      const Pooling<Type, Output> pooling(store, bags, slots, limit, output, argmax);
      parallel(0, bags.bags, grain_of(store, bags), pooling);
    });
  });
}

void limit_norms(Store& store, const int64_t* slots, int64_t count, NormLimit limit,
                 const Parallel& parallel) {
  const uint32_t dim = store.layout().dim;
  const uint32_t clock = store.clock();
  with_row_type(store.layout().type, [&]<class Type>(Type) {
    parallel(0, count, std::max<int64_t>(1, kFloatsPerTask / dim), [&](int64_t begin, int64_t end) {
      std::vector<float> values(dim);
      for (int64_t i = begin; i < end; ++i) {
        char* const row = store.row(static_cast<uint32_t>(slots[i]));
        decode<Type>(row, dim, values.data());
        const float factor = limit_factor(values.data(), dim, limit);
        if (factor == 1.0F) continue;
        for (float& value : values) value *= factor;
        header_of(row).scale *= factor;
        encode_nearest<Type>(row, dim, values.data());
        store.stamps(static_cast<uint32_t>(slots[i])).changed = clock;
      }
    });
  });
}

void weight_gradients(const Store& store, const Bags& bags, const uint32_t* slots, RowType type,
                      const void* grad, float* result, const Parallel& parallel) {
  const uint32_t dim = store.layout().dim;
  const auto bag_loop = [&]<class Type, class Output>(Type, Output, int64_t first, int64_t last) {
    Reader reader(store, {0, 2});
    for (int64_t bag = first; bag < last; ++bag) {
      const auto* const grads = static_cast<const typename Output::Stored*>(grad) + bag * dim;
      for (int64_t at = bags.begin_of(bag); at < bags.end_of(bag); ++at) {
        float sum = 0;
        if (store.config().padding != bags.ids[at]) {
          const float* const values = reader.values<Type>(bags.ids[at], slots[at]);
          for (uint32_t i = 0; i < dim; ++i) sum += values[i] * Output::load(grads[i]);
        }
        result[at] = sum;
      }
    }
  };
  with_row_type(store.layout().type, [&]<class Type>(Type row_type) {
    with_row_type(type, [&]<class Output>(Output output) {
      parallel(0, bags.bags, grain_of(store, bags),
               [&](int64_t first, int64_t last) { bag_loop(row_type, output, first, last); });
    });
  });
}

}  // namespace vramkit::embedding
