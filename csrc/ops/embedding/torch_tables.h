// What the operators of tables on every device share: how tables are numbered, and what their
// arguments mean.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/error.h"
#include "ops/embedding/bags.h"
#include "ops/embedding/rules.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int64_t kMostPositions = UINT32_MAX - 15;

/// Tables by number. Thread-safe; a table that is removed lives until its last user lets go.
template <class Table>
class TablesOf {
 public:
  int64_t add(std::shared_ptr<Table> table) {
    const std::lock_guard lock(mutex_);
    tables_.emplace(++latest_, std::move(table));
    return latest_;
  }
  std::shared_ptr<Table> find(int64_t number) {
    const std::lock_guard lock(mutex_);
    const auto found = tables_.find(number);
    STD_TORCH_CHECK(found != tables_.end(), "vramkit: there is no table ", number);
    return found->second;
  }
  /// Returns the table, or null.
  std::shared_ptr<Table> remove(int64_t number) {
    const std::lock_guard lock(mutex_);
    auto node = tables_.extract(number);
    return node.empty() ? nullptr : std::move(node.mapped());
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Table>> tables_;
  int64_t latest_ = 0;
};

/// Python sees it as a MemoryError.
class FullError : public std::bad_alloc {
 public:
  explicit FullError(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

/// Python sees errors of the core as ValueError and MemoryError.
template <class F>
auto translated(F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    if (error.status() == Status::kOutOfMemory) throw FullError(error.what());
    throw std::invalid_argument(error.what());
  }
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline RowType row_type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return RowType::kFloat32;
    case ScalarType::BFloat16:
      return RowType::kBFloat16;
    case ScalarType::Half:
      return RowType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "vramkit: expected float32, bfloat16 or float16");
  }
}

inline ScalarType scalar_type_of(RowType type) {
  constexpr std::array kTypes{ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                              ScalarType::Char};
  return kTypes[static_cast<size_t>(type)];
}

/// `bounds` has an element more than there are bags, `weights` one for each id; empty means none.
inline Bags bags_of(const Tensor& ids, const Tensor& bounds, const Tensor& weights, int64_t mode) {
  const int64_t positions = ids.numel();
  STD_TORCH_CHECK(positions < kMostPositions, "vramkit: at most ", kMostPositions - 1,
                  " ids at once, got ", positions);
  Bags bags{};
  bags.ids = read<int64_t>(ids);
  bags.positions = positions;
  bags.mode = static_cast<Mode>(mode);
  bags.bags = bags.mode == Mode::kNone ? positions : bounds.numel() - 1;
  bags.bounds = bags.mode == Mode::kNone ? nullptr : read<int64_t>(bounds);
  bags.weights = weights.numel() == 0 ? nullptr : read<float>(weights);
  return bags;
}

inline StoreConfig config_of(const Tensor& integers, const Tensor& numbers) {
  const int64_t* const from = read<int64_t>(integers);
  StoreConfig config;
  config.layout = {static_cast<RowType>(from[0]), static_cast<Rule>(from[1]),
                   static_cast<uint32_t>(from[2])};
  config.num_rows = from[3];
  config.budget_bytes = static_cast<uint64_t>(from[4]);
  config.when_full = static_cast<WhenFull>(from[5]);
  config.seed = static_cast<uint64_t>(from[6]);
  if (from[7] != 0) config.padding = from[8];
  config.placement = static_cast<Placement>(from[9]);
  config.deviation = static_cast<float>(read<double>(numbers)[0]);
  config.initial_state = static_cast<float>(read<double>(numbers)[1]);
  return config;
}

/// The numbers are the learning rate, its decay, two betas, epsilon, and the gradients' factor.
inline Step step_of(const Tensor& numbers, Rule rule, int64_t step) {
  const double* const from = read<double>(numbers);
  return {rate_at(rule, from[0], from[1], from[2], from[3], step), static_cast<float>(from[2]),
          static_cast<float>(from[3]), static_cast<float>(from[4])};
}

// What table_insert returns of the distinct ids begins with this.
struct Head {
  int64_t unique;
  int64_t epoch;
  int64_t version;
};
inline constexpr int64_t kHead = sizeof(Head) / sizeof(int64_t);

// Tensors of a gradient in the lists of `update` and `gradient_norm`.
enum Part { kGrad, kIds, kBounds, kWeights, kInverse, kDistinct, kArgmax, kParts };

}  // namespace vramkit::embedding
