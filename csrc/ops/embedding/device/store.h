// The rows of one table in the memory of a device: which keys have one, where it is, and what
// happens when the budget is full. The host decides, kernels do the work. `Device` is Cuda, or Host
// in tests.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "ops/embedding/device/insert.h"
#include "ops/embedding/device/update.h"
#include "ops/embedding/memory.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding::device {

/// A piece of a device's memory for a kernel's intermediate results. Pieces begin at multiples of
/// 256 bytes.
class Scratch {
 public:
  /// Adds a piece, and returns its number.
  template <class T>
  size_t add(uint64_t count) {
    offsets_.push_back(bytes_);
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return offsets_.size() - 1;
  }
  template <class Device>
  void allocate(Device& device) {
    memory_ = device.allocate(std::max<uint64_t>(bytes_, 256));
  }
  template <class T>
  T* piece(size_t number) const {
    return reinterpret_cast<T*>(memory_->data() + offsets_[number]);
  }

 private:
  std::vector<uint64_t> offsets_;
  uint64_t bytes_ = 0;
  std::unique_ptr<Memory> memory_;
};

/// What kernels count in the device's memory.
struct Control {
  Counts counts;
  uint32_t misses[kMissCounters];
};

/// Slots 0 to size() - 1 are in use. Not thread-safe. A change that throws has changed no row.
template <class Device>
class DeviceStore {
 public:
  explicit DeviceStore(const StoreConfig& config) : config_(config) {
    size_pages();
    if (config_.num_rows >= 0) {
      max_rows_ = std::min(max_rows_, static_cast<uint64_t>(config_.num_rows));
    }
    if (config_.budget_bytes == 0) return;
    uint64_t pages = 0;
    while (((pages + 1) << shift_) < kSkipped && bytes_at(pages + 1) <= config_.budget_bytes) {
      ++pages;
    }
    if (pages == 0) {
      throw_error(Status::kInvalidArgument,
                  "budget: one row of %u values takes %s with its index, got a budget of %s; "
                  "raise it",
                  config_.layout.dim, mib(bytes_at(1)).c_str(), mib(config_.budget_bytes).c_str());
    }
    max_rows_ = std::min(max_rows_, pages << shift_);
  }

  const StoreConfig& config() const { return config_; }
  const RowLayout& layout() const { return config_.layout; }
  uint32_t size() const { return size_; }
  /// Changes whenever a slot gets another key.
  int64_t epoch() const { return evictions_; }
  uint32_t clock() const { return clock_; }
  void set_clock(uint32_t clock) { clock_ = clock; }
  uint32_t tick() { return ++clock_; }

  StoreFacts facts() const {
    StoreFacts facts;
    facts.rows = size_;
    facts.bytes = static_cast<int64_t>(sizeof(Control) + pages_.size() * page_bytes() +
                                       table_bytes_ + index_.bytes);
    const bool limited = config_.num_rows >= 0 || config_.budget_bytes != 0;
    facts.capacity = limited ? static_cast<int64_t>(max_rows_) : -1;
    facts.evictions = evictions_;
    return facts;
  }

  RowsView rows() const {
    return {config_.layout, shift_, mask_,
            table_ == nullptr ? nullptr : reinterpret_cast<char**>(table_->data())};
  }
  IndexView index() const { return index_.view; }
  Initial initial() const {
    return {config_.seed, config_.deviation, config_.initial_state, config_.padding.has_value(),
            config_.padding.value_or(0)};
  }
  Batch batch(const int64_t* ids, int64_t positions, bool with_padding, uint32_t* slots) const {
    return {ids, positions, with_padding, initial(), config_.num_rows, slots};
  }

  /// What finds the slots of a batch's ids, with `counts` all 0. A batch that is refused later has
  /// counted as use of rows.
  Find find(const Batch& batch, Counts* counts, uint32_t* distinct, Alarm* alarm) {
    tick();
    return {batch, index_.view, rows(), clock_, counts, distinct, alarm};
  }

  /// The ids of a batch that have no row, each once, on the device; `counts` tells how many.
  struct Fresh {
    Scratch scratch{};
    FreshSet set{};
    uint32_t* firsts = nullptr;
  };

  Fresh distinct(Device& device, const Batch& batch, Counts* counts, const Found& found) const {
    uint64_t entries = 2;
    while (entries < 2 * uint64_t{found.missing}) entries *= 2;
    Fresh fresh;
    const auto set_at = fresh.scratch.template add<uint32_t>(entries);
    const auto where_at =
        fresh.scratch.template add<uint32_t>(static_cast<uint64_t>(batch.positions));
    const auto firsts_at =
        fresh.scratch.template add<uint32_t>(static_cast<uint64_t>(batch.positions));
    const auto flags_at =
        fresh.scratch.template add<uint8_t>(static_cast<uint64_t>(batch.positions));
    fresh.scratch.allocate(device);
    fresh.set = {batch, fresh.scratch.template piece<uint32_t>(set_at),
                 static_cast<uint32_t>(entries), fresh.scratch.template piece<uint32_t>(where_at)};
    fresh.firsts = fresh.scratch.template piece<uint32_t>(firsts_at);
    auto* const flags = fresh.scratch.template piece<uint8_t>(flags_at);
    device.fill(fresh.set.entries, 0xff, entries * sizeof(uint32_t));
    device.run(batch.positions, fresh.set);
    device.run(batch.positions, FlagFresh{fresh.set, flags});
    device.select(flags, batch.positions, fresh.firsts, &counts->fresh);
    return fresh;
  }

  /// Throws Error(kOutOfMemory) where a batch's rows do not fit, of which `fresh` are not there
  /// yet.
  void check_fits(uint32_t found, uint32_t fresh) const {
    const uint64_t distinct = uint64_t{found} + fresh;
    if (distinct > max_rows_) throw_full(distinct);
    const uint64_t wanted = uint64_t{size_} + fresh;
    if (wanted > max_rows_ && !evicts()) throw_full(wanted);
  }

  /// Gives rows to the ids of a batch that `find` has not found; `distinct`, if not null, gets
  /// them after those that it has.
  void insert(Device& device, const Batch& batch, const Fresh& fresh, const Found& found,
              uint32_t* distinct) {
    check_fits(found.found, found.fresh);
    take(device, batch, fresh.firsts, found.fresh);
    device.run(batch.positions, Spread{fresh.set});
    if (distinct != nullptr) {
      device.run(found.fresh, CopySlots{batch.slots, fresh.firsts, distinct + found.found});
    }
  }

  /// Throws Error(kInvalidArgument) where index, rows and counters contradict each other.
  void check_valid(Device& device) const {
    Scratch scratch;
    const auto at = scratch.add<uint32_t>(1);
    scratch.allocate(device);
    auto* const faults = scratch.piece<uint32_t>(at);
    device.fill(faults, 0, sizeof(uint32_t));
    device.run(size_, CheckIndex{index_.view, rows(), faults});
    uint32_t found = 0;
    device.read(&found, faults, sizeof found);
    if (found != 0 || size_ > max_rows_ || filled_ < size_) {
      throw_error(Status::kInvalidArgument,
                  "%u rows, at most %llu; %u keys are not where the index says, which has %llu "
                  "entries",
                  size_, static_cast<unsigned long long>(max_rows_), found,
                  static_cast<unsigned long long>(filled_));
    }
  }

  /// To be called when a CUDA graph has been given addresses: what would change them throws from
  /// now on.
  void freeze() { is_frozen_ = true; }

  /// Waits for the device where memory was last used on another stream than it came from.
  void release(Device& device) {
    for (std::unique_ptr<Memory>& slab : slabs_) device.retire(std::move(slab));
    device.retire(std::move(table_));
    device.retire(std::move(index_.memory));
  }

 private:
  struct Index {
    std::unique_ptr<Memory> memory{};
    uint64_t bytes = 0;
    IndexView view{};
  };

  static constexpr uint64_t kPageBytes = 2 << 20;
  // A slab grows with the table, up to 32 pages and an eighth.
  static constexpr uint64_t kPagesInSlab = 32;
  static constexpr uint64_t kSlabsInTable = 8;
  static constexpr uint64_t kPagesInBudget = 64;

  bool evicts() const {
    return config_.when_full == WhenFull::kEvictLru || config_.when_full == WhenFull::kEvictLfu;
  }
  uint64_t page_bytes() const {
    return (uint64_t{mask_} + 1) * (RowsView::stride(config_.layout) + sizeof(Meta));
  }
  /// Half of the entries are free at first, so that keys are found at once most often.
  static uint64_t entries_for(uint64_t rows) { return std::max<uint64_t>(64, 2 * rows); }
  static uint64_t room_of(uint64_t entries) { return entries / 4 * 3; }
  /// The slot of each id takes less than a hash table where many of them have a row.
  bool is_direct(uint64_t entries) const {
    return config_.num_rows >= 0 &&
           static_cast<uint64_t>(config_.num_rows) * sizeof(uint32_t) <= entries * sizeof(Entry);
  }
  uint64_t index_bytes_for(uint64_t entries) const {
    return is_direct(entries) ? static_cast<uint64_t>(config_.num_rows) * sizeof(uint32_t)
                              : entries * sizeof(Entry);
  }
  uint64_t bytes_at(uint64_t pages) const {
    return sizeof(Control) + pages * (page_bytes() + sizeof(char*)) +
           index_bytes_for(entries_for(pages << shift_));
  }

  void size_pages() {
    const uint64_t row_bytes = RowsView::stride(config_.layout) + sizeof(Meta);
    uint64_t wanted = kPageBytes;
    if (config_.budget_bytes != 0) wanted = std::min(wanted, config_.budget_bytes / kPagesInBudget);
    if (config_.num_rows >= 0) {
      wanted = std::min(wanted, static_cast<uint64_t>(config_.num_rows) * row_bytes);
    }
    while ((uint64_t{2} << shift_) * row_bytes <= wanted) ++shift_;
    mask_ = (1U << shift_) - 1;
  }

  void take(Device& device, const Batch& batch, const uint32_t* firsts, uint32_t fresh) {
    const uint64_t wanted = uint64_t{size_} + fresh;
    const auto size = static_cast<uint32_t>(std::min(wanted, max_rows_));
    const auto evicted = static_cast<uint32_t>(wanted - size);
    reserve(device, size);
    // Erased entries stay taken until the whole index is made again.
    const bool anew = index_.view.direct == nullptr && filled_ + fresh > room_of(index_.view.size);
    const uint64_t held = config_.budget_bytes != 0 ? max_rows_ : size;
    // With a budget it has its size from the beginning.
    const bool in_place = anew && index_.view.size == entries_for(held);
    Index made = anew && !in_place ? make_index(device, held) : Index{};
    Scratch scratch;
    const uint32_t* const slots = evicted == 0 ? nullptr : oldest(device, scratch);
    if (!anew) device.run(evicted, Erase{index_.view, rows(), slots});
    const IndexView into = anew ? IndexView{} : index_.view;
    device.run(fresh, Take{batch, firsts, slots, evicted, size_, into, rows(), clock_});
    with_kernel(config_.layout, [&]<class Type, int kWidth>() {
      device.run_groups(WriteInitial<Type, kWidth>{batch, firsts, rows(), fresh},
                        lanes_for(config_.layout.dim, kWidth));
    });
    size_ = size;
    filled_ += fresh;
    evictions_ += evicted;
    if (!anew) return;
    if (in_place) {
      device.fill(index_.memory->data(), 0xff, index_.bytes);
    } else {
      device.retire(std::move(index_.memory));
      index_ = std::move(made);
    }
    device.run(size_, Enter{index_.view, rows()});
    filled_ = size_;
  }

  /// All slots, those first whose rows are given up first.
  const uint32_t* oldest(Device& device, Scratch& scratch) {
    const auto slots_at = scratch.add<uint32_t>(size_);
    const auto sorted_at = scratch.add<uint32_t>(size_);
    const auto ranks_at = scratch.add<uint64_t>(size_);
    const auto order_at = scratch.add<uint64_t>(size_);
    scratch.allocate(device);
    auto* const slots = scratch.piece<uint32_t>(slots_at);
    auto* const sorted = scratch.piece<uint32_t>(sorted_at);
    auto* const ranks = scratch.piece<uint64_t>(ranks_at);
    const bool by_frequency = config_.when_full == WhenFull::kEvictLfu;
    device.run(size_, Rank{rows(), by_frequency, clock_, ranks, slots});
    device.sort(ranks, scratch.piece<uint64_t>(order_at), slots, sorted, size_);
    return sorted;
  }

  void reserve(Device& device, uint64_t rows) {
    const uint64_t pages = (rows + mask_) >> shift_;
    const uint64_t most = (max_rows_ + mask_) >> shift_;
    while (pages_.size() < pages) {
      const uint64_t wanted = std::max(pages - pages_.size(), pages_.size() / kSlabsInTable);
      add_pages(device, std::min({wanted, kPagesInSlab, most - pages_.size()}));
    }
    if (listed_ < pages_.size()) list_pages(device);
  }

  void add_pages(Device& device, uint64_t count) {
    slabs_.reserve(slabs_.size() + 1);
    pages_.reserve(pages_.size() + count);
    std::unique_ptr<Memory> slab = device.allocate(count * page_bytes());
    for (uint64_t page = 0; page < count; ++page) {
      pages_.push_back(slab->data() + page * page_bytes());
    }
    slabs_.push_back(std::move(slab));
  }

  void list_pages(Device& device) {
    if (table_ == nullptr || table_bytes_ < pages_.size() * sizeof(char*)) {
      check_thawed();
      const uint64_t most = (max_rows_ + mask_) >> shift_;
      const uint64_t bytes = std::min<uint64_t>(most, 2 * pages_.size()) * sizeof(char*);
      std::unique_ptr<Memory> table = device.allocate(bytes);
      device.retire(std::move(table_));
      table_ = std::move(table);
      table_bytes_ = bytes;
    }
    device.write(table_->data(), pages_.data(), pages_.size() * sizeof(char*));
    listed_ = pages_.size();
  }

  /// An empty index for so many rows.
  Index make_index(Device& device, uint64_t rows) const {
    check_thawed();
    const uint64_t entries = entries_for(rows);
    Index made;
    made.bytes = index_bytes_for(entries);
    made.memory = device.allocate(made.bytes);
    device.fill(made.memory->data(), 0xff, made.bytes);
    if (is_direct(entries)) {
      made.view.direct = reinterpret_cast<uint32_t*>(made.memory->data());
      made.view.size = static_cast<uint64_t>(config_.num_rows);
    } else {
      made.view.entries = reinterpret_cast<Entry*>(made.memory->data());
      made.view.size = entries;
    }
    return made;
  }

  void check_thawed() const {
    if (!is_frozen_) return;
    throw_error(Status::kInvalidArgument,
                "the table cannot grow any more, as a CUDA graph reads it; train it first and then "
                "capture lookups, or copy it with copy.deepcopy() and train the copy");
  }

  [[noreturn]] void throw_full(uint64_t wanted) const {
    throw_error(
        Status::kOutOfMemory,
        "the table is full: %s are needed, the budget of %s holds %s; raise budget, or choose "
        "when_full='evict_lru', and look up fewer distinct ids at once than it holds",
        counted(wanted, "row").c_str(), mib(config_.budget_bytes).c_str(),
        counted(max_rows_, "row").c_str());
  }

  StoreConfig config_;
  uint32_t shift_ = 0;
  uint32_t mask_ = 0;
  uint64_t max_rows_ = kSkipped;
  std::vector<std::unique_ptr<Memory>> slabs_;
  std::vector<char*> pages_;
  std::unique_ptr<Memory> table_;  // the addresses of the pages, for kernels
  uint64_t table_bytes_ = 0;
  uint64_t listed_ = 0;
  Index index_;
  uint64_t filled_ = 0;  // entries that are not free, at most
  uint32_t size_ = 0;
  uint32_t clock_ = 0;
  int64_t evictions_ = 0;
  bool is_frozen_ = false;
};

}  // namespace vramkit::embedding::device
