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
#include "ops/embedding/budget.h"
#include "ops/embedding/device/insert.h"
#include "ops/embedding/device/pages.h"
#include "ops/embedding/device/scratch.h"
#include "ops/embedding/device/tiers.h"
#include "ops/embedding/device/update.h"
#include "ops/embedding/memory.h"
#include "ops/embedding/page_size.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding::device {

/// What kernels count in the device's memory.
struct Control {
  Counts of_batches[2];  // by turns: each batch clears the other's
  uint32_t misses[kMissCounters];
  uint32_t lost;  // positions whose gradient came after their row was given up
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
    if (config_.placement == Placement::kHost) pages_.set_most_on_device(0);
    if (config_.budget_bytes == 0) return;
    uint64_t pages = 0;
    while (((pages + 1) << shift_) < kSkipped && bytes_at(pages + 1) <= config_.budget_bytes) {
      ++pages;
    }
    if (pages == 0) throw_small_budget(config_, bytes_at(1));
    if (config_.has_tiers()) {
      pages_.set_most_on_device(pages);
    } else {
      max_rows_ = std::min(max_rows_, pages << shift_);
    }
  }

  const StoreConfig& config() const { return config_; }
  const RowLayout& layout() const { return config_.layout; }
  uint32_t size() const { return size_; }
  /// Changes whenever a slot gets another key.
  int64_t epoch() const { return evictions_ + moves_; }
  /// Whether rows in use are brought to the device.
  bool moves_rows() const { return config_.placement == Placement::kCached; }
  uint32_t clock() const { return clock_; }
  void set_clock(uint32_t clock) { clock_ = clock; }
  uint32_t tick() { return ++clock_; }

  StoreFacts facts() const {
    StoreFacts facts;
    facts.rows = size_;
    facts.host_bytes = static_cast<int64_t>(pages_.host_bytes());
    facts.bytes = facts.host_bytes +
                  static_cast<int64_t>(sizeof(Control) + pages_.device_bytes() + index_.bytes);
    const bool limited = config_.num_rows >= 0 || is_limited();
    facts.capacity = limited ? static_cast<int64_t>(max_rows_) : -1;
    facts.evictions = evictions_;
    return facts;
  }

  RowsView rows() const {
    const uint64_t hosted = first_host_slot();
    return {config_.layout,
            shift_,
            mask_,
            pages_.table(),
            size_ <= hosted ? kMissing : static_cast<uint32_t>(hosted),
            config_.has_tiers()};
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
  Find find(const Batch& batch, Counts* counts, uint32_t* distinct, Alarm* alarm, Counts* next) {
    tick();
    return {batch, index_.view, rows(), clock_, counts, distinct, alarm, next};
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
    embedding::check_fits(config_, max_rows_, size_, found, fresh);
  }

  /// Gives rows to the ids of a batch that `find` has not found, and, if it `moves`, brings those
  /// of the batch that are in host memory to the device; `distinct`, if not null, gets the new ones
  /// after those that it has.
  void insert(Device& device, const Batch& batch, const Fresh& fresh, const Found& found,
              uint32_t* distinct, bool moves) {
    check_fits(found.found, found.fresh);
    Move move;
    if (moves && moves_rows()) move = plan(device, batch, found);
    if (found.fresh != 0) take(device, batch, fresh, found.fresh);
    if (distinct != nullptr) {
      device.run(found.fresh, CopySlots{batch.slots, fresh.firsts, distinct + found.found});
    }
    if (move.is_planned) {
      const Exchange exchange = run(device, move);
      device.run(batch.positions, Relocate{exchange, batch.slots});
      if (distinct != nullptr) {
        device.run(int64_t{found.found} + found.fresh, Relocate{exchange, distinct});
      }
    }
    if (found.fresh == 0) return;
    with_kernel(config_.layout, [&]<class Type, int kWidth>() {
      device.run_groups(WriteInitial<Type, kWidth>{batch, fresh.firsts, rows(), found.fresh},
                        lanes_for(config_.layout.dim, kWidth));
    });
  }

  /// Brings rows that are in host memory to the device, for a batch to come; the host waits for
  /// nothing.
  void prefetch(Device& device, const Batch& batch) {
    const auto positions = static_cast<uint64_t>(batch.positions);
    if (!moves_rows() || positions == 0 || size_ <= first_host_slot()) return;
    const uint64_t hosted = std::min(positions, size_ - first_host_slot());
    run(device, plan(device, batch, hosted, 0, positions));
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
    pages_.check_valid();
  }

  /// To be called when a CUDA graph has been given addresses: what would change them throws from
  /// now on.
  void freeze() { is_frozen_ = true; }
  bool is_frozen() const { return is_frozen_; }

  /// Waits for the device where memory was last used on another stream than it came from.
  void release(Device& device) {
    pages_.release(device, is_frozen_);
    device.retire(std::move(index_.memory));
  }

 private:
  struct Index {
    std::unique_ptr<Memory> memory{};
    uint64_t bytes = 0;
    IndexView view{};
  };

  static constexpr uint64_t kPageBytes = 2 << 20;
  // Victims are the oldest of several times as many rows, so that a move does not rank all of them.
  static constexpr uint64_t kPassedForVictim = 4;
  static constexpr uint64_t kSpareVictims = 1024;

  /// Whether the budget limits the number of rows.
  bool is_limited() const { return config_.budget_bytes != 0 && !config_.has_tiers(); }
  uint64_t first_host_slot() const {
    return std::min<uint64_t>(pages_.most_on_device() << shift_, kMissing);
  }
  uint64_t pages_for(uint64_t rows) const { return (rows + mask_) >> shift_; }
  /// 70 % of the entries are taken at first, and 80 % when the index is made again: two to three
  /// entries are read for a key that is there, next to each other.
  static uint64_t entries_for(uint64_t rows) { return std::max<uint64_t>(64, rows + rows * 3 / 7); }
  static uint64_t room_of(uint64_t entries) { return entries / 5 * 4; }
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
    return sizeof(Control) + pages * (pages_.page_bytes() + sizeof(Page)) +
           index_bytes_for(entries_for(pages << shift_));
  }

  void size_pages() {
    const uint32_t row_bytes = config_.layout.stride_bytes();
    const uint32_t meta_bytes = RowsView::meta_bytes(config_.layout, config_.has_tiers());
    shift_ = page_shift(config_, kPageBytes, uint64_t{row_bytes} + meta_bytes);
    mask_ = (1U << shift_) - 1;
    const uint64_t rows = uint64_t{1} << shift_;
    // The rows of the next page begin at a multiple of kVectorBytes too.
    pages_.set_sizes(rows * row_bytes, align_up(rows * meta_bytes, kVectorBytes));
  }

  /// Gives slots to fresh ids, whose rows are not written yet.
  void take(Device& device, const Batch& batch, const Fresh& fresh, uint32_t count) {
    const uint64_t wanted = uint64_t{size_} + count;
    const auto size = static_cast<uint32_t>(std::min(wanted, max_rows_));
    const auto evicted = static_cast<uint32_t>(wanted - size);
    pages_.reserve(device, pages_for(size), pages_for(max_rows_), is_frozen_);
    // Erased entries stay taken until the whole index is made again.
    const bool anew = index_.view.direct == nullptr && filled_ + count > room_of(index_.view.size);
    const uint64_t held = is_limited() ? max_rows_ : size;
    // With a budget it has its size from the beginning.
    const bool in_place = anew && index_.view.size == entries_for(held);
    Index made = anew && !in_place ? make_index(device, held) : Index{};
    Scratch scratch;
    const uint32_t* const slots = evicted == 0 ? nullptr : oldest(device, scratch);
    if (!anew) device.run(evicted, Erase{index_.view, rows(), slots});
    const IndexView into = anew ? IndexView{} : index_.view;
    device.run(count, Take{batch, fresh.firsts, slots, evicted, size_, into, rows(), clock_});
    device.run(batch.positions, Spread{fresh.set});
    size_ = size;
    filled_ += count;
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

  /// Rows that are to come to the device, and victims. Everything that can fail is done.
  struct Move {
    Scratch scratch{};
    Exchange exchange{};
    bool is_planned = false;
  };

  Move plan(Device& device, const Batch& batch, const Found& found) {
    const uint64_t first = std::max<uint64_t>(size_, first_host_slot());
    const uint64_t end = uint64_t{size_} + found.fresh;
    const uint64_t hosted_fresh = end > first ? end - first : 0;
    // A padding id has not been counted; its row must not be given up either.
    const bool has_padding = config_.padding.has_value();
    const uint64_t hosted = uint64_t{found.hosted} + (has_padding ? 1 : 0);
    if (found.hosted == 0 && hosted_fresh == 0) return {};
    Move move = plan(device, batch, hosted, hosted_fresh, found.found - found.hosted);
    move.exchange.fresh_from = static_cast<uint32_t>(first);
    return move;
  }

  /// Victims are the rows that have not been used for longest among those that a hand passes, a few
  /// times as many as are needed. Of the tier's rows, at most `used` are in the batch.
  Move plan(Device& device, const Batch& batch, uint64_t hosted, uint64_t fresh, uint64_t used) {
    const uint64_t tier = std::min<uint64_t>(size_, first_host_slot());
    const uint64_t free = std::max<uint64_t>(1, tier - std::min(tier, used));
    const uint64_t passed = std::min(
        tier, kSpareVictims + kPassedForVictim * (hosted + fresh) * ((tier + free - 1) / free));
    Move move;
    Scratch& scratch = move.scratch;
    const auto count_at = scratch.add<uint32_t>(1);
    const auto listed_at = scratch.add<uint32_t>(hosted);
    const auto hosted_at = scratch.add<uint32_t>(hosted);
    const auto unused_at = scratch.add<uint32_t>(hosted);
    const auto ranks_at = scratch.add<uint32_t>(passed);
    const auto slots_at = scratch.add<uint32_t>(passed);
    const auto sorted_at = scratch.add<uint32_t>(passed);
    const auto victims_at = scratch.add<uint32_t>(passed);
    scratch.allocate(device);
    const auto piece = [&](size_t at) { return scratch.piece<uint32_t>(at); };
    ++turn_;
    device.fill(piece(count_at), 0, sizeof(uint32_t));
    device.fill(piece(listed_at), 0xff, hosted * sizeof(uint32_t));
    device.run(batch.positions, Want{batch, batch.slots, index_.view, rows(), turn_,
                                     piece(listed_at), piece(count_at)});
    if (hosted != 0) {
      device.sort(piece(listed_at), piece(hosted_at), piece(listed_at), piece(unused_at),
                  static_cast<int64_t>(hosted));
    }
    if (passed != 0) {
      device.run(static_cast<int64_t>(passed),
                 RankTier{rows(), turn_, hand_, static_cast<uint32_t>(tier), piece(ranks_at),
                          piece(slots_at)});
      device.sort(piece(ranks_at), piece(sorted_at), piece(slots_at), piece(victims_at),
                  static_cast<int64_t>(passed));
      hand_ = static_cast<uint32_t>((hand_ + passed) % tier);
    }
    move.exchange = {{},
                     {},
                     0,
                     static_cast<uint32_t>(fresh),
                     piece(hosted_at),
                     static_cast<uint32_t>(hosted),
                     piece(sorted_at),
                     piece(victims_at),
                     static_cast<uint32_t>(passed)};
    move.is_planned = true;
    return move;
  }

  Exchange run(Device& device, const Move& move) {
    Exchange exchange = move.exchange;
    exchange.rows = rows();
    exchange.index = index_.view;
    device.run_groups(SwapRows{exchange}, lanes_for(SwapRows::lines(config_.layout), 1));
    ++moves_;
    return exchange;
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

  /// An empty index for so many rows.
  Index make_index(Device& device, uint64_t rows) const {
    if (is_frozen_) throw_frozen();
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

  StoreConfig config_;
  uint32_t shift_ = 0;
  uint32_t mask_ = 0;
  uint64_t max_rows_ = kSkipped;
  Pages<Device> pages_;
  Index index_;
  uint64_t filled_ = 0;  // entries that are not free, at most
  uint32_t size_ = 0;
  uint32_t clock_ = 0;
  int64_t evictions_ = 0;
  int64_t moves_ = 0;
  uint32_t turn_ = 0;
  uint32_t hand_ = 0;
  bool is_frozen_ = false;
};

}  // namespace vramkit::embedding::device
