// Lookups of rows in host memory: each distinct row comes over the bus once, for the first of its
// positions, and the others copy it from there in the device's memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/rows.h"
#include "ops/embedding/device/scratch.h"

namespace vramkit::embedding::device {

/// The slot of each position; those of rows in host memory enter a hash set of first positions.
struct Locate {
  Lookup of;
  uint32_t* slots;
  uint32_t* entries;  // kMissing: empty
  uint32_t size;      // a power of two, more than there are positions; 0: no set
  uint32_t* firsts;   // the entry of each position, or kMissing

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const uint32_t slot = of.slot_at(i);
    slots[i] = slot;
    const bool is_hosted = slot >= of.rows.host_from && slot < kSkipped;
    if (is_hosted && of.misses != nullptr && of.counts_host) {
      fetch_add(of.misses + i % kMissCounters, 1);
    }
    if (size == 0) return;
    firsts[i] = is_hosted ? enter(static_cast<uint32_t>(i)) : kMissing;
  }

 private:
  VRAMKIT_ON_BOTH uint32_t enter(uint32_t own) const {
    const int64_t id = of.bags.ids[own];
    auto at = static_cast<uint32_t>(mix(static_cast<uint64_t>(id)) & (size - 1));
    for (;; at = (at + 1) & (size - 1)) {
      uint32_t first = peek(&entries[at]);
      if (first == kMissing) first = compare_exchange(&entries[at], kMissing, own);
      if (first == kMissing || of.bags.ids[first] == id) break;
    }
    lower(&entries[at], own);
    return at;
  }
};

/// Leaves a row in host memory to the first of its positions: firsts[i] = that, or kMissing where
/// position i looks for itself.
struct Share {
  uint32_t* slots;
  const uint32_t* entries;
  uint32_t* firsts;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    if (firsts[i] == kMissing) return;
    const uint32_t first = entries[firsts[i]];
    const bool is_own = first == static_cast<uint32_t>(i);
    firsts[i] = is_own ? kMissing : first;
    if (!is_own) slots[i] = kSkipped;
  }
};

/// Item i copies row firsts[i] of the output to row i.
template <class Element, int kWidth>
struct CopyRows {
  const uint32_t* firsts;
  int64_t count;
  uint32_t dim;
  Element* output;

  VRAMKIT_ON_BOTH int64_t items() const { return count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const uint32_t first = firsts[item];
    if (first == kMissing) return;
    using P = Pack<Element, kWidth>;
    const Element* const from = output + uint64_t{first} * dim;
    Element* const to = output + static_cast<uint64_t>(item) * dim;
    for_columns<kWidth>(lanes, dim, [&](uint32_t at) {
      store_streaming(to + at, *reinterpret_cast<const P*>(from + at));
    });
  }
};

/// What a lookup does before and after it reads rows, where some are in host memory.
template <class Device>
class HostRows {
 public:
  /// Finds the slots of `of`, and leaves repeated rows to finish().
  HostRows(Device& device, Lookup& of) : device_(device) {
    if (of.rows.host_from == kMissing || of.bags.positions == 0) return;
    const auto count = static_cast<uint64_t>(of.bags.positions);
    shares_ = of.bags.mode == Mode::kNone && count <= kMostShared;
    uint64_t entries = shares_ ? 2 : 0;
    while (shares_ && entries < 2 * count) entries *= 2;
    const auto slots_at = scratch_.add<uint32_t>(count);
    const auto entries_at = scratch_.add<uint32_t>(entries);
    const auto firsts_at = scratch_.add<uint32_t>(shares_ ? count : 0);
    scratch_.allocate(device);
    auto* const slots = scratch_.piece<uint32_t>(slots_at);
    auto* const set = scratch_.piece<uint32_t>(entries_at);
    firsts_ = scratch_.piece<uint32_t>(firsts_at);
    device.fill(set, 0xff, entries * sizeof(uint32_t));
    device.run(of.bags.positions, Locate{of, slots, set, static_cast<uint32_t>(entries), firsts_});
    if (shares_) device.run(of.bags.positions, Share{slots, set, firsts_});
    of.slots = slots;
  }

  /// To be called when the rows have been read.
  void finish(const Lookup& of) {
    if (!shares_) return;
    const bool is_vector = of.rows.layout.dim % 4 == 0;
    if (of.type == RowType::kFloat32) {
      is_vector ? copy<uint32_t, 4>(of) : copy<uint32_t, 1>(of);
    } else {
      is_vector ? copy<uint16_t, 4>(of) : copy<uint16_t, 1>(of);
    }
  }

 private:
  // The set has twice as many entries, a power of two, and they are numbered by 32 bits.
  static constexpr uint64_t kMostShared = uint64_t{1} << 30;

  template <class Element, int kWidth>
  void copy(const Lookup& of) {
    const uint32_t dim = of.rows.layout.dim;
    device_.run_groups(CopyRows<Element, kWidth>{firsts_, of.bags.positions, dim,
                                                 static_cast<Element*>(of.output)},
                       lanes_for(dim, kWidth));
  }

  Device& device_;
  Scratch scratch_;
  uint32_t* firsts_ = nullptr;
  bool shares_ = false;
};

}  // namespace vramkit::embedding::device
