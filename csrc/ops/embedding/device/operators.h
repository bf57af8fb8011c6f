// The operators of tables in a device's memory, for CUDA and, in tests, for the host.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/embedding/device/gradients.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/lookups.h"
#include "ops/embedding/device/store.h"
#include "ops/embedding/device/table.h"
#include "ops/embedding/torch_tables.h"

namespace vramkit::embedding::device {

template <class Device>
class Operators {
 public:
  using TableOf = Table<Device>;

  static int64_t create(Tensor like, Tensor integers, Tensor numbers) {
    const StoreConfig config = config_of(integers, numbers);
    auto table = translated([&] { return std::make_shared<TableOf>(config, device_of(like)); });
    Device device(device_of(like), table->mailbox);
    table->memory = device.allocate(sizeof(Control));
    device.fill(table->control(), 0, sizeof(Control));
    return tables().add(std::move(table));
  }

  static void close(Tensor like, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().remove(number);
    if (table == nullptr) return;
    const std::lock_guard lock(table->mutex);
    Device device(device_of(like), table->mailbox);
    table->store.release(device);
    device.retire(std::move(table->memory));
  }

  static Tensor read_bags(Tensor ids, Tensor bounds, Tensor weights, int64_t number, int64_t mode,
                          ScalarType dtype, int64_t dim, double max_norm, double norm_type) {
    const Wanted wanted{ids, bounds, weights, number, mode, dtype, dim, {max_norm, norm_type}};
    return Lookups<Device>(tables(), {wanted}).read()[0];
  }

  static std::vector<Tensor> read_many(std::vector<Tensor> parts, std::vector<int64_t> plan,
                                       std::vector<double> limits) {
    return Lookups<Device>(tables(), wanted_of(parts, plan, limits)).read();
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> insert_bags(Tensor ids, Tensor bounds,
                                                                Tensor weights, int64_t number,
                                                                int64_t mode, ScalarType dtype,
                                                                int64_t dim, double max_norm,
                                                                double norm_type) {
    const Wanted wanted{ids, bounds, weights, number, mode, dtype, dim, {max_norm, norm_type}};
    const std::vector<Tensor> found = Lookups<Device>(tables(), {wanted}).insert();
    return {found[0], found[1], found[2], found[3]};
  }

  static std::vector<Tensor> insert_many(std::vector<Tensor> parts, std::vector<int64_t> plan,
                                         std::vector<double> limits) {
    return Lookups<Device>(tables(), wanted_of(parts, plan, limits)).insert();
  }

  static void update(std::vector<Tensor> parts, std::vector<int64_t> plan,
                     std::vector<double> numbers) {
    const std::vector<OfTable> all = by_table(parts, plan);
    if (all.empty()) return;
    check_numbers(all.size(), numbers);
    std::vector<std::shared_ptr<TableOf>> used;
    std::vector<typename Device::Mailbox*> mailboxes;
    for (const OfTable& of : all) {
      used.push_back(tables().find(of.table));
      mailboxes.push_back(&used.back()->mailbox);
    }
    const auto locks = lock_all(used);
    for (const auto& table : used) check(table->mailbox.alarm(), table->store.config(), kEarlier);
    std::vector<TableGradients<Device>> found;
    for (size_t i = 0; i < all.size(); ++i) {
      found.push_back(gradients_of(*used[i], parts, plan, all[i].gradients));
      found.back().lost = &used[i]->control()->lost;
    }
    Device device(device_of(parts[kIds]), mailboxes);
    Gradients<Device> gradients(device, std::move(found));
    std::vector<Change> changes;
    for (size_t i = 0; i < all.size(); ++i) {
      TableOf& table = *used[i];
      ++table.steps;
      ++table.version;
      const double* const of_table = numbers.data() + i * kUpdateNumbers;
      changes.push_back({step_of(of_table, table.store.layout().rule, table.steps),
                         static_cast<float>(of_table[5]),
                         draws_of(table.store.config().seed, table.steps)});
    }
    gradients.apply(changes);
  }

  /// Of one table.
  static Tensor gradient_norm(std::vector<Tensor> parts, std::vector<int64_t> plan) {
    const std::vector<OfTable> all = by_table(parts, plan);
    const std::shared_ptr<TableOf> table = tables().find(all.at(0).table);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(parts[kIds]), table->mailbox);
    Gradients<Device> gradients(device, {gradients_of(*table, parts, plan, all[0].gradients)});
    Tensor result = torch::stable::empty({}, ScalarType::Double);
    *write<double>(result) = gradients.norm();
    return result;
  }

  static Tensor weights_gradient(Tensor grad, Tensor ids, Tensor bounds, Tensor head,
                                 int64_t number, int64_t mode) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags = bags_of(ids, bounds, torch::stable::new_empty(ids, {0}), mode);
    const std::lock_guard lock(table->mutex);
    Head made{};
    if (head.numel() != 0) std::memcpy(&made, head.const_data_ptr(), sizeof made);
    STD_TORCH_CHECK(head.numel() == 0 || made.version == table->version,
                    "vramkit: the rows that the gradient of per_sample_weights needs have been "
                    "updated since forward; run its backward before the next update");
    Device device(device_of(ids), table->mailbox);
    const Tensor fitting = aligned(grad);
    Lookup of = lookup_of(*table, bags, row_type_of(grad.scalar_type()));
    of.output = fitting.mutable_data_ptr();
    Tensor result = torch::stable::new_zeros(ids, {ids.numel()}, ScalarType::Float);
    with_kernel(of.rows.layout, [&]<class Type, int kWidth>() {
      device.run_groups(WeightGradients<Type, kWidth>{of, write<float>(result)},
                        lanes_for(of.rows.layout.dim, kWidth));
    });
    return result;
  }

  /// Keys, rows as stored, scale and sum, state, stamps: of the rows changed after `since`. Then
  /// the keys of all rows, if `with_present`, and steps and clock on the host, all of the same
  /// moment.
  static std::vector<Tensor> dump(Tensor like, int64_t number, int64_t since, bool with_present) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(like), table->mailbox);
    std::vector<Tensor> dumped = dump_changed(device, *table, like, since);
    dumped.push_back(keys_of(device, table->store, like, with_present));
    Tensor counters = torch::stable::empty({2}, ScalarType::Long);
    write<int64_t>(counters)[0] = table->steps;
    write<int64_t>(counters)[1] = table->store.clock();
    dumped.push_back(counters);
    return dumped;
  }

  /// Stores rows, rounded to the nearest, in the place of those that have the same keys.
  static void load(Tensor keys, Tensor rows, Tensor headers, Tensor state, Tensor stamps,
                   int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const RowLayout& layout = table->store.layout();
    const Tensor none = torch::stable::new_empty(keys, {0});
    const ScalarType dtype =
        scalar_type_of(layout.type == RowType::kInt8 ? RowType::kFloat32 : layout.type);
    Lookups<Device> all(tables(), {{keys, none, none, number, 0, dtype, layout.dim, {0, 2}}});
    all.fill();
    ++table->version;
    const RowsView to = table->store.rows();
    with_row_type(to.layout.type, [&]<class Type>(Type) {
      all.device().run_groups(
          Load<Type>{to, all.slots(), keys.numel(), read<float>(rows), read<float>(headers),
                     state.numel() == 0 ? nullptr : read<float>(state),
                     stamps.numel() == 0 ? nullptr : read<uint32_t>(stamps), table->store.clock()},
          lanes_for(to.layout.dim, 1));
    });
  }

  /// Brings the rows of ids that are in host memory to the device. Returns whether CUDA graphs read
  /// the table, which wait for nothing by themselves.
  static bool prefetch(Tensor ids, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags = bags_of(ids, ids, torch::stable::new_empty(ids, {0}), 0);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(ids), table->mailbox);
    STD_TORCH_CHECK(!device.is_capturing(),
                    "vramkit: prefetch() cannot be captured in a CUDA graph; call it before");
    DeviceStore<Device>& store = table->store;
    store.prefetch(device, store.batch(bags.ids, bags.positions, true, nullptr));
    return store.is_frozen();
  }

  static Tensor facts(Tensor like, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(like), table->mailbox);
    Control control;
    device.read(&control, table->control(), sizeof control);
    int64_t misses = 0;
    for (const uint32_t some : control.misses) misses += some;
    const StoreFacts of = table->store.facts();
    const std::array<int64_t, 10> all{of.rows,        of.bytes,
                                      of.capacity,    of.evictions,
                                      table->lookups, table->hits - misses,
                                      table->steps,   table->store.clock(),
                                      of.host_bytes,  control.lost};
    Tensor result = torch::stable::empty({all.size()}, ScalarType::Long);
    std::memcpy(write<int64_t>(result), all.data(), sizeof all);
    return result;
  }

  static void resume(Tensor /*like*/, Tensor counters, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    table->steps = read<int64_t>(counters)[0];
    table->store.set_clock(static_cast<uint32_t>(read<int64_t>(counters)[1]));
  }

  static void check_table(Tensor like, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(like), table->mailbox);
    translated([&] { table->store.check_valid(device); });
    check(table->mailbox.alarm(), table->store.config(), kEarlier);
  }

 private:
  static constexpr int64_t kDumpedAtOnce = 1 << 16;

  /// A tensor on the CPU like another one, with so many rows.
  static Tensor new_on_host(const Tensor& like, int64_t rows) {
    std::vector<int64_t> sizes{rows};
    if (like.dim() == 2) sizes.push_back(like.size(1));
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, cpu);
  }

  static std::vector<Tensor> dump_changed(Device& device, const TableOf& table, const Tensor& like,
                                          int64_t since) {
    const DeviceStore<Device>& store = table.store;
    Scratch scratch;
    const auto flags_at = scratch.add<uint8_t>(store.size());
    const auto chosen_at = scratch.add<uint32_t>(store.size());
    const auto number_at = scratch.add<uint32_t>(1);
    scratch.allocate(device);
    auto* const chosen = scratch.piece<uint32_t>(chosen_at);
    uint32_t count = 0;
    if (store.size() != 0) {
      auto* const flags = scratch.piece<uint8_t>(flags_at);
      device.run(store.size(), FlagChanged{store.rows(), since, flags});
      auto* const number_of = scratch.piece<uint32_t>(number_at);
      device.select(flags, store.size(), chosen, number_of);
      device.read(&count, number_of, sizeof count);
    }
    if (store.facts().host_bytes == 0) return dump_rows(device, store, like, chosen, count);
    // Rows in host memory may be more than the device has room for.
    std::vector<Tensor> all;
    for (int64_t first = 0; first == 0 || first < count; first += kDumpedAtOnce) {
      const int64_t rows = std::min(kDumpedAtOnce, count - first);
      const std::vector<Tensor> some = dump_rows(device, store, like, chosen + first, rows);
      for (size_t i = 0; i < some.size(); ++i) {
        if (first == 0) all.push_back(new_on_host(some[i], count));
        Tensor part = torch::stable::narrow(all[i], 0, first, rows);
        torch::stable::copy_(part, some[i]);
      }
    }
    return all;
  }

  /// Of all rows; on the host where rows are. Empty if not `wanted`.
  static Tensor keys_of(Device& device, const DeviceStore<Device>& store, const Tensor& like,
                        bool wanted) {
    const int64_t count = wanted ? store.size() : 0;
    Tensor keys = torch::stable::new_empty(like, {count}, ScalarType::Long);
    if (count != 0) device.run(count, ListKeys{store.rows(), write<int64_t>(keys)});
    if (store.facts().host_bytes == 0) return keys;
    Tensor hosted = new_on_host(keys, count);
    torch::stable::copy_(hosted, keys);
    return hosted;
  }

  static std::vector<Tensor> dump_rows(Device& device, const DeviceStore<Device>& store,
                                       const Tensor& like, const uint32_t* chosen, int64_t count) {
    const RowLayout& layout = store.layout();
    const auto make = [&](int64_t width, ScalarType type) {
      return torch::stable::new_empty(like, {count, width}, type);
    };
    Tensor keys = torch::stable::new_empty(like, {count}, ScalarType::Long);
    Tensor rows = make(layout.dim, scalar_type_of(layout.type));
    Tensor headers = make(2, ScalarType::Float);
    Tensor state = make(layout.state_count(), ScalarType::Float);
    Tensor stamps = make(3, ScalarType::Int);
    with_row_type(layout.type, [&]<class Type>(Type) {
      device.run_groups(
          Dump<Type>{store.rows(), chosen, count, write<int64_t>(keys), rows.mutable_data_ptr(),
                     write<float>(headers), write<float>(state), write<uint32_t>(stamps)},
          lanes_for(layout.dim, 1));
    });
    return {keys, rows, headers, state, stamps};
  }

  static TablesOf<TableOf>& tables() {
    static auto* const all = new TablesOf<TableOf>;
    return *all;
  }

  /// Kernels read vectors: a gradient that is a view into something else may have to be copied.
  static Tensor aligned(const Tensor& tensor) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    return address % 16 == 0 ? tensor : torch::stable::clone(tensor);
  }

  static TableGradients<Device> gradients_of(TableOf& table, std::vector<Tensor>& parts,
                                             const std::vector<int64_t>& plan,
                                             const std::vector<size_t>& gradients) {
    TableGradients<Device> found{&table.store, {}, RowType::kFloat32};
    int64_t positions = 0;
    for (const size_t i : gradients) {
      Tensor* const part = &parts[i * kParts];
      const int64_t* const planned = &plan[i * kPlanned];
      part[kGrad] = aligned(part[kGrad]);
      GradientPart made{};
      made.bags = bags_of(part[kIds], part[kBounds], part[kWeights], planned[kMode]);
      check_gradient(part, made.bags, table.store.layout().dim, kHead);
      Head head;
      std::memcpy(&head, part[kDistinct].const_data_ptr(), sizeof head);
      // Rows have been evicted since: what is left of the batch may have moved.
      if (head.epoch == table.store.epoch()) made.slots = read<uint32_t>(part[kInverse]);
      made.grad = part[kGrad].const_data_ptr();
      if (made.bags.mode == Mode::kMax) made.argmax = read<int64_t>(part[kArgmax]);
      made.by_frequency = planned[kByFrequency] != 0;
      positions += made.bags.positions;
      found.type = row_type_of(part[kGrad].scalar_type());
      found.parts.push_back(made);
    }
    STD_TORCH_CHECK(positions < kMostPositions, "vramkit: one update takes at most ",
                    kMostPositions - 1, " ids, got ", positions);
    return found;
  }
};

}  // namespace vramkit::embedding::device
