// The lookups of a call, in one table or several: kernels of the same kind are started as one, and
// the host waits once for what all tables miss.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/embedding/device/many.h"
#include "ops/embedding/device/sharing.h"
#include "ops/embedding/device/table.h"
#include "ops/embedding/torch_tables.h"

namespace vramkit::embedding::device {

template <class Device>
class Lookups {
 public:
  using TableOf = Table<Device>;

  Lookups(TablesOf<TableOf>& tables, std::vector<Wanted> wanted) {
    STD_TORCH_CHECK(!wanted.empty(), "vramkit: a call without lookups");
    for (Wanted& of : wanted) {
      used_.push_back(tables.find(of.table));
      all_.push_back(One(std::move(of), used_.back()));
    }
    locks_ = lock_all(used_);
    std::vector<typename Device::Mailbox*> mailboxes;
    for (One& one : all_) {
      one.wanted.check_dim(one.store().layout());
      check(one.table->mailbox.alarm(), one.store().config(), kEarlier);
      mailboxes.push_back(&one.table->mailbox);
    }
    device_.emplace(device_of(all_[0].wanted.ids), mailboxes);
  }

  /// The outputs. Changes no table, and does not wait for the device.
  std::vector<Tensor> read() {
    std::vector<Scratch> factors;
    std::vector<One*> ones;
    for (One& one : all_) {
      if (device_->is_capturing()) one.store().freeze();
      one.table->lookups += one.bags.positions;
      one.table->hits += one.bags.positions;
      one.look();
      factors.push_back(limit(one));
      one.of.misses = one.table->control()->misses;
      ones.push_back(&one);
    }
    pool(ones);
    std::vector<Tensor> outputs;
    for (One& one : all_) outputs.push_back(std::move(one.output));
    if (Device::kIsImmediate) check_all(ones);
    return outputs;
  }

  /// Of each lookup: output, slots, a Head, argmax. Ids without a row get one. What throws for an
  /// id, an offset or a full table has given no row to any id of its round.
  std::vector<Tensor> insert() {
    device_->check_waiting("a training lookup in a table with a fused optimizer");
    for (const std::vector<size_t>& round : rounds_of(used_)) {
      for (size_t first = 0; first < round.size(); first += kAtOnce) {
        std::vector<One*> ones;
        for (size_t i = first; i < round.size() && i < first + kAtOnce; ++i) {
          ones.push_back(&all_[round[i]]);
        }
        insert(ones);
      }
    }
    // Of modes that need no argmax; a tensor in the host's memory costs less than one on the
    // device.
    const Tensor nothing = new_on_host(0, ScalarType::Long);
    std::vector<Tensor> results;
    for (One& one : all_) {
      if (one.bags.mode != Mode::kMax) one.argmax = nothing;
      results.push_back(std::move(one.output));
      results.push_back(std::move(one.slots));
      results.push_back(std::move(one.head));
      results.push_back(std::move(one.argmax));
    }
    return results;
  }

  /// As `insert`, for one table that is filled: padding ids get rows too, and there is no output.
  void fill() {
    all_[0].with_padding = true;
    all_[0].has_output = false;
    insert({&all_[0]});
  }
  const uint32_t* slots() const { return embedding::read<uint32_t>(all_[0].slots); }
  Device& device() { return *device_; }

 private:
  // Tables whose counts the host waits for at once.
  static constexpr size_t kAtOnce = Device::Mailbox::kAnswerBytes / sizeof(Counts);

  struct One {
    One(Wanted lookup, std::shared_ptr<TableOf> in)
        : wanted(std::move(lookup)), table(std::move(in)), bags(wanted.bags()) {
      if (Device::kIsImmediate) check_ends(bags);
    }

    DeviceStore<Device>& store() const { return table->store; }
    bool is_limited() const { return wanted.limit.most > 0; }
    /// Whether rows change or move before they are read.
    bool is_late() const { return is_limited() || store().moves_rows(); }
    void look() { of = lookup_of(*table, bags, row_type_of(wanted.dtype)); }
    Batch batch() const {
      return store().batch(bags.ids, bags.positions, with_padding, write<uint32_t>(slots));
    }

    Wanted wanted;
    std::shared_ptr<TableOf> table;
    Bags bags;
    bool with_padding = false;
    bool has_output = true;
    Lookup of{};
    Tensor output{};
    Tensor slots{};
    Tensor head{};
    Tensor argmax{};
    Counts* counts = nullptr;
    uint32_t* distinct = nullptr;  // the rows of the batch, where norms are limited
    int64_t rows_in_batch = 0;
    typename DeviceStore<Device>::Fresh fresh{};
  };

  static void check_all(const std::vector<One*>& ones) {
    for (One* const one : ones) check(one->table->mailbox.alarm(), one->store().config(), "");
  }

  /// Has a lookup scale rows to the limit, if there is one. The result holds the factors.
  Scratch limit(One& one) {
    Scratch scratch;
    if (!one.is_limited()) return scratch;
    const auto factors_at = scratch.add<float>(static_cast<uint64_t>(one.bags.positions));
    scratch.allocate(*device_);
    auto* const factors = scratch.piece<float>(factors_at);
    with_kernel(one.of.rows.layout, [&]<class Type, int kWidth>() {
      device_->run_groups(LimitFactors<Type, kWidth>{one.of, one.wanted.limit, factors},
                          lanes_for(one.of.rows.layout.dim, kWidth));
    });
    one.of.limited = factors;
    return scratch;
  }

  void pool(const std::vector<One*>& ones) {
    std::vector<RowLayout> layouts;
    std::vector<Lookup> lookups;
    std::vector<HostRows<Device>> hosted;
    for (One* const one : ones) {
      const int64_t dim = one->of.rows.layout.dim;
      layouts.push_back(one->of.rows.layout);
      one->output = new_like(one->wanted.ids, one->wanted.shape(one->bags), one->wanted.dtype);
      if (one->bags.mode == Mode::kMax) {
        const int64_t count = one->bags.bags * dim;
        one->argmax = new_like(one->wanted.ids, count, ScalarType::Long);
        one->of.argmax = write<int64_t>(one->argmax);
      }
      one->of.output = one->output.mutable_data_ptr();
      lookups.push_back(one->of);
      hosted.emplace_back(*device_, lookups.back());
    }
    with_kernels<8>(layouts,
                    [&]<class Type, int kWidth>(const std::vector<size_t>& alike, uint32_t lanes) {
                      std::vector<Gather<Type, kWidth>> rows;
                      std::vector<AddUp<Type, kWidth>> sums;
                      for (const size_t i : alike) {
                        const Lookup& of = lookups[i];
                        if (of.bags.mode == Mode::kNone) {
                          rows.push_back({of});
                        } else if (of.bags.mode == Mode::kMax) {
                          device_->run_groups(Largest<Type, kWidth>{of}, lanes);
                        } else {
                          sums.push_back({of});
                        }
                      }
                      run_groups_each(*device_, rows, lanes);
                      run_groups_each(*device_, sums, lanes);
                    });
    for (size_t i = 0; i < ones.size(); ++i) hosted[i].finish(lookups[i]);
  }

  /// At most one lookup of each table.
  void insert(const std::vector<One*>& ones) {
    const Scratch scratch = find(ones);
    Counts* const counts = ones[0]->counts;
    device_->ask(counts, ones.size() * sizeof(Counts));
    // Rows that are not there yet have the same values before and after they are: what the device
    // does next need not wait for the host. Where norms are limited they have not, and rows that
    // come to the device are read there.
    pool_if(ones, false);
    std::vector<Counts> told(ones.size());
    device_->answer(told.data(), told.size() * sizeof(Counts));
    check_all(ones);
    make_rows(ones, told);
    limit_rows(ones);
    pool_if(ones, true);
    for (One* const one : ones) {
      one->head = new_on_host(kHead, ScalarType::Long);
      // Nothing here needs the distinct ids again, so they are not listed.
      const Head made{0, one->store().epoch(), one->table->version};
      std::memcpy(one->head.mutable_data_ptr(), &made, sizeof made);
    }
  }

  /// Finds the rows of all ids. The result holds the counts, and the rows where they are listed.
  Scratch find(const std::vector<One*>& ones) {
    Scratch scratch;
    const bool is_alone = ones.size() == 1 && ones[0]->bags.positions != 0;
    const auto counts_at = scratch.add<Counts>(is_alone ? 0 : ones.size());
    std::vector<size_t> distinct_at;
    for (One* const one : ones) {
      const auto count = static_cast<uint64_t>(one->is_limited() ? one->bags.positions : 0);
      distinct_at.push_back(scratch.add<uint32_t>(count));
    }
    if (!is_alone || ones[0]->is_limited()) scratch.allocate(*device_);
    for (One* const one : ones) {
      one->slots = new_like(one->wanted.ids, one->bags.positions, ScalarType::Int);
    }
    Counts* next = nullptr;
    Counts* counts = nullptr;
    if (is_alone) {
      // There is memory for all that the batch needs to clear the next one's counters.
      std::tie(counts, next) = ones[0]->table->take_counts();
    } else {
      counts = scratch.piece<Counts>(counts_at);
      device_->fill(counts, 0, ones.size() * sizeof(Counts));
    }
    std::vector<std::pair<Find, int64_t>> finds;
    std::vector<std::pair<FindInBags, int64_t>> in_bags;
    for (size_t i = 0; i < ones.size(); ++i) {
      One& one = *ones[i];
      one.look();
      const int64_t positions = one.bags.positions;
      one.of.slots = write<uint32_t>(one.slots);
      one.counts = counts + i;
      if (one.is_limited()) one.distinct = scratch.piece<uint32_t>(distinct_at[i]);
      const Find find = one.store().find(one.batch(), one.counts, one.distinct, one.of.alarm, next);
      if (one.bags.mode == Mode::kNone) {
        finds.emplace_back(find, positions);
      } else {
        in_bags.emplace_back(FindInBags{find, {one.of}, positions, one.bags.bags},
                             std::max(positions, one.bags.bags));
      }
    }
    run_each(*device_, finds);
    run_each(*device_, in_bags);
    return scratch;
  }

  void pool_if(const std::vector<One*>& ones, bool late) {
    std::vector<One*> chosen;
    for (One* const one : ones) {
      if (!one->has_output || one->is_late() != late) continue;
      // What does not fit is told once, by kernels that are waited for.
      one->of.alarm = nullptr;
      one->of.index = one->store().index();
      one->of.rows = one->store().rows();
      chosen.push_back(one);
    }
    if (!chosen.empty()) pool(chosen);
  }

  /// Gives rows to ids that have none. Waits once for how many these are, if there are any.
  void make_rows(const std::vector<One*>& ones, std::vector<Counts>& told) {
    bool any = false;
    for (size_t i = 0; i < ones.size(); ++i) {
      const Found found(told[i]);
      translated([&] { ones[i]->store().check_fits(found.found, 0); });
      if (found.missing == 0) continue;
      any = true;
      ones[i]->fresh =
          ones[i]->store().distinct(*device_, ones[i]->batch(), ones[i]->counts, found);
    }
    if (any) device_->read(told.data(), ones[0]->counts, told.size() * sizeof(Counts));
    for (size_t i = 0; i < ones.size(); ++i) {
      const Found found(told[i]);
      translated([&] { ones[i]->store().check_fits(found.found, found.fresh); });
    }
    for (size_t i = 0; i < ones.size(); ++i) {
      One& one = *ones[i];
      const Found found(told[i]);
      const typename DeviceStore<Device>::Fresh fresh = std::move(one.fresh);
      one.fresh = {};
      translated([&] {
        one.store().insert(*device_, one.batch(), fresh, found, one.distinct, one.has_output);
      });
      if (one.has_output) {
        one.table->lookups += int64_t{found.found} + found.fresh;
        one.table->hits += found.found - (one.store().moves_rows() ? found.hosted : 0);
      }
      one.rows_in_batch = int64_t{found.found} + found.fresh;
    }
  }

  void limit_rows(const std::vector<One*>& ones) {
    for (One* const one : ones) {
      if (!one->is_limited()) continue;
      ++one->table->version;
      const DeviceStore<Device>& store = one->store();
      with_kernel(store.layout(), [&]<class Type, int kWidth>() {
        device_->run_groups(LimitNorms<Type, kWidth>{store.rows(), one->wanted.limit, one->distinct,
                                                     one->rows_in_batch, store.clock()},
                            lanes_for(store.layout().dim, kWidth));
      });
    }
  }

  std::vector<std::shared_ptr<TableOf>> used_;
  std::vector<One> all_;
  std::vector<std::unique_lock<std::mutex>> locks_;
  std::optional<Device> device_;
};

}  // namespace vramkit::embedding::device
