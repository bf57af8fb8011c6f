#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <type_traits>

#include "ops/embedding/batches.h"
#include "ops/embedding/row_codec.h"
#include "ops/embedding/row_sums.h"

namespace vramkit::embedding {
namespace {

constexpr int64_t kFloatsPerTask = 1 << 14;

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
        initial_((store.layout().stride_bytes() + 3) / 4),
        values_(store.layout().dim) {}

  // What these return is valid until the next call.
  const char* row(int64_t id, uint32_t slot) {
    if (slot != kMissing) return store_.row(slot);
    auto* const row = reinterpret_cast<char*>(initial_.data());
    store_.write_initial(id, row, meta_);
    return row;
  }
  template <class Type>
  float scale(uint32_t slot) const {
    if (!Type::kScaled) return 1;
    return slot == kMissing ? meta_.scale : store_.meta(slot).scale;
  }
  template <class Type>
  const float* values(int64_t id, uint32_t slot) {
    const uint32_t dim = store_.layout().dim;
    const char* const from = row(id, slot);
    decode<Type>(from, scale<Type>(slot), dim, values_.data());
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
  std::vector<float> initial_;
  Meta meta_{};
  std::vector<float> values_;
};

template <class Output>
void store_values(const float* from, uint32_t dim, void* output, int64_t bag) {
  auto* const to = static_cast<typename Output::Stored*>(output) + bag * dim;
  for (uint32_t i = 0; i < dim; ++i) to[i] = Output::nearest(from[i]);
}

template <class Type, class Output>
class Pooling {
 public:
  Pooling(const Store& store, const Bags& bags, const uint32_t* slots, NormLimit limit,
          void* output, int64_t* argmax, std::atomic<int64_t>& hits)
      : store_(store),
        bags_(bags),
        slots_(slots),
        limit_(limit),
        output_(output),
        argmax_(argmax),
        hits_(hits),
        dim_(store.layout().dim) {}

  void operator()(int64_t first, int64_t last) const {
    if (first == last) return;
    const int64_t end = bags_.mode == Mode::kNone ? last : bags_.end_of(last - 1);
    const int64_t begin = bags_.mode == Mode::kNone ? first : bags_.begin_of(first);
    Fetched fetched(store_, bags_.ids, slots_, begin, end);
    Reader reader(store_, limit_);
    std::vector<float> sum(dim_);
    for (int64_t bag = first; bag < last; ++bag) {
      if (bags_.mode == Mode::kNone) {
        copy(bag, fetched, reader);
      } else if (bags_.mode == Mode::kMax) {
        largest(bag, fetched, reader, sum.data());
      } else if constexpr (std::is_same_v<Output, Float32>) {
        add_up(bag, fetched, reader, static_cast<float*>(output_) + bag * dim_);
      } else {
        add_up(bag, fetched, reader, sum.data());
        store_values<Output>(sum.data(), dim_, output_, bag);
      }
    }
    hits_.fetch_add(fetched.hits(), std::memory_order_relaxed);
  }

 private:
  bool is_padding(int64_t position) const { return store_.config().padding == bags_.ids[position]; }

  void copy(int64_t position, Fetched& fetched, Reader& reader) const {
    fetched.advance(position);
    const int64_t id = bags_.ids[position];
    if constexpr (std::is_same_v<Type, Output>) {
      if (limit_.most <= 0) {
        const char* const row = reader.row(id, fetched.slot(position));
        auto* const to = static_cast<typename Output::Stored*>(output_) + position * dim_;
        std::memcpy(to, values_of<Type>(row), store_.layout().value_bytes());
        return;
      }
    }
    store_values<Output>(reader.values<Type>(id, fetched.slot(position)), dim_, output_, position);
  }

  void add_up(int64_t bag, Fetched& fetched, Reader& reader, float* sum) const {
    std::fill(sum, sum + dim_, 0.0F);
    int64_t count = 0;
    const int64_t end = bags_.end_of(bag);
    const std::optional<int64_t>& padding = store_.config().padding;
    Run run{bags_.ids, bags_.weights, padding.value_or(0), padding.has_value(), 0, 0};
    for (int64_t at = bags_.begin_of(bag); at < end; at = run.end) {
      run.begin = at;
      run.end = limit_.most > 0 ? at : std::min(end, at + Fetched::kLatest);
      add_run<Type>(fetched, run, dim_, sum);
      count += run.end - at;
      if (run.end > at) continue;
      fetched.advance(at);
      run.end = at + 1;
      if (is_padding(at)) continue;
      ++count;
      add_row(at, fetched.slot(at), reader, sum);
    }
    if (bags_.mode == Mode::kMean && count > 1) {
      for (uint32_t i = 0; i < dim_; ++i) sum[i] /= static_cast<float>(count);
    }
  }

  void add_row(int64_t at, uint32_t slot, Reader& reader, float* sum) const {
    const float weight = bags_.weights == nullptr ? 1.0F : bags_.weights[at];
    if (limit_.most > 0) {
      const float* const values = reader.values<Type>(bags_.ids[at], slot);
      for (uint32_t i = 0; i < dim_; ++i) sum[i] += weight * values[i];
      return;
    }
    const auto* const values = values_of<Type>(reader.row(bags_.ids[at], slot));
    const float factor = weight * reader.template scale<Type>(slot);
    for (uint32_t i = 0; i < dim_; ++i) sum[i] += factor * Type::load(values[i]);
  }

  void largest(int64_t bag, Fetched& fetched, Reader& reader, float* most) const {
    std::fill(most, most + dim_, 0.0F);
    int64_t* const argmax = argmax_ + bag * dim_;
    std::fill(argmax, argmax + dim_, int64_t{-1});
    for (int64_t at = bags_.begin_of(bag); at < bags_.end_of(bag); ++at) {
      fetched.advance(at);
      if (is_padding(at)) continue;
      const float* const values = reader.values<Type>(bags_.ids[at], fetched.slot(at));
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
  std::atomic<int64_t>& hits_;
  uint32_t dim_;
};

int64_t grain_of(const Store& store, const Bags& bags) {
  const int64_t mean = bags.bags == 0 ? 1 : std::max<int64_t>(1, bags.positions / bags.bags);
  return std::max<int64_t>(1, kFloatsPerTask / (mean * store.layout().dim + 1));
}

}  // namespace

int64_t pool_bags(const Store& store, const Bags& bags, const uint32_t* slots, NormLimit limit,
                  RowType type, void* output, int64_t* argmax, const Parallel& parallel) {
  std::atomic<int64_t> hits = 0;
  with_row_type(store.layout().type, [&]<class Type>(Type) {
    with_row_type(type, [&]<class Output>(Output) {
      const Pooling<Type, Output> pooling(store, bags, slots, limit, output, argmax, hits);
      parallel(0, bags.bags, grain_of(store, bags), pooling);
    });
  });
  return hits;
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
        Meta& meta = store.meta(static_cast<uint32_t>(slots[i]));
        decode<Type>(row, meta.scale, dim, values.data());
        const float factor = limit_factor(values.data(), dim, limit);
        if (factor == 1.0F) continue;
        for (float& value : values) value *= factor;
        meta.scale *= factor;
        encode_nearest<Type>(row, meta.scale, dim, values.data());
        meta.stamps.changed = clock;
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
