// A table in a device's memory, and what its kernels have told.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "base/bytes.h"
#include "ops/embedding/device/lookup.h"
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
  bool is_second = false;

  /// Counters for a batch that is alone in its call: those that are 0, and those to be cleared.
  std::pair<Counts*, Counts*> take_counts() {
    is_second = !is_second;
    Counts* const both = control()->of_batches;
    return {both + is_second, both + !is_second};
  }
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

/// A lookup of a table as it is now, without output.
template <class Device>
Lookup lookup_of(Table<Device>& table, const Bags& bags, RowType type) {
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

}  // namespace vramkit::embedding::device
