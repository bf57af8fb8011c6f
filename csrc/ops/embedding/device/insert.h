// Kernels that give rows to ids: find the ids of a batch, make those without a row distinct, take
// slots for them, write their initial rows; and those that give up, dump and load rows.
#pragma once

#include <cstdint>

#include "ops/embedding/device/index.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/rows.h"

namespace vramkit::embedding::device {

// Counters that threads share, so that few of them wait for each other at one address.
inline constexpr int64_t kTallies = 16;

/// What kernels count of a batch.
struct Counts {
  uint32_t missing[kTallies];  // positions without a row
  uint32_t found[kTallies];    // distinct rows
  uint32_t hosted[kTallies];   // of these, in host memory
  uint32_t fresh;              // distinct ids without a row
};

/// What the host must know of a batch before it goes on.
struct Found {
  explicit Found(const Counts& counts) : fresh(counts.fresh) {
    for (const uint32_t some : counts.missing) missing += some;
    for (const uint32_t some : counts.found) found += some;
    for (const uint32_t some : counts.hosted) hosted += some;
  }
  uint32_t missing = 0;
  uint32_t found = 0;
  uint32_t hosted = 0;
  uint32_t fresh;
};

/// A batch of ids to insert.
struct Batch {
  const int64_t* ids;
  int64_t positions;
  bool with_padding;  // padding ids are as all others
  Initial initial;
  int64_t num_rows;
  uint32_t* slots;

  VRAMKIT_ON_BOTH bool inserts(int64_t id) const { return with_padding || !initial.is_padding(id); }
};

/// Finds the slot of position i, and stamps its row. `distinct`, if not null, gets the rows found.
struct Find {
  Batch batch;
  IndexView index;
  RowsView rows;
  uint32_t clock;
  Counts* counts;
  uint32_t* distinct;
  Alarm* alarm;
  Counts* next;  // becomes 0, for the next batch; or null

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    if (i == 0 && next != nullptr) *next = Counts{};
    const int64_t id = batch.ids[i];
    uint32_t slot = kMissing;
    if (batch.num_rows >= 0 && (id < 0 || id >= batch.num_rows)) {
      alarm->raise(Alarm::kId, id);
    } else {
      slot = index.find(id, rows);
      if (batch.inserts(id)) count(i, slot);
    }
    batch.slots[i] = slot;
  }

 private:
  VRAMKIT_ON_BOTH void count(int64_t i, uint32_t slot) const {
    const int64_t tally = i / 32 % kTallies;
    if (slot == kMissing) {
      take_number(&counts->missing[tally]);
      return;
    }
    Stamps& stamps = rows.meta(slot).stamps;
    if (peek(&stamps.used) == clock || exchange(&stamps.used, clock) == clock) return;
    ++stamps.frequency;
    if (slot >= rows.host_from) take_number(&counts->hosted[tally]);
    if (distinct == nullptr) {
      take_number(&counts->found[tally]);
    } else {
      distinct[take_number(&counts->found[0])] = slot;
    }
  }
};

/// Find, and CheckOffsets for the bags of the same lookup.
struct FindInBags {
  Find find;
  CheckOffsets check;
  int64_t positions;
  int64_t bags;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    if (i < bags) check(i);
    if (i < positions) find(i);
  }
};

/// A hash set of ids without a row. An entry is the first position of an id, so that no id needs
/// to stand for "empty", and which one is first does not depend on the order of the threads.
struct FreshSet {
  Batch batch;
  uint32_t* entries;  // kMissing: empty
  uint32_t size;      // a power of two, more than there are ids
  uint32_t* where;    // the entry of each position, or kMissing

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const int64_t id = batch.ids[i];
    where[i] = kMissing;
    if (batch.slots[i] != kMissing || !batch.inserts(id)) return;
    const auto own = static_cast<uint32_t>(i);
    auto at = static_cast<uint32_t>(mix(static_cast<uint64_t>(id)) & (size - 1));
    for (;; at = (at + 1) & (size - 1)) {
      uint32_t first = peek(&entries[at]);
      if (first == kMissing) first = compare_exchange(&entries[at], kMissing, own);
      if (first == kMissing || batch.ids[first] == id) break;
    }
    lower(&entries[at], own);
    where[i] = at;
  }
};

/// flags[i] = whether position i is the first one of an id without a row.
struct FlagFresh {
  FreshSet set;
  uint8_t* flags;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const uint32_t at = set.where[i];
    flags[i] = at != kMissing && set.entries[at] == static_cast<uint32_t>(i) ? 1 : 0;
  }
};

/// Gives a slot to the i-th fresh id: that of an evicted row, as long as there are some, then new.
struct Take {
  Batch batch;
  const uint32_t* firsts;   // their first positions
  const uint32_t* evicted;  // slots
  uint32_t evicted_count;
  uint32_t size;
  IndexView index;  // of no size where the keys are entered later
  RowsView rows;
  uint32_t clock;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const auto number = static_cast<uint32_t>(i);
    const bool reused = number < evicted_count;
    // In the order of the CPU, which takes the slot that was given up last first.
    const uint32_t slot =
        reused ? evicted[evicted_count - 1 - number] : size + (number - evicted_count);
    const int64_t key = batch.ids[firsts[i]];
    rows.meta(slot) = {key, {clock, clock, 1}, batch.initial.state};
    if (rows.has_turns) rows.turn(slot) = 0;
    if (index.size != 0) index.insert(key, slot);
    batch.slots[firsts[i]] = slot;
  }
};

/// The slots of the positions of fresh ids after the first ones.
struct Spread {
  FreshSet set;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    if (set.where[i] == kMissing) return;
    const uint32_t first = set.entries[set.where[i]];
    if (first != static_cast<uint32_t>(i)) set.batch.slots[i] = set.batch.slots[first];
  }
};

/// to[i] = the slot of the i-th of some positions.
struct CopySlots {
  const uint32_t* slots;
  const uint32_t* positions;
  uint32_t* to;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const { to[i] = slots[positions[i]]; }
};

/// Writes the initial values and state of the row of the i-th fresh id.
template <class Type, int kWidth>
struct WriteInitial {
  Batch batch;
  const uint32_t* firsts;
  RowsView rows;
  int64_t count;

  VRAMKIT_ON_BOTH int64_t items() const { return count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const int64_t key = batch.ids[firsts[item]];
    const uint32_t slot = batch.slots[firsts[item]];
    const RowLayout& layout = rows.layout;
    const float scale = batch.initial.scale<Type>(lanes, key, layout.dim);
    if (Type::kScaled && lanes.rank() == 0) rows.scale(slot) = scale;
    for_columns<kWidth>(lanes, layout.dim, [&](uint32_t at) {
      store<Type, kWidth>(rows.row(slot), at, batch.initial.pack<Type, kWidth>(key, scale, at));
    });
    const float state = layout.rule == Rule::kAdagrad ? batch.initial.state : 0.0F;
    for_columns<1>(lanes, layout.state_count(), [&](uint32_t at) { rows.state(slot)[at] = state; });
  }
};

/// Enters slot i again.
struct Enter {
  IndexView index;
  RowsView rows;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const auto slot = static_cast<uint32_t>(i);
    index.insert(rows.meta(slot).key, slot);
  }
};

/// ranks[i] = when slot i is given up: the lowest first. Rows of the running batch come last.
struct Rank {
  RowsView rows;
  bool by_frequency;
  uint32_t clock;
  uint64_t* ranks;
  uint32_t* slots;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const auto slot = static_cast<uint32_t>(i);
    const Stamps stamps = rows.meta(slot).stamps;
    const uint64_t rank =
        by_frequency ? uint64_t{stamps.frequency} << 32 | stamps.used : stamps.used;
    ranks[i] = stamps.used == clock ? UINT64_MAX : rank;
    slots[i] = slot;
  }
};

struct Erase {
  IndexView index;
  RowsView rows;
  const uint32_t* slots;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    index.erase(rows.meta(slots[i]).key, slots[i]);
  }
};

/// flags[i] = whether the row in slot i has changed after `since`.
struct FlagChanged {
  RowsView rows;
  int64_t since;
  uint8_t* flags;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const uint32_t changed = rows.meta(static_cast<uint32_t>(i)).stamps.changed;
    flags[i] = int64_t{changed} > since ? 1 : 0;
  }
};

/// keys[i] = the key of slot i.
struct ListKeys {
  RowsView rows;
  int64_t* keys;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    keys[i] = rows.meta(static_cast<uint32_t>(i)).key;
  }
};

/// faults gets the number of slots whose key the index has elsewhere.
struct CheckIndex {
  IndexView index;
  RowsView rows;
  uint32_t* faults;

  VRAMKIT_ON_BOTH void operator()(int64_t i) const {
    const auto slot = static_cast<uint32_t>(i);
    if (index.find(rows.meta(slot).key, rows) != slot) fetch_add(faults, 1);
  }
};

/// Copies row slots[i] to the i-th rows of flat arrays.
template <class Type>
struct Dump {
  RowsView rows;
  const uint32_t* slots;
  int64_t count;
  int64_t* keys;
  void* values;
  float* headers;  // scale, sum
  float* state;
  uint32_t* stamps;

  VRAMKIT_ON_BOTH int64_t items() const { return count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const uint32_t slot = slots[item];
    const auto at = static_cast<uint64_t>(item);
    const uint32_t dim = rows.layout.dim;
    const uint32_t states = rows.layout.state_count();
    const auto* const from = reinterpret_cast<const typename Type::Stored*>(rows.row(slot));
    auto* const to = static_cast<typename Type::Stored*>(values) + at * dim;
    for_columns<1>(lanes, dim, [&](uint32_t i) { to[i] = from[i]; });
    for_columns<1>(lanes, states,
                   [&](uint32_t i) { state[at * states + i] = rows.state(slot)[i]; });
    if (lanes.rank() != 0) return;
    const Meta& meta = rows.meta(slot);
    keys[at] = meta.key;
    headers[2 * at] = Type::kScaled ? rows.scale(slot) : 0.0F;
    headers[2 * at + 1] = meta.sum;
    stamps[3 * at] = meta.stamps.changed;
    stamps[3 * at + 1] = meta.stamps.used;
    stamps[3 * at + 2] = meta.stamps.frequency;
  }
};

/// Stores the i-th of rows given as float32, rounded to the nearest. What is null stays as it is.
template <class Type>
struct Load {
  RowsView rows;
  const uint32_t* slots;
  int64_t count;
  const float* values;
  const float* headers;
  const float* state;
  const uint32_t* stamps;
  uint32_t clock;

  VRAMKIT_ON_BOTH int64_t items() const { return count; }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    const uint32_t slot = slots[item];
    const auto at = static_cast<uint64_t>(item);
    const uint32_t dim = rows.layout.dim;
    const uint32_t states = rows.layout.state_count();
    const float scale = Type::kScaled ? headers[2 * at] : 1.0F;
    const float inverse = scale > 0 ? 1.0F / scale : 0.0F;
    auto* const to = reinterpret_cast<typename Type::Stored*>(rows.row(slot));
    for_columns<1>(lanes, dim,
                   [&](uint32_t i) { to[i] = Type::nearest(values[at * dim + i] * inverse); });
    for_columns<1>(lanes, state == nullptr ? 0 : states,
                   [&](uint32_t i) { rows.state(slot)[i] = state[at * states + i]; });
    if (lanes.rank() != 0) return;
    Meta& meta = rows.meta(slot);
    if (Type::kScaled) rows.scale(slot) = scale;
    meta.sum = headers[2 * at + 1];
    meta.stamps.changed = clock;
    if (stamps == nullptr) return;
    meta.stamps = {stamps[3 * at], stamps[3 * at + 1], stamps[3 * at + 2]};
  }
};

}  // namespace vramkit::embedding::device
