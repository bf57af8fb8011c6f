// Updates and norms of the gradients of some forward passes, in one table or several: prepares
// them, sorts them by table and slot, and runs the kernels of update.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/embedding/device/many.h"
#include "ops/embedding/device/store.h"
#include "ops/embedding/device/update.h"

namespace vramkit::embedding::device {

/// The gradients of a table; `parts` without `first` and `first_bag`, which Gradients sets.
template <class Device>
struct TableGradients {
  DeviceStore<Device>* store;
  std::vector<GradientPart> parts;
  RowType type;              // of the gradients
  uint32_t* lost = nullptr;  // as Prepare has it
};

/// What an update of a table takes besides.
struct Change {
  Step step;
  float factor;
  uint64_t draws;
};

template <class Device>
class Gradients {
 public:
  Gradients(Device& device, std::vector<TableGradients<Device>> tables) : device_(device) {
    for (TableGradients<Device>& table : tables) all_.push_back(One(std::move(table)));
    for (One& one : all_) {
      one.first = positions_count_;
      positions_count_ += one.count;
      in_bags_ |= one.in_bags;
      has_factors_ |= one.has_factors;
    }
    if (positions_count_ == 0) return;
    number_keys();
    allocate();
    prepare();
    sort();
    for (size_t i = 0; i < all_.size(); ++i) list(i);
  }

  /// Updates the rows that are still there; one change for each table.
  void apply(const std::vector<Change>& changes) {
    std::vector<uint32_t> clocks;
    for (One& one : all_) clocks.push_back(one.of.store->tick());
    if (positions_count_ == 0) return;
    with_kernels(layouts(),
                 [&]<class Type, int kWidth>(const std::vector<size_t>& alike, uint32_t lanes) {
                   run<kWidth>(alike, lanes, [&](size_t i) {
                     const Change& of = changes[i];
                     return Apply<Type, kWidth>{all_[i].of.store->rows(), of.step, of.factor,
                                                of.draws, clocks[i]};
                   });
                 });
  }

  /// The 2-norm over all rows of a table that is alone.
  double norm() {
    if (positions_count_ == 0) return 0;
    Scratch scratch;
    const auto squares_at = scratch.add<double>(static_cast<uint64_t>(positions_count_));
    const auto total_at = scratch.add<double>(1);
    scratch.allocate(device_);
    auto* const squares = scratch.piece<double>(squares_at);
    auto* const total = scratch.piece<double>(total_at);
    device_.fill(squares, 0, static_cast<uint64_t>(positions_count_) * sizeof(double));
    const uint32_t dim = layouts()[0].dim;
    if (dim % 4 == 0) {
      run<4>({0}, lanes_for(dim, 4), [&](size_t) { return SquareNorm<4>{dim, squares}; });
    } else {
      run<1>({0}, lanes_for(dim, 1), [&](size_t) { return SquareNorm<1>{dim, squares}; });
    }
    device_.sum(squares, positions_count_, total);
    double result = 0;
    device_.read(&result, total, sizeof result);
    return std::sqrt(result);
  }

 private:
  /// A table. Its positions are next to each other among those of all tables, sorted or not.
  struct One {
    explicit One(TableGradients<Device> gradients) : of(std::move(gradients)) {
      for (GradientPart& part : of.parts) {
        part.first = count;
        part.first_bag = bags;
        count += part.bags.positions;
        bags += part.bags.bags;
        in_bags |= part.bags.mode != Mode::kNone;
        has_factors |=
            part.bags.mode == Mode::kMean || part.bags.weights != nullptr || part.by_frequency;
        by_frequency |= part.by_frequency;
      }
      counts_members = in_bags && of.store->config().padding.has_value();
    }

    TableGradients<Device> of;
    int64_t count = 0;
    int64_t bags = 0;
    bool in_bags = false;
    bool has_factors = false;
    bool by_frequency = false;
    bool counts_members = false;
    int64_t first = 0;
    Keys keys{};
    size_t members_at = 0, counts_at = 0, partials_at = 0, long_rows_at = 0, list_at = 0;
    Sorted sorted{};
  };

  uint32_t* piece(size_t number) const { return scratch_.template piece<uint32_t>(number); }
  uint32_t* members(const One& one) const {
    return one.counts_members ? piece(one.members_at) : nullptr;
  }
  uint32_t* bag_of(const One& one) const { return in_bags_ ? piece(bag_of_) + one.first : nullptr; }
  float* factors(const One& one) const {
    return one.has_factors ? scratch_.template piece<float>(factors_) + one.first : nullptr;
  }
  std::vector<RowLayout> layouts() const {
    std::vector<RowLayout> result;
    for (const One& one : all_) result.push_back(one.of.store->layout());
    return result;
  }

  void allocate() {
    const auto count = static_cast<uint64_t>(positions_count_);
    keys_ = scratch_.add<uint32_t>(count);
    sorted_keys_ = scratch_.add<uint32_t>(count);
    positions_ = scratch_.add<uint32_t>(count);
    sorted_positions_ = scratch_.add<uint32_t>(count);
    bag_of_ = scratch_.add<uint32_t>(in_bags_ ? count : 0);
    factors_ = scratch_.add<float>(has_factors_ ? count : 0);
    long_counts_ = scratch_.add<uint32_t>(all_.size());
    for (One& one : all_) {
      const auto kernels = static_cast<uint64_t>((one.count + kPart - 1) / kPart);
      const uint64_t slots = uint64_t{one.of.store->size()} + 1;
      one.members_at = scratch_.add<uint32_t>(one.counts_members ? one.bags : 0);
      one.counts_at = scratch_.add<uint32_t>(one.by_frequency ? slots : 0);
      one.partials_at = scratch_.add<float>(2 * kernels * one.of.store->layout().dim);
      one.long_rows_at = scratch_.add<LongRow>(kernels / static_cast<uint64_t>(kShort) + 1);
      one.list_at = scratch_.add<GradientPart>(one.of.parts.size());
    }
    for (const Sort& of : sorts_) {
      storage_bytes_ = std::max(storage_bytes_, device_.sort_bytes(of.count, of.bits()));
    }
    storage_ = scratch_.add<char>(storage_bytes_);
    scratch_.allocate(device_);
  }

  /// Tables whose slots have 32-bit keys together are sorted at once. They follow each other.
  void number_keys() {
    uint64_t next = 0;
    int64_t positions = 0;
    for (size_t i = 0; i < all_.size(); ++i) {
      One& one = all_[i];
      const uint64_t slots = uint64_t{one.of.store->size()} + 1;
      if (i == 0 || next + slots > UINT32_MAX || positions + one.count > kMostSorted) {
        sorts_.push_back({i, i, 0, 0});
        next = 0;
        positions = 0;
      }
      one.keys = {static_cast<uint32_t>(next), static_cast<uint32_t>(next + slots - 1)};
      next += slots;
      positions += one.count;
      sorts_.back() = {sorts_.back().begin, i + 1, one.keys.none, positions};
    }
  }

  void prepare() {
    std::vector<std::pair<Prepare, int64_t>> prepares;
    for (size_t i = 0; i < all_.size(); ++i) {
      const One& one = all_[i];
      if (one.counts_members) {
        device_.fill(members(one), 0, static_cast<uint64_t>(one.bags) * sizeof(uint32_t));
      }
      for (const GradientPart& part : one.of.parts) {
        prepares.emplace_back(
            Prepare{part, one.of.store->initial(), one.of.store->rows(), one.of.store->index(),
                    one.keys, piece(keys_) + one.first, piece(positions_) + one.first, bag_of(one),
                    members(one), piece(long_counts_) + i, one.of.lost},
            part.bags.positions);
      }
    }
    run_each(device_, prepares);
    std::vector<std::pair<Factors, int64_t>> factors_of;
    for (const One& one : all_) add_factors(one, factors_of);
    run_each(device_, factors_of);
  }

  void add_factors(const One& one, std::vector<std::pair<Factors, int64_t>>& to) {
    if (!one.has_factors) return;
    uint32_t* const keys = piece(keys_) + one.first;
    for (const GradientPart& part : one.of.parts) {
      const Factors of{part,        one.keys, keys, bag_of(one), members(one), piece(one.counts_at),
                       factors(one)};
      if (!part.by_frequency) {
        to.emplace_back(of, part.bags.positions);
        continue;
      }
      // The next part counts in the same place.
      device_.fill(piece(one.counts_at), 0,
                   (uint64_t{one.of.store->size()} + 1) * sizeof(uint32_t));
      device_.run(part.bags.positions,
                  CountSlots{one.keys, keys + part.first, piece(one.counts_at)});
      device_.run(part.bags.positions, of);
    }
  }

  void sort() {
    for (const Sort& of : sorts_) {
      if (of.count == 0) continue;
      const int64_t at = all_[of.begin].first;
      device_.sort(piece(keys_) + at, piece(sorted_keys_) + at, piece(positions_) + at,
                   piece(sorted_positions_) + at, of.count, of.bits(),
                   scratch_.template piece<char>(storage_), storage_bytes_);
    }
  }

  void list(size_t number) {
    One& one = all_[number];
    if (one.count == 0) return;
    one.sorted = {piece(sorted_keys_) + one.first,
                  piece(sorted_positions_) + one.first,
                  one.count,
                  one.keys,
                  one.of.store->layout().dim,
                  one.of.parts[0],
                  nullptr,
                  static_cast<int>(one.of.parts.size()),
                  bag_of(one),
                  factors(one),
                  one.of.type};
    if (one.of.parts.size() == 1) return;
    auto* const parts = scratch_.template piece<GradientPart>(one.list_at);
    device_.write(parts, one.of.parts.data(), one.of.parts.size() * sizeof(GradientPart));
    one.sorted.parts = parts;
  }

  /// Hands the rows of some tables to their sinks.
  template <int kWidth, class MakeSink>
  void run(const std::vector<size_t>& tables, uint32_t lanes, const MakeSink& sink_of) {
    using Sink = decltype(sink_of(0));
    std::vector<SumParts<kWidth, Sink>> parts;
    std::vector<SumShort<kWidth, Sink>> short_rows;
    std::vector<SumLong<kWidth, Sink>> long_rows;
    uint32_t* const long_counts = piece(long_counts_);
    for (const size_t i : tables) {
      const One& one = all_[i];
      if (one.count == 0) continue;
      const Sink sink = sink_of(i);
      const Partials partials{scratch_.template piece<float>(one.partials_at)};
      auto* const listed = scratch_.template piece<LongRow>(one.long_rows_at);
      uint32_t* const long_count = long_counts + i;
      parts.push_back({one.sorted, partials, sink});
      if (one.count <= kPart) continue;
      short_rows.push_back({one.sorted, partials, sink, listed, long_count});
      if (one.count <= kPart * kShort) continue;
      long_rows.push_back({one.sorted, partials, sink, listed, long_count});
    }
    run_groups_each(device_, parts, lanes);
    run_groups_each(device_, short_rows, lanes);
    run_teams_each(device_, long_rows, lanes);
  }

  // Of several tables at once; more would gain nothing.
  static constexpr int64_t kMostSorted = INT32_MAX;

  /// Tables `begin` to `end` - 1.
  struct Sort {
    size_t begin;
    size_t end;
    uint32_t last_key;
    int64_t count;

    int bits() const { return std::max(1, static_cast<int>(std::bit_width(last_key))); }
  };

  Device& device_;
  std::vector<One> all_;
  std::vector<Sort> sorts_;
  int64_t positions_count_ = 0;
  bool in_bags_ = false;
  bool has_factors_ = false;
  Scratch scratch_;
  size_t keys_ = 0, sorted_keys_ = 0, positions_ = 0, sorted_positions_ = 0, bag_of_ = 0;
  size_t factors_ = 0, long_counts_ = 0, storage_ = 0;
  uint64_t storage_bytes_ = 0;
};

}  // namespace vramkit::embedding::device
