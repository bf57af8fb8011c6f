// What the operators of tables on every device share: how tables are numbered, and what their
// arguments mean.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "ops/embedding/bags.h"
#include "ops/embedding/new_tensors.h"
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
  /// Has `number`, or a new one where it is 0, stand for the table of `other` too.
  int64_t name(int64_t number, int64_t other) {
    std::shared_ptr<Table> table = find(other);
    const std::lock_guard lock(mutex_);
    if (number == 0) number = ++latest_;
    std::swap(tables_[number], table);
    return number;
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

// Added to the number of a mode: `bounds` has no last element, and the last bag ends with the ids;
// or the ids have a bag in each row, and there are no bounds.
inline constexpr int64_t kOpen = 4;
inline constexpr int64_t kRows = 8;

/// `mode` is the number of a mode, with kOpen or kRows or without. No `weights` mean 1.
inline Bags bags_of(const Tensor& ids, const Tensor& bounds, const Tensor& weights, int64_t mode) {
  const int64_t positions = ids.numel();
  STD_TORCH_CHECK(positions < kMostPositions, "vramkit: at most ", kMostPositions - 1,
                  " ids at once, got ", positions);
  Bags bags{};
  bags.ids = read<int64_t>(ids);
  bags.positions = positions;
  bags.mode = static_cast<Mode>(mode & (kOpen - 1));
  bags.is_open = (mode & kOpen) != 0;
  bags.bags = positions;
  bags.width = 1;
  if ((mode & kRows) != 0) {
    bags.bags = ids.size(0);
    bags.width = ids.size(1);
  } else if (bags.mode != Mode::kNone) {
    bags.bags = bounds.numel() - (bags.is_open ? 0 : 1);
    bags.bounds = read<int64_t>(bounds);
  }
  bags.weights = weights.numel() == 0 ? nullptr : read<float>(weights);
  return bags;
}

/// Throws std::invalid_argument for bounds in the host's memory that do not fit the ids.
inline void check_ends(const Bags& bags) {
  if (bags.bounds == nullptr || (bags.is_open && bags.bags == 0)) return;
  const int64_t first = bags.bounds[0];
  const int64_t last = bags.bounds[bags.is_open ? bags.bags - 1 : bags.bags];
  if (first != 0 || last > bags.positions) {
    throw std::invalid_argument(
        format("offsets must begin with 0 and be at most the number of ids, %lld; they go from "
               "%lld to %lld",
               static_cast<long long>(bags.positions), static_cast<long long>(first),
               static_cast<long long>(last)));
  }
  if (!bags.is_open && last != bags.positions) {
    throw std::invalid_argument(format(
        "with include_last_offset, the last offset must be the number of ids, %lld, got %lld",
        static_cast<long long>(bags.positions), static_cast<long long>(last)));
  }
}

/// The same for all bounds, and for those that decrease.
inline void check_bounds(const Bags& bags) {
  check_ends(bags);
  for (int64_t bag = 0; bags.bounds != nullptr && bag < bags.bags; ++bag) {
    if (bags.begin_of(bag) <= bags.end_of(bag)) continue;
    throw std::invalid_argument("offsets must not decrease, got " +
                                std::to_string(bags.begin_of(bag)) + " before " +
                                std::to_string(bags.end_of(bag)));
  }
}

/// Throws std::invalid_argument where the bags of a lookup have got other bounds since.
inline void check_unchanged(const Bags& bags) {
  try {
    check_bounds(bags);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(
        std::string("the offsets have been changed between forward and backward, by other means "
                    "than PyTorch's, such as a NumPy array of the same memory: ") +
        error.what());
  }
}

/// One of the lookups of a call.
struct Wanted {
  Tensor ids;
  Tensor bounds;
  Tensor weights;
  int64_t table;
  int64_t mode;  // with kOpen or kRows or without
  ScalarType dtype;
  int64_t dim;
  NormLimit limit;

  Bags bags() const { return bags_of(ids, bounds, weights, mode); }

  /// The shape of the ids, or the number of bags, and the width of the rows.
  std::vector<int64_t> shape(const Bags& bags) const {
    std::vector<int64_t> result;
    if (bags.mode == Mode::kNone) {
      const auto sizes = ids.sizes();
      result.assign(sizes.begin(), sizes.end());
    } else {
      result.push_back(bags.bags);
    }
    result.push_back(dim);
    return result;
  }
  void check_dim(const RowLayout& layout) const {
    STD_TORCH_CHECK(layout.dim == dim, "vramkit: table ", table, " has rows of ", layout.dim,
                    " values, the call expects ", dim);
  }
};

/// Of each lookup: ids, bounds and weights in `parts`; table, mode, row type of the output and
/// width in `plan`; the norm's limit and its degree in `limits`.
inline std::vector<Wanted> wanted_of(const std::vector<Tensor>& parts,
                                     const std::vector<int64_t>& plan,
                                     const std::vector<double>& limits) {
  const size_t count = plan.size() / 4;
  STD_TORCH_CHECK(
      plan.size() == 4 * count && parts.size() == 3 * count && limits.size() == 2 * count,
      "vramkit: a call of ", parts.size(), " tensors, ", plan.size(), " integers and ",
      limits.size(), " numbers");
  std::vector<Wanted> wanted;
  wanted.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    wanted.push_back({parts[3 * i],
                      parts[3 * i + 1],
                      parts[3 * i + 2],
                      plan[4 * i],
                      plan[4 * i + 1],
                      scalar_type_of(static_cast<RowType>(plan[4 * i + 2])),
                      plan[4 * i + 3],
                      {limits[2 * i], limits[2 * i + 1]}});
  }
  return wanted;
}

/// Lookups that may run together, by number: tables are looked up once in each round, in the order
/// of the call.
template <class Table>
std::vector<std::vector<size_t>> rounds_of(const std::vector<std::shared_ptr<Table>>& tables) {
  std::map<const Table*, size_t> seen;
  std::vector<std::vector<size_t>> rounds;
  for (size_t i = 0; i < tables.size(); ++i) {
    const size_t round = seen[tables[i].get()]++;
    if (round == rounds.size()) rounds.emplace_back();
    rounds[round].push_back(i);
  }
  return rounds;
}

/// Locks each table once, always in the same order, so that calls never wait for each other.
template <class Table>
auto lock_all(const std::vector<std::shared_ptr<Table>>& tables) {
  std::vector<Table*> distinct;
  for (const auto& table : tables) distinct.push_back(table.get());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<std::unique_lock<decltype(Table::mutex)>> locks;
  for (Table* const table : distinct) locks.emplace_back(table->mutex);
  return locks;
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

/// What an update takes of each table: the learning rate, its decay, two betas, epsilon, and the
/// gradients' factor.
inline constexpr size_t kUpdateNumbers = 6;

inline void check_numbers(size_t count, const std::vector<double>& numbers) {
  STD_TORCH_CHECK(numbers.size() == count * kUpdateNumbers, "vramkit: an update of ", count,
                  " tables with ", numbers.size(), " numbers");
}

inline Step step_of(const double* from, Rule rule, int64_t step) {
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
// Integers of a gradient in their plans.
enum Planned { kTable, kMode, kByFrequency, kPlanned };

/// Throws for tensors of a gradient that are not those of its forward pass, as hooks of saved
/// tensors may return them. `head` is the size of what forward has told of the distinct ids.
inline void check_gradient(const Tensor* part, const Bags& bags, uint32_t dim, int64_t head) {
  const auto is = [&](Part number, ScalarType type, int64_t count) {
    const Tensor& of = part[number];
    return of.numel() == count && (count == 0 || (of.scalar_type() == type && of.is_contiguous()));
  };
  const int64_t values = bags.bags * dim;
  const bool fits = is(kIds, ScalarType::Long, bags.positions) &&
                    is(kBounds, ScalarType::Long, part[kBounds].numel()) &&
                    is(kWeights, ScalarType::Float, bags.weights == nullptr ? 0 : bags.positions) &&
                    is(kInverse, ScalarType::Int, bags.positions) &&
                    is(kDistinct, ScalarType::Long, head) &&
                    is(kArgmax, ScalarType::Long, bags.mode == Mode::kMax ? values : 0) &&
                    part[kGrad].numel() == values;
  STD_TORCH_CHECK(fits,
                  "vramkit: backward has got other tensors than the lookup has saved; hooks of "
                  "saved tensors must return what they were given");
}

/// The gradients of one table, by their numbers in a call.
struct OfTable {
  int64_t table;
  std::vector<size_t> gradients;
};

/// In the order in which tables first occur.
inline std::vector<OfTable> by_table(const std::vector<Tensor>& parts,
                                     const std::vector<int64_t>& plan) {
  const size_t count = plan.size() / kPlanned;
  STD_TORCH_CHECK(plan.size() == count * kPlanned && parts.size() == count * kParts,
                  "vramkit: gradients of ", parts.size(), " tensors and ", plan.size(),
                  " integers");
  std::vector<OfTable> result;
  for (size_t i = 0; i < count; ++i) {
    const int64_t table = plan[i * kPlanned + kTable];
    const auto found = std::find_if(result.begin(), result.end(),
                                    [&](const OfTable& of) { return of.table == table; });
    if (found == result.end()) {
      result.push_back({table, {i}});
    } else {
      found->gradients.push_back(i);
    }
  }
  return result;
}

}  // namespace vramkit::embedding
