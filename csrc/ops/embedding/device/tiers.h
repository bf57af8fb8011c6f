// Kernels that bring rows from host memory to the device: a batch's rows change places with rows
// that have not been used for long. Which ones these are does not depend on the order of threads.
#pragma once

#include <cstdint>

#include "ops/embedding/device/index.h"
#include "ops/embedding/device/insert.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/rows.h"

namespace vramkit::embedding::device {

/// Keeps the rows of a batch from being given up, and lists those in host memory, in any order.
struct Want {
  Batch batch;
  const uint32_t* slots;  // of each position; null: ids are found in the index
  IndexView index;
  RowsView rows;
  uint32_t turn;
  uint32_t* listed;
  uint32_t* count;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const uint32_t slot = slots != nullptr ? slots[i] : index.find(batch.ids[i], rows);
    if (slot >= kSkipped) return;
    uint32_t& last = rows.turn(slot);
    if (peek(&last) == turn || exchange(&last, turn) == turn) return;
    if (slot >= rows.host_from) listed[take_number(count)] = slot;
  }
};

/// ranks[i] = when the i-th slot from `hand` on was used; kMissing: it is wanted.
struct RankTier {
  RowsView rows;
  uint32_t turn;
  uint32_t hand;
  uint32_t size;  // of the tier: the slots after its last one are its first ones
  uint32_t* ranks;
  uint32_t* slots;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const auto slot = static_cast<uint32_t>((uint64_t{hand} + static_cast<uint64_t>(i)) % size);
    ranks[i] = rows.turn(slot) == turn ? kMissing : rows.meta(slot).stamps.used;
    slots[i] = slot;
  }
};

/// Which slots change places: the i-th of those in host memory, fresh ones first, with the i-th
/// victim. Owns nothing.
struct Exchange {
  RowsView rows;
  IndexView index;
  uint32_t fresh_from;  // slots in host memory whose rows have not been written yet
  uint32_t fresh_count;
  const uint32_t* hosted;  // sorted; kMissing after the last one
  uint32_t hosted_count;
  const uint32_t* ranks;  // of the victims, sorted
  const uint32_t* victims;
  uint32_t victim_count;

  VRAMKIT_ON_BOTH uint32_t size() const { return fresh_count + hosted_count; }

  /// The slot in host memory whose row goes to the place of the i-th victim, or kMissing.
  VRAMKIT_ON_BOTH uint32_t host_slot(uint32_t i) const {
    if (i >= victim_count || ranks[i] == kMissing) return kMissing;
    return i < fresh_count ? fresh_from + i : hosted[i - fresh_count];
  }
  VRAMKIT_ON_BOTH bool is_fresh(uint32_t slot) const {
    return slot >= fresh_from && slot - fresh_from < fresh_count;
  }
  /// Where the row is that has been in a slot.
  VRAMKIT_ON_BOTH uint32_t moved(uint32_t slot) const {
    if (slot < rows.host_from || slot >= kSkipped) return slot;
    const uint32_t at = is_fresh(slot) ? slot - fresh_from : fresh_count + find(slot);
    return host_slot(at) == slot ? victims[at] : slot;
  }

 private:
  /// The first of the hosted slots that is not less.
  VRAMKIT_ON_BOTH uint32_t find(uint32_t slot) const {
    uint32_t low = 0;
    uint32_t high = hosted_count;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (hosted[middle] < slot) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

/// Item i is the i-th pair of an exchange.
struct SwapRows {
  using Line = Pack<uint32_t, 4>;
  Exchange of;

  VRAMKIT_ON_BOTH int64_t items() const { return of.size(); }
  VRAMKIT_ON_BOTH static uint32_t lines(const RowLayout& layout) {
    return layout.stride_bytes() / static_cast<uint32_t>(sizeof(Line));
  }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const auto number = static_cast<uint32_t>(item);
    const uint32_t from = of.host_slot(number);
    if (from == kMissing) return;
    const uint32_t to = of.victims[number];
    swap_lines(lanes, reinterpret_cast<Line*>(of.rows.row(from)),
               reinterpret_cast<Line*>(of.rows.row(to)), !of.is_fresh(from));
    if (lanes.rank() != 0) return;
    swap(of.rows.meta(from), of.rows.meta(to));
    swap(of.rows.turn(from), of.rows.turn(to));
    if (of.rows.layout.is_scaled()) swap(of.rows.scale(from), of.rows.scale(to));
    of.index.swap(of.rows.meta(to).key, from, of.rows.meta(from).key, to);
  }

 private:
  template <class T>
  VRAMKIT_ON_BOTH static void swap(T& one, T& other) {
    const T kept = one;
    one = other;
    other = kept;
  }
  /// Several lines of a lane are on their way at the same time.
  template <class Lanes>
  VRAMKIT_ON_BOTH void swap_lines(const Lanes& lanes, Line* host, Line* device, bool both) const {
    const uint32_t count = lines(of.rows.layout);
    for (uint32_t base = lanes.rank(); base < count; base += kInFlight * lanes.count()) {
      Line to_device[kInFlight];
      Line to_host[kInFlight];
      for (uint32_t i = 0; i < kInFlight; ++i) {
        const uint32_t at = base + i * lanes.count();
        if (at >= count) break;
        to_host[i] = device[at];
        if (both) to_device[i] = host[at];
      }
      for (uint32_t i = 0; i < kInFlight; ++i) {
        const uint32_t at = base + i * lanes.count();
        if (at >= count) break;
        host[at] = to_host[i];
        if (both) device[at] = to_device[i];
      }
    }
  }
};

/// slots[i] = where the row is that was there before an exchange.
struct Relocate {
  Exchange of;
  uint32_t* slots;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const { slots[i] = of.moved(slots[i]); }
};

}  // namespace vramkit::embedding::device
