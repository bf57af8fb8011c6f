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
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "ops/embedding/device/gradients.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/sharing.h"
#include "ops/embedding/device/store.h"
#include "ops/embedding/torch_tables.h"

namespace vramkit::embedding::device {

template <class Device>
struct Table {
  Table(const StoreConfig& config, int device) : mailbox(device), store(config) {}
  typename Device::Mailbox mailbox;
  DeviceStore<Device> store;
  std::unique_ptr<Memory> memory;  // a Control
  std::mutex mutex;
  int64_t lookups = 0;  // of training; the others too, without their misses
  int64_t hits = 0;     // the same
  int64_t steps = 0;
  int64_t version = 0;  // of the values

  Control* control() const { return reinterpret_cast<Control*>(memory->data()); }
};

inline int device_of(const Tensor& tensor) { return tensor.get_device_index(); }

/// Raises what kernels have told. `when` is about an earlier call, or empty.
inline void check(Alarm& alarm, const StoreConfig& config, const char* when) {
  if (*static_cast<const volatile uint32_t*>(&alarm.kind) == Alarm::kNone) return;
  const Alarm raised = alarm;
  alarm = Alarm{};
  const auto value = static_cast<long long>(raised.value);
  if (raised.kind == Alarm::kId) {
    throw std::out_of_range(
        format("index out of range%s: got id %lld, the table has rows 0 to %lld", when, value,
               static_cast<long long>(config.num_rows - 1)));
  }
  throw std::invalid_argument(
      format("offsets must begin with 0, must not decrease and be at most the number of ids%s: bag "
             "%lld is not so",
             when, value));
}
inline constexpr const char* kEarlier = " in an earlier lookup, whose output has NaN for it";

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
                          ScalarType dtype, double max_norm, double norm_type) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags = bags_of(ids, bounds, weights, mode);
    const std::lock_guard lock(table->mutex);
    check(table->mailbox.alarm(), table->store.config(), kEarlier);
    Device device(device_of(ids), table->mailbox);
    if (device.is_capturing()) table->store.freeze();
    table->lookups += bags.positions;
    table->hits += bags.positions;
    Lookup of = lookup(*table, bags, row_type_of(dtype));
    const Scratch factors = limit(device, of, {max_norm, norm_type});
    of.misses = table->control()->misses;
    auto [output, argmax] = pool(device, of, ids, dtype);
    if (Device::kIsImmediate) check(table->mailbox.alarm(), table->store.config(), "");
    return output;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> insert_bags(Tensor ids, Tensor bounds,
                                                                Tensor weights, int64_t number,
                                                                int64_t mode, ScalarType dtype,
                                                                double max_norm, double norm_type) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags = bags_of(ids, bounds, weights, mode);
    const std::lock_guard lock(table->mutex);
    check(table->mailbox.alarm(), table->store.config(), kEarlier);
    Device device(device_of(ids), table->mailbox);
    device.check_waiting("a training lookup in a table with a fused optimizer");
    Tensor slots = torch::stable::new_empty(ids, {bags.positions}, ScalarType::Int);
    Lookup of = lookup(*table, bags, row_type_of(dtype));
    of.slots = write<uint32_t>(slots);
    Tensor output;
    Tensor argmax;
    // Rows that are not there yet have the same values before and after they are: what the device
    // does next need not wait for the host.
    const auto pool_rows = [&] {
      Lookup quiet = of;
      // What does not fit is told once, by kernels that are waited for.
      quiet.alarm = nullptr;
      std::tie(output, argmax) = pool(device, quiet, ids, dtype);
    };
    if (max_norm > 0 || table->store.moves_rows()) {
      if (max_norm > 0) {
        insert_limited(device, *table, of, {max_norm, norm_type});
      } else {
        insert(device, *table, of, false, nullptr, [] {});
      }
      of.index = table->store.index();
      of.rows = table->store.rows();
      pool_rows();
    } else {
      insert(device, *table, of, false, nullptr, pool_rows);
    }
    Tensor head = torch::stable::empty({kHead}, ScalarType::Long);
    // Nothing here needs the distinct ids again, so they are not listed.
    const Head made{0, table->store.epoch(), table->version};
    std::memcpy(head.mutable_data_ptr(), &made, sizeof made);
    return {output, slots, head, argmax};
  }

  static void update(std::vector<Tensor> parts, Tensor modes, Tensor numbers, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    if (parts.empty()) return;
    check(table->mailbox.alarm(), table->store.config(), kEarlier);
    Device device(device_of(parts[kIds]), table->mailbox);
    DeviceStore<Device>& store = table->store;
    Gradients<Device> gradients(device, store, parts_of(*table, parts, modes),
                                row_type_of(parts[kGrad].scalar_type()));
    ++table->steps;
    ++table->version;
    const Step step = step_of(numbers, store.layout().rule, table->steps);
    gradients.apply(store, step, static_cast<float>(read<double>(numbers)[5]),
                    draws_of(store.config().seed, table->steps));
  }

  static Tensor gradient_norm(std::vector<Tensor> parts, Tensor modes, int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    Tensor result = torch::stable::empty({}, ScalarType::Double);
    *write<double>(result) = 0;
    if (parts.empty()) return result;
    Device device(device_of(parts[kIds]), table->mailbox);
    Gradients<Device> gradients(device, table->store, parts_of(*table, parts, modes),
                                row_type_of(parts[kGrad].scalar_type()));
    *write<double>(result) = gradients.norm();
    return result;
  }

  static Tensor weights_gradient(Tensor grad, Tensor ids, Tensor bounds, Tensor head,
                                 int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags =
        bags_of(ids, bounds, torch::stable::new_empty(ids, {0}), static_cast<int64_t>(Mode::kSum));
    const std::lock_guard lock(table->mutex);
    Head made{};
    if (head.numel() != 0) std::memcpy(&made, head.const_data_ptr(), sizeof made);
    STD_TORCH_CHECK(head.numel() == 0 || made.version == table->version,
                    "vramkit: the rows that the gradient of per_sample_weights needs have been "
                    "updated since forward; run its backward before the next update");
    Device device(device_of(ids), table->mailbox);
    const Tensor fitting = aligned(grad);
    Lookup of = lookup(*table, bags, row_type_of(grad.scalar_type()));
    of.output = fitting.mutable_data_ptr();
    Tensor result = torch::stable::new_zeros(ids, {ids.numel()}, ScalarType::Float);
    with_kernel(of.rows.layout, [&]<class Type, int kWidth>() {
      device.run_groups(WeightGradients<Type, kWidth>{of, write<float>(result)},
                        lanes_for(of.rows.layout.dim, kWidth));
    });
    return result;
  }

  /// Keys, rows as stored, scale and sum, state, stamps: of the rows changed after `since`.
  static std::vector<Tensor> dump(Tensor like, int64_t number, int64_t since) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(like), table->mailbox);
    const DeviceStore<Device>& store = table->store;
    Scratch scratch;
    const auto flags_at = scratch.add<uint8_t>(store.size());
    const auto chosen_at = scratch.add<uint32_t>(store.size());
    scratch.allocate(device);
    auto* const chosen = scratch.piece<uint32_t>(chosen_at);
    uint32_t count = 0;
    if (store.size() != 0) {
      auto* const flags = scratch.piece<uint8_t>(flags_at);
      device.run(store.size(), FlagChanged{store.rows(), since, flags});
      uint32_t* const number_of = &table->control()->counts.fresh;
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

  /// Stores rows, rounded to the nearest, in the place of those that have the same keys.
  static void load(Tensor keys, Tensor rows, Tensor headers, Tensor state, Tensor stamps,
                   int64_t number) {
    const std::shared_ptr<TableOf> table = tables().find(number);
    const Bags bags = bags_of(keys, keys, torch::stable::new_empty(keys, {0}), 0);
    const std::lock_guard lock(table->mutex);
    Device device(device_of(keys), table->mailbox);
    Tensor slots = torch::stable::new_empty(keys, {bags.positions}, ScalarType::Int);
    Lookup of = lookup(*table, bags, table->store.layout().type);
    of.slots = write<uint32_t>(slots);
    insert(
        device, *table, of, true, nullptr, [] {}, false);
    ++table->version;
    const RowsView to = table->store.rows();
    with_row_type(to.layout.type, [&]<class Type>(Type) {
      device.run_groups(
          Load<Type>{to, of.slots, bags.positions, read<float>(rows), read<float>(headers),
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
    const std::array<int64_t, 9> all{of.rows,        of.bytes,
                                     of.capacity,    of.evictions,
                                     table->lookups, table->hits - misses,
                                     table->steps,   table->store.clock(),
                                     of.host_bytes};
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

  static Lookup lookup(TableOf& table, const Bags& bags, RowType type) {
    const DeviceStore<Device>& store = table.store;
    const RowType own = store.layout().type;
    STD_TORCH_CHECK(own == RowType::kInt8 || own == type,
                    "vramkit: rows of a float type are looked up in this type only");
    Lookup of{};
    of.rows = store.rows();
    of.index = store.index();
    of.initial = store.initial();
    of.num_rows = store.config().num_rows;
    of.bags = bags;
    of.type = type;
    of.alarm = &table.mailbox.alarm();
    of.counts_host = store.moves_rows();
    return of;
  }

  /// Has a lookup scale rows to the limit, if there is one. The result holds the factors.
  static Scratch limit(Device& device, Lookup& of, NormLimit limit) {
    Scratch scratch;
    if (limit.most <= 0) return scratch;
    const auto factors_at = scratch.add<float>(static_cast<uint64_t>(of.bags.positions));
    scratch.allocate(device);
    auto* const factors = scratch.piece<float>(factors_at);
    with_kernel(of.rows.layout, [&]<class Type, int kWidth>() {
      device.run_groups(LimitFactors<Type, kWidth>{of, limit, factors},
                        lanes_for(of.rows.layout.dim, kWidth));
    });
    of.limited = factors;
    return scratch;
  }

  static std::pair<Tensor, Tensor> pool(Device& device, Lookup of, const Tensor& ids,
                                        ScalarType dtype) {
    const int64_t dim = of.rows.layout.dim;
    Tensor output = torch::stable::new_empty(ids, {of.bags.bags, dim}, dtype);
    const int64_t count = of.bags.mode == Mode::kMax ? of.bags.bags * dim : 0;
    Tensor argmax = torch::stable::new_empty(ids, {count}, ScalarType::Long);
    of.output = output.mutable_data_ptr();
    of.argmax = write<int64_t>(argmax);
    HostRows<Device> hosted(device, of);
    with_kernel(of.rows.layout, [&]<class Type, int kWidth>() {
      const uint32_t lanes = lanes_for(of.rows.layout.dim, kWidth);
      if (of.bags.mode == Mode::kNone) {
        device.run_groups(Gather<Type, kWidth>{of}, lanes);
      } else if (of.bags.mode == Mode::kMax) {
        device.run_groups(Largest<Type, kWidth>{of}, lanes);
      } else {
        device.run_groups(AddUp<Type, kWidth>{of}, lanes);
      }
    });
    hosted.finish(of);
    return {output, argmax};
  }

  /// Finds the rows of ids and makes those that are not there. `meanwhile` runs when the device
  /// has been asked what it found.
  template <class F>
  static Found insert(Device& device, TableOf& table, const Lookup& of, bool with_padding,
                      uint32_t* distinct, const F& meanwhile, bool trains = true) {
    DeviceStore<Device>& store = table.store;
    const Batch batch =
        store.batch(of.bags.ids, of.bags.positions, with_padding, const_cast<uint32_t*>(of.slots));
    Counts* const counts = &table.control()->counts;
    store.find(device, batch, counts, distinct, of.alarm);
    if (of.bags.mode != Mode::kNone) device.run(of.bags.bags, CheckOffsets{of});
    device.ask(counts);
    meanwhile();
    Found found(device.template answer<Counts>());
    check(*of.alarm, store.config(), "");
    found.fresh =
        translated([&] { return store.insert(device, batch, counts, found, distinct, trains); });
    if (!trains) return found;
    table.lookups += int64_t{found.found} + found.fresh;
    table.hits += found.found - (store.moves_rows() ? found.hosted : 0);
    return found;
  }

  /// Also scales the rows to the limit.
  static void insert_limited(Device& device, TableOf& table, const Lookup& of, NormLimit limit) {
    Scratch scratch;
    const auto distinct_at = scratch.add<uint32_t>(static_cast<uint64_t>(of.bags.positions));
    scratch.allocate(device);
    auto* const distinct = scratch.piece<uint32_t>(distinct_at);
    const Found found = insert(device, table, of, false, distinct, [] {});
    ++table.version;
    const DeviceStore<Device>& store = table.store;
    with_kernel(store.layout(), [&]<class Type, int kWidth>() {
      device.run_groups(LimitNorms<Type, kWidth>{store.rows(), limit, distinct,
                                                 int64_t{found.found} + found.fresh, store.clock()},
                        lanes_for(store.layout().dim, kWidth));
    });
  }

  /// Kernels read vectors: a gradient that is a view into something else may have to be copied.
  static Tensor aligned(const Tensor& tensor) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    return address % 16 == 0 ? tensor : torch::stable::clone(tensor);
  }

  static std::vector<GradientPart> parts_of(const TableOf& table, std::vector<Tensor>& parts,
                                            const Tensor& modes) {
    std::vector<GradientPart> found;
    int64_t positions = 0;
    for (size_t at = 0; at + kParts <= parts.size(); at += kParts) {
      Tensor* const part = &parts[at];
      part[kGrad] = aligned(part[kGrad]);
      const int64_t* const mode = read<int64_t>(modes) + at / kParts * 2;
      Head head;
      std::memcpy(&head, part[kDistinct].const_data_ptr(), sizeof head);
      GradientPart made{};
      made.bags = bags_of(part[kIds], part[kBounds], part[kWeights], mode[0]);
      // Rows have been evicted since: what is left of the batch may have moved.
      if (head.epoch == table.store.epoch()) made.slots = read<uint32_t>(part[kInverse]);
      made.grad = part[kGrad].const_data_ptr();
      if (made.bags.mode == Mode::kMax) made.argmax = read<int64_t>(part[kArgmax]);
      made.by_frequency = mode[1] != 0;
      positions += made.bags.positions;
      found.push_back(made);
    }
    STD_TORCH_CHECK(positions < kMostPositions, "vramkit: one update takes at most ",
                    kMostPositions - 1, " ids, got ", positions);
    return found;
  }
};

}  // namespace vramkit::embedding::device
