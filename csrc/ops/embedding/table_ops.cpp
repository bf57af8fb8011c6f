// The operators of tables on the CPU. A table is named by a number; its memory is torch's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/huge_pages.h"
#include "ops/embedding/batches.h"
#include "ops/embedding/row_codec.h"
#include "ops/embedding/store.h"
#include "ops/embedding/torch_tables.h"

namespace vramkit::embedding {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Table {
  explicit Table(const StoreConfig& config, Allocate allocate)
      : store(config, std::move(allocate)) {}
  Store store;
  std::shared_mutex mutex;  // shared where only read
  std::atomic<int64_t> lookups{0};
  std::atomic<int64_t> hits{0};
  int64_t steps = 0;
  int64_t version = 0;  // of the values
  int64_t lost = 0;     // positions whose gradient came after their row was given up
};

class TensorMemory : public Memory {
 public:
  explicit TensorMemory(uint64_t bytes)
      : tensor_(new_on_host(static_cast<int64_t>(bytes), ScalarType::Byte)) {
    prefer_huge_pages(data(), bytes);
  }
  char* data() override { return static_cast<char*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

/// torch's loop would turn any exception into a runtime_error.
void in_parallel(int64_t begin, int64_t end, int64_t grain, const Loop& loop) {
  std::mutex mutex;
  std::exception_ptr first;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
    try {
      loop(from, to);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (first == nullptr) first = std::current_exception();
    }
  });
  if (first != nullptr) std::rethrow_exception(first);
}

Bags checked_bags_of(const Wanted& wanted) {
  const Bags bags = wanted.bags();
  check_bounds(bags);
  return bags;
}

Tensor new_argmax(const Tensor& ids, const Table& table, const Bags& bags) {
  const int64_t count = bags.mode == Mode::kMax ? bags.bags * table.store.layout().dim : 0;
  return new_like(ids, count, ScalarType::Long);
}

std::vector<uint32_t> find(const Table& table, const Bags& bags) {
  std::vector<uint32_t> slots(static_cast<size_t>(bags.positions));
  in_parallel(0, bags.positions, 2048, [&](int64_t begin, int64_t end) {
    table.store.find(bags.ids + begin, end - begin, slots.data() + begin);
  });
  return slots;
}

TablesOf<Table>& tables() {
  static auto* const all = new TablesOf<Table>;
  return *all;
}

std::shared_ptr<Table> table_of(int64_t number) { return tables().find(number); }

int64_t create(Tensor /*selects the CPU*/, Tensor integers, Tensor numbers) {
  const StoreConfig config = without_tiers(config_of(integers, numbers));
  return tables().add(translated([&] {
    return std::make_shared<Table>(
        config, [](uint64_t bytes) { return std::make_unique<TensorMemory>(bytes); });
  }));
}

void close(Tensor /*selects the CPU*/, int64_t number) { tables().remove(number); }

int64_t name(Tensor /*selects the CPU*/, int64_t number, int64_t table) {
  return tables().name(number, table);
}

Tensor look_up(const Wanted& wanted) {
  const std::shared_ptr<Table> table = table_of(wanted.table);
  const Bags bags = checked_bags_of(wanted);
  const std::shared_lock lock(table->mutex);
  wanted.check_dim(table->store.layout());
  Tensor output = new_like(wanted.ids, wanted.shape(bags), wanted.dtype);
  Tensor argmax = new_argmax(wanted.ids, *table, bags);
  const int64_t hits =
      pool_bags(table->store, bags, nullptr, wanted.limit, row_type_of(wanted.dtype),
                output.mutable_data_ptr(), write<int64_t>(argmax), in_parallel);
  table->lookups.fetch_add(bags.positions, std::memory_order_relaxed);
  table->hits.fetch_add(hits, std::memory_order_relaxed);
  return output;
}

Tensor read_bags(Tensor ids, Tensor bounds, Tensor weights, int64_t number, int64_t mode,
                 ScalarType dtype, int64_t dim, double max_norm, double norm_type) {
  return look_up({ids, bounds, weights, number, mode, dtype, dim, {max_norm, norm_type}});
}

std::vector<Tensor> read_many(std::vector<Tensor> parts, std::vector<int64_t> plan,
                              std::vector<double> limits) {
  std::vector<Tensor> outputs;
  for (const Wanted& wanted : wanted_of(parts, plan, limits)) outputs.push_back(look_up(wanted));
  return outputs;
}

/// A training lookup, in steps that several tables take together.
class Training {
 public:
  explicit Training(Wanted wanted)
      : wanted_(std::move(wanted)),
        table_(table_of(wanted_.table)),
        bags_(checked_bags_of(wanted_)) {}

  const std::shared_ptr<Table>& table() const { return table_; }

  /// Throws for ids that cannot get a row, and changes none.
  void prepare() {
    wanted_.check_dim(store().layout());
    inverse_ = new_like(wanted_.ids, bags_.positions, ScalarType::Int);
    distinct_ = new_like(wanted_.ids, kHead + 2 * bags_.positions, ScalarType::Long);
    batch_ = translated([&] {
      return store().prepare(bags_.ids, bags_.positions, in_parallel, of(), keys(), slots());
    });
  }

  void commit() {
    translated([&] { store().commit(batch_, in_parallel, keys(), slots()); });
    if (wanted_.limit.most > 0) {
      limit_norms(store(), slots(), batch_.unique, wanted_.limit, in_parallel);
      ++table_->version;
    }
    table_->lookups += batch_.unique;
    table_->hits += batch_.unique - static_cast<int64_t>(batch_.fresh.size());
    const Head made{batch_.unique, store().epoch(), table_->version};
    std::memcpy(write<int64_t>(distinct_), &made, sizeof made);
  }

  /// Output, inverse, distinct ids, argmax.
  std::array<Tensor, 4> pool() const {
    const std::vector<uint32_t> found = slots_of_positions();
    Tensor output = new_like(wanted_.ids, wanted_.shape(bags_), wanted_.dtype);
    Tensor argmax = new_argmax(wanted_.ids, *table_, bags_);
    pool_bags(store(), bags_, found.data(), {0, wanted_.limit.degree}, row_type_of(wanted_.dtype),
              output.mutable_data_ptr(), write<int64_t>(argmax), in_parallel);
    return {output, inverse_, distinct_, argmax};
  }

 private:
  Store& store() const { return table_->store; }
  uint32_t* of() const { return write<uint32_t>(inverse_); }
  int64_t* keys() const { return write<int64_t>(distinct_) + kHead; }
  int64_t* slots() const { return keys() + bags_.positions; }

  std::vector<uint32_t> slots_of_positions() const {
    std::vector<uint32_t> found(static_cast<size_t>(bags_.positions), kMissing);
    const bool has_padding = store().config().padding.has_value();
    for (int64_t i = 0; i < bags_.positions; ++i) {
      uint32_t& slot = found[static_cast<size_t>(i)];
      if (of()[i] != kMissing) {
        slot = static_cast<uint32_t>(slots()[of()[i]]);
      } else if (has_padding) {
        store().find(bags_.ids + i, 1, &slot);
      }
    }
    return found;
  }

  Wanted wanted_;
  std::shared_ptr<Table> table_;
  Bags bags_;
  Tensor inverse_;
  Tensor distinct_;
  Store::Inserting batch_;
};

/// Of each lookup what Training::pool returns.
std::vector<Tensor> train(std::vector<Wanted> wanted) {
  std::vector<Training> all;
  std::vector<std::shared_ptr<Table>> used;
  for (Wanted& one : wanted) {
    all.emplace_back(std::move(one));
    used.push_back(all.back().table());
  }
  const auto locks = lock_all(used);
  std::vector<Tensor> results(4 * all.size());
  for (const std::vector<size_t>& round : rounds_of(used)) {
    for (const size_t i : round) all[i].prepare();
    for (const size_t i : round) all[i].commit();
    for (const size_t i : round) {
      std::array<Tensor, 4> found = all[i].pool();
      std::move(found.begin(), found.end(), results.begin() + static_cast<std::ptrdiff_t>(4 * i));
    }
  }
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> insert_bags(Tensor ids, Tensor bounds, Tensor weights,
                                                       int64_t number, int64_t mode,
                                                       ScalarType dtype, int64_t dim,
                                                       double max_norm, double norm_type) {
  std::vector<Tensor> found =
      train({{ids, bounds, weights, number, mode, dtype, dim, {max_norm, norm_type}}});
  return {found[0], found[1], found[2], found[3]};
}

std::vector<Tensor> insert_many(std::vector<Tensor> parts, std::vector<int64_t> plan,
                                std::vector<double> limits) {
  return train(wanted_of(parts, plan, limits));
}

std::vector<GradientBatch> batches_of(const std::vector<Tensor>& parts,
                                      const std::vector<int64_t>& plan,
                                      const std::vector<size_t>& gradients, uint32_t dim) {
  std::vector<GradientBatch> batches;
  for (const size_t i : gradients) {
    const Tensor* const part = &parts[i * kParts];
    const int64_t* const planned = &plan[i * kPlanned];
    const Bags bags = bags_of(part[kIds], part[kBounds], part[kWeights], planned[kMode]);
    check_gradient(part, bags, dim, kHead + 2 * bags.positions);
    check_unchanged(bags);
    Head head;
    std::memcpy(&head, part[kDistinct].const_data_ptr(), sizeof head);
    const int64_t* const keys = read<int64_t>(part[kDistinct]) + kHead;
    batches.push_back({bags, row_type_of(part[kGrad].scalar_type()), part[kGrad].const_data_ptr(),
                       read<uint32_t>(part[kInverse]), keys, keys + part[kIds].numel(), head.unique,
                       head.epoch, read<int64_t>(part[kArgmax]), planned[kByFrequency] != 0});
  }
  return batches;
}

void update(std::vector<Tensor> parts, std::vector<int64_t> plan, std::vector<double> numbers) {
  const std::vector<OfTable> all = by_table(parts, plan);
  check_numbers(all.size(), numbers);
  const double* of_table = numbers.data();
  for (const OfTable& of : all) {
    const std::shared_ptr<Table> table = table_of(of.table);
    const std::unique_lock lock(table->mutex);
    const uint32_t dim = table->store.layout().dim;
    const Gradients gradients(table->store, batches_of(parts, plan, of.gradients, dim));
    ++table->steps;
    ++table->version;
    table->lost += gradients.lost();
    const Step step = step_of(of_table, table->store.layout().rule, table->steps);
    const auto factor = static_cast<float>(of_table[5]);
    gradients.apply(table->store, step, factor, table->steps, in_parallel);
    of_table += kUpdateNumbers;
  }
}

/// Of one table.
Tensor gradient_norm(std::vector<Tensor> parts, std::vector<int64_t> plan) {
  const std::vector<OfTable> of = by_table(parts, plan);
  const std::shared_ptr<Table> table = table_of(of.at(0).table);
  const std::shared_lock lock(table->mutex);
  Tensor result = torch::stable::new_empty(parts[kIds], {}, ScalarType::Double);
  const uint32_t dim = table->store.layout().dim;
  *write<double>(result) =
      Gradients(table->store, batches_of(parts, plan, of[0].gradients, dim)).norm(in_parallel);
  return result;
}

Tensor weights_gradient(Tensor grad, Tensor ids, Tensor bounds, Tensor distinct, int64_t number,
                        int64_t mode) {
  const std::shared_ptr<Table> table = table_of(number);
  const Bags bags = bags_of(ids, bounds, torch::stable::new_empty(ids, {0}), mode);
  check_unchanged(bags);
  const std::shared_lock lock(table->mutex);
  Head head{};
  if (distinct.numel() != 0) std::memcpy(&head, distinct.const_data_ptr(), sizeof head);
  STD_TORCH_CHECK(distinct.numel() == 0 || head.version == table->version,
                  "vramkit: the rows that the gradient of per_sample_weights needs have been "
                  "updated since forward; run its backward before the next update");
  const std::vector<uint32_t> slots = find(*table, bags);
  Tensor result = torch::stable::new_zeros(ids, {ids.numel()}, ScalarType::Float);
  weight_gradients(table->store, bags, slots.data(), row_type_of(grad.scalar_type()),
                   grad.const_data_ptr(), write<float>(result), in_parallel);
  return result;
}

/// Of all rows; empty if not `wanted`.
Tensor keys_of(const Store& store, const Tensor& like, bool wanted) {
  const uint32_t count = wanted ? store.size() : 0;
  Tensor keys = torch::stable::new_empty(like, {count}, ScalarType::Long);
  for (uint32_t slot = 0; slot < count; ++slot) write<int64_t>(keys)[slot] = store.key_of(slot);
  return keys;
}

/// Keys, rows as stored, scale and sum, state, stamps: of the rows changed after `since`. Then the
/// keys of all rows, if `with_present`, and steps and clock, all of the same moment.
std::vector<Tensor> dump(Tensor like, int64_t number, int64_t since, bool with_present) {
  const std::shared_ptr<Table> table = table_of(number);
  const std::shared_lock lock(table->mutex);
  const Store& store = table->store;
  const RowLayout& layout = store.layout();
  std::vector<uint32_t> chosen;
  for (uint32_t slot = 0; slot < store.size(); ++slot) {
    if (store.stamps(slot).changed > since) chosen.push_back(slot);
  }
  const auto count = static_cast<int64_t>(chosen.size());
  const auto make = [&](int64_t width, ScalarType type) {
    return torch::stable::new_empty(like, {count, width}, type);
  };
  Tensor keys = torch::stable::new_empty(like, {count}, ScalarType::Long);
  Tensor rows = make(layout.dim, scalar_type_of(layout.type));
  Tensor headers = make(2, ScalarType::Float);
  Tensor state = make(layout.state_count(), ScalarType::Float);
  Tensor stamps = make(3, ScalarType::Int);
  in_parallel(0, count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t slot = chosen[static_cast<size_t>(i)];
      const char* const row = store.row(slot);
      const Meta& meta = store.meta(slot);
      write<int64_t>(keys)[i] = meta.key;
      write<float>(headers)[2 * i] = meta.scale;
      write<float>(headers)[2 * i + 1] = meta.sum;
      std::memcpy(write<char>(rows) + i * layout.value_bytes(), row, layout.value_bytes());
      std::copy_n(reinterpret_cast<const float*>(row + layout.state_at()), layout.state_count(),
                  write<float>(state) + i * layout.state_count());
      std::memcpy(write<char>(stamps) + i * static_cast<int64_t>(sizeof(Stamps)), &meta.stamps,
                  sizeof(Stamps));
    }
  });
  Tensor counters = torch::stable::new_empty(like, {2}, ScalarType::Long);
  write<int64_t>(counters)[0] = table->steps;
  write<int64_t>(counters)[1] = store.clock();
  return {keys, rows, headers, state, stamps, keys_of(store, like, with_present), counters};
}

/// Stores rows, rounded to the nearest, in the place of those that have the same keys.
void load(Tensor keys, Tensor rows, Tensor headers, Tensor state, Tensor stamps, int64_t number) {
  const std::shared_ptr<Table> table = table_of(number);
  const std::unique_lock lock(table->mutex);
  Store& store = table->store;
  const RowLayout layout = store.layout();
  const int64_t count = keys.numel();
  const auto size = static_cast<size_t>(count);
  std::vector<uint32_t> slots(size);
  std::vector<uint32_t> inverse(size);
  std::vector<int64_t> distinct(size);
  std::vector<int64_t> places(size);
  translated([&] {
    return store.insert(read<int64_t>(keys), count, in_parallel, inverse.data(), distinct.data(),
                        places.data(), true);
  });
  store.find(read<int64_t>(keys), count, slots.data());
  ++table->version;
  with_row_type(layout.type, [&]<class Type>(Type) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t slot = slots[static_cast<size_t>(i)];
      if (slot == kMissing) continue;
      char* const row = store.row(slot);
      const float* const values = read<float>(rows) + i * layout.dim;
      Meta& meta = store.meta(slot);
      if (headers.numel() != 0) {
        meta.scale = read<float>(headers)[2 * i];
        meta.sum = read<float>(headers)[2 * i + 1];
      } else if (Type::kScaled) {
        meta.scale = fitting_scale(0, largest_magnitude(values, layout.dim));
      }
      encode_nearest<Type>(row, meta.scale, layout.dim, values);
      if (state.numel() != 0) {
        std::memcpy(row + layout.state_at(), read<float>(state) + i * layout.state_count(),
                    4 * layout.state_count());
      }
      meta.stamps.changed = store.clock();
      if (stamps.numel() != 0) {
        std::memcpy(&meta.stamps, read<int32_t>(stamps) + 3 * i, sizeof(Stamps));
      }
    }
  });
  store.stamps_changed();
}

/// All rows are in host memory.
bool prefetch(Tensor /*selects the CPU*/, int64_t /*number*/) { return false; }

Tensor facts(Tensor like, int64_t number) {
  const std::shared_ptr<Table> table = table_of(number);
  const std::shared_lock lock(table->mutex);
  const StoreFacts of = table->store.facts();
  const std::array<int64_t, 10> all{of.rows,        of.bytes,    of.capacity,  of.evictions,
                                    table->lookups, table->hits, table->steps, table->store.clock(),
                                    of.bytes,       table->lost};
  Tensor result = torch::stable::new_empty(like, {all.size()}, ScalarType::Long);
  std::memcpy(write<int64_t>(result), all.data(), sizeof all);
  return result;
}

/// Continues with the counters of a checkpoint.
void resume(Tensor /*selects the CPU*/, Tensor counters, int64_t number) {
  const std::shared_ptr<Table> table = table_of(number);
  const std::unique_lock lock(table->mutex);
  table->steps = read<int64_t>(counters)[0];
  table->store.set_clock(static_cast<uint32_t>(read<int64_t>(counters)[1]));
}

void check(Tensor /*selects the CPU*/, int64_t number) {
  const std::shared_ptr<Table> table = table_of(number);
  const std::shared_lock lock(table->mutex);
  translated([&] { table->store.check_valid(); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def("table_create(Tensor like, Tensor integers, Tensor numbers) -> int");
  m.def("table_close(Tensor like, int table) -> ()");
  m.def("table_name(Tensor like, int number, int table) -> int");
  m.def(
      "table_read(Tensor ids, Tensor bounds, Tensor weights, int table, int mode, ScalarType "
      "dtype, int dim, float max_norm, float norm_type) -> Tensor");
  m.def("tables_read(Tensor[] parts, int[] plan, float[] limits) -> Tensor[]");
  m.def(
      "table_insert(Tensor ids, Tensor bounds, Tensor weights, int table, int mode, ScalarType "
      "dtype, int dim, float max_norm, float norm_type) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("tables_insert(Tensor[] parts, int[] plan, float[] limits) -> Tensor[]");
  m.def("tables_update(Tensor[] parts, int[] plan, float[] numbers) -> ()");
  m.def("table_gradient_norm(Tensor[] parts, int[] plan) -> Tensor");
  m.def(
      "table_weights_gradient(Tensor grad, Tensor ids, Tensor bounds, Tensor distinct, int table, "
      "int mode) -> Tensor");
  m.def("table_dump(Tensor like, int table, int since, bool with_present) -> Tensor[]");
  m.def(
      "table_load(Tensor keys, Tensor rows, Tensor headers, Tensor state, Tensor stamps, "
      "int table) -> ()");
  m.def("table_prefetch(Tensor ids, int table) -> bool");
  m.def("table_facts(Tensor like, int table) -> Tensor");
  m.def("table_resume(Tensor like, Tensor counters, int table) -> ()");
  m.def("table_check(Tensor like, int table) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("table_create", TORCH_BOX(&create));
  m.impl("table_close", TORCH_BOX(&close));
  m.impl("table_name", TORCH_BOX(&name));
  m.impl("table_read", TORCH_BOX(&read_bags));
  m.impl("tables_read", TORCH_BOX(&read_many));
  m.impl("table_insert", TORCH_BOX(&insert_bags));
  m.impl("tables_insert", TORCH_BOX(&insert_many));
  m.impl("tables_update", TORCH_BOX(&update));
  m.impl("table_gradient_norm", TORCH_BOX(&gradient_norm));
  m.impl("table_weights_gradient", TORCH_BOX(&weights_gradient));
  m.impl("table_dump", TORCH_BOX(&dump));
  m.impl("table_load", TORCH_BOX(&load));
  m.impl("table_prefetch", TORCH_BOX(&prefetch));
  m.impl("table_facts", TORCH_BOX(&facts));
  m.impl("table_resume", TORCH_BOX(&resume));
  m.impl("table_check", TORCH_BOX(&check));
}

}  // namespace vramkit::embedding
