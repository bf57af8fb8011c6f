#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "ops/embedding/batches.h"
#include "ops/embedding/row_codec.h"

namespace vramkit::embedding {
namespace {

constexpr int64_t kFloatsPerTask = 1 << 14;
// Of the rows that are fetched before they are updated.
constexpr int64_t kFetchedBytes = 4096;

template <class Type>
void add_scaled(const void* grads, uint64_t bag, uint32_t dim, float factor, float* to) {
  const auto* const from = static_cast<const typename Type::Stored*>(grads) + bag * dim;
  for (uint32_t i = 0; i < dim; ++i) to[i] += factor * Type::load(from[i]);
}

/// Adds the elements whose largest value came from `position`.
void add_largest(const GradientBatch& batch, uint64_t bag, int64_t position, uint32_t dim,
                 float factor, float* to) {
  const int64_t* const argmax = batch.argmax + bag * dim;
  with_row_type(batch.type, [&]<class Type>(Type) {
    const auto* const from = static_cast<const typename Type::Stored*>(batch.grad) + bag * dim;
    for (uint32_t i = 0; i < dim; ++i) {
      if (argmax[i] == position) to[i] += factor * Type::load(from[i]);
    }
  });
}

}  // namespace

Gradients::Gradients(const Store& store, std::vector<GradientBatch> batches)
    : dim_(store.layout().dim), batches_(std::move(batches)) {
  merge(store);
  starts_.assign(slots_.size() + 1, 0);
  for (size_t number = 0; number < batches_.size(); ++number) {
    const GradientBatch& batch = batches_[number];
    for (int64_t i = 0; i < batch.bags.positions; ++i) {
      if (batch.inverse[i] != kMissing) ++starts_[merged_[number][batch.inverse[i]] + 1];
    }
  }
  for (size_t i = 0; i + 1 < starts_.size(); ++i) starts_[i + 1] += starts_[i];
  positions_.resize(starts_.back());
  std::vector<uint32_t> next(starts_.begin(), starts_.end() - 1);
  for (size_t number = 0; number < batches_.size(); ++number) {
    place(batches_[number], static_cast<uint32_t>(number), next);
  }
}

void Gradients::merge(const Store& store) {
  std::unordered_map<int64_t, uint32_t> known;
  for (const GradientBatch& batch : batches_) {
    const auto count = static_cast<size_t>(batch.unique);
    std::vector<uint32_t> merged(count);
    std::vector<uint32_t> slots(count);
    if (batch.epoch == store.epoch()) {
      for (size_t i = 0; i < count; ++i) slots[i] = static_cast<uint32_t>(batch.slots[i]);
    } else {
      // Rows have been evicted since: what is left of the batch may have moved.
      store.find(batch.keys, batch.unique, slots.data());
    }
    for (size_t i = 0; i < count; ++i) {
      merged[i] = static_cast<uint32_t>(slots_.size());
      if (batches_.size() > 1) {
        const auto [found, is_new] = known.try_emplace(batch.keys[i], merged[i]);
        merged[i] = found->second;
        if (!is_new) continue;
      }
      slots_.push_back(slots[i]);
    }
    merged_.push_back(std::move(merged));
  }
}

void Gradients::place(const GradientBatch& batch, uint32_t number, std::vector<uint32_t>& next) {
  std::vector<uint32_t> counts(batch.by_frequency ? static_cast<size_t>(batch.unique) : 0);
  for (int64_t i = 0; batch.by_frequency && i < batch.bags.positions; ++i) {
    if (batch.inverse[i] != kMissing) ++counts[batch.inverse[i]];
  }
  const Bags& bags = batch.bags;
  for (int64_t bag = 0; bag < bags.bags; ++bag) {
    const int64_t begin = bags.mode == Mode::kNone ? bag : bags.begin_of(bag);
    const int64_t end = bags.mode == Mode::kNone ? bag + 1 : bags.end_of(bag);
    const auto members = std::count_if(batch.inverse + begin, batch.inverse + end,
                                       [](uint32_t of) { return of != kMissing; });
    const float share = bags.mode == Mode::kMean ? 1.0F / static_cast<float>(members) : 1.0F;
    for (int64_t at = begin; at < end; ++at) {
      const uint32_t of = batch.inverse[at];
      if (of == kMissing) continue;
      float factor = bags.weights == nullptr ? share : share * bags.weights[at];
      if (batch.by_frequency) factor /= static_cast<float>(counts[of]);
      positions_[next[merged_[number][of]]++] = {number, static_cast<uint32_t>(bag),
                                                 static_cast<uint32_t>(at), factor};
    }
  }
}

void Gradients::sum(int64_t row, float* to) const {
  std::fill(to, to + dim_, 0.0F);
  const auto at = static_cast<size_t>(row);
  for (uint32_t i = starts_[at]; i < starts_[at + 1]; ++i) {
    const Position& from = positions_[i];
    const GradientBatch& batch = batches_[from.batch];
    if (batch.bags.mode == Mode::kMax) {
      add_largest(batch, from.bag, from.position, dim_, from.factor, to);
    } else {
      with_row_type(batch.type, [&]<class Type>(Type) {
        add_scaled<Type>(batch.grad, from.bag, dim_, from.factor, to);
      });
    }
  }
}

/// Calls loop(first, last) for parts of the rows that have about as many positions each.
template <class Loop>
void Gradients::for_rows(const Parallel& parallel, const Loop& loop) const {
  const auto row_at = [&](int64_t position) {
    const auto found =
        std::lower_bound(starts_.begin(), starts_.end() - 1, static_cast<uint32_t>(position));
    return found - starts_.begin();
  };
  const auto positions = static_cast<int64_t>(positions_.size());
  parallel(0, positions, std::max<int64_t>(1, kFloatsPerTask / dim_),
           [&](int64_t begin, int64_t end) { loop(row_at(begin), row_at(end)); });
}

double Gradients::norm(const Parallel& parallel) const {
  std::vector<double> squares(slots_.size());
  for_rows(parallel, [&](int64_t first, int64_t last) {
    std::vector<float> grad(dim_);
    for (int64_t row = first; row < last; ++row) {
      sum(row, grad.data());
      double total = 0;
      for (const float value : grad) total += static_cast<double>(value) * value;
      squares[static_cast<size_t>(row)] = total;
    }
  });
  double total = 0;
  for (const double square : squares) total += square;
  return std::sqrt(total);
}

int64_t Gradients::lost() const {
  int64_t total = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i] == kMissing) total += int64_t{starts_[i + 1]} - starts_[i];
  }
  return total;
}

void Gradients::apply(Store& store, const Step& step, float factor, int64_t number,
                      const Parallel& parallel) const {
  const RowLayout layout = store.layout();
  const uint32_t clock = store.tick();
  const uint64_t draws = draws_of(store.config().seed, number);
  const int64_t ahead = std::max<int64_t>(1, kFetchedBytes / layout.stride_bytes());
  with_row_type(layout.type, [&]<class Type>(Type) {
    for_rows(parallel, [&](int64_t first, int64_t last) {
      std::vector<float> grad(dim_);
      std::vector<float> values(dim_);
      for (int64_t i = first; i < std::min(first + ahead, last); ++i) {
        store.prefetch(slots_[static_cast<size_t>(i)]);
      }
      for (int64_t i = first; i < last; ++i) {
        const uint32_t slot = slots_[static_cast<size_t>(i)];
        if (slot == kMissing) continue;
        if (i + ahead < last) store.prefetch(slots_[static_cast<size_t>(i + ahead)]);
        sum(i, grad.data());
        if (factor != 1.0F) {
          for (float& value : grad) value *= factor;
        }
        char* const row = store.row(slot);
        Meta& meta = store.meta(slot);
        decode<Type>(row, meta.scale, dim_, values.data());
        auto* const state = reinterpret_cast<float*>(row + layout.state_at());
        apply_rule(layout, step, grad.data(), state, meta.sum, values.data());
        const uint64_t draw = mix(draws, static_cast<uint64_t>(meta.key));
        encode_stochastic<Type>(row, meta.scale, dim_, values.data(), draw);
        meta.stamps.changed = clock;
      }
    });
  });
}

}  // namespace vramkit::embedding
