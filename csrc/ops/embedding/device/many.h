// One kernel for several tables: functors of the same kind, whose items are numbered one after the
// other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/embedding/device/lanes.h"
#include "ops/embedding/device/rows.h"
#include "ops/on_both.h"

namespace vramkit::embedding::device {

// All devices take kernel parameters of 4 KiB; some bytes are for the launch's own.
inline constexpr size_t kParameterBytes = 3968;
// Threads that count together: those of a warp.
inline constexpr int64_t kTogether = 32;

/// A functor of a kernel that stands for several ones. They travel as the kernel's parameters, so
/// that no copy to the device comes first. Each begins with a warp of its own: take_number() counts
/// at one address for all threads of a warp.
template <class F>
class Many {
  static_assert(std::is_trivially_copyable_v<F>);

 public:
  static constexpr size_t kMost =
      std::clamp<size_t>(kParameterBytes / (sizeof(F) + 2 * sizeof(int64_t)), 1, 64);

  bool is_full() const { return count_ == kMost; }
  void add(const F& f, int64_t items) {
    each_[count_] = f;
    starts_[count_] = items_;
    sizes_[count_] = items;
    items_ += (items + kTogether - 1) / kTogether * kTogether;
    ++count_;
  }

  VRAMKIT_ON_BOTH int64_t items() const { return items_; }

  template <class... Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes&... lanes) const {
    uint32_t at = 0;
    while (at + 1 < count_ && starts_[at + 1] <= item) ++at;
    const int64_t own = item - starts_[at];
    if (own < sizes_[at]) each_[at](own, lanes...);
  }

 private:
  F each_[kMost]{};
  int64_t starts_[kMost]{};
  int64_t sizes_[kMost]{};
  int64_t items_ = 0;
  uint32_t count_ = 0;
};

/// As Many, where the device alone knows how many items there are.
template <class F>
class ManyCounted {
  static_assert(std::is_trivially_copyable_v<F>);

 public:
  static constexpr size_t kMost = std::clamp<size_t>(kParameterBytes / sizeof(F), 1, 64);

  bool is_full() const { return count_ == kMost; }
  void add(const F& f) { each_[count_++] = f; }

  VRAMKIT_ON_BOTH int64_t items() const {
    int64_t total = 0;
    for (uint32_t at = 0; at < count_; ++at) total += each_[at].items();
    return total;
  }

  template <class Lanes>
  VRAMKIT_ON_BOTH void operator()(int64_t item, const Lanes& lanes) const {
    uint32_t at = 0;
    for (int64_t own = each_[0].items(); item >= own; own = each_[at].items()) {
      item -= own;
      ++at;
    }
    each_[at](item, lanes);
  }

 private:
  F each_[kMost]{};
  uint32_t count_ = 0;
};

/// Runs functors over their items, as few kernels. `run` starts one for a functor and its items.
template <class F, class Run>
void run_many(const std::vector<std::pair<F, int64_t>>& all, const Run& run) {
  if (all.size() == 1) return run(all[0].first, all[0].second);
  Many<F> many;
  for (const auto& [f, items] : all) {
    if (many.is_full()) {
      run(many, many.items());
      many = {};
    }
    if (items != 0) many.add(f, items);
  }
  if (many.items() != 0) run(many, many.items());
}

/// As Device::run.
template <class Device, class F>
void run_each(Device& device, const std::vector<std::pair<F, int64_t>>& all) {
  run_many(all, [&](const auto& f, int64_t items) { device.run(items, f); });
}

/// As Device::run_groups.
template <class Device, class F>
void run_groups_each(Device& device, const std::vector<F>& all, uint32_t lanes) {
  std::vector<std::pair<F, int64_t>> with_items;
  for (const F& f : all) with_items.emplace_back(f, f.items());
  run_many(with_items, [&](const auto& f, int64_t) { device.run_groups(f, lanes); });
}

/// As Device::run_teams.
template <class Device, class F>
void run_teams_each(Device& device, const std::vector<F>& all, uint32_t lanes) {
  if (all.size() == 1) return device.run_teams(all[0], lanes);
  for (size_t first = 0; first < all.size(); first += ManyCounted<F>::kMost) {
    ManyCounted<F> many;
    for (size_t i = first; i < all.size() && !many.is_full(); ++i) many.add(all[i]);
    device.run_teams(many, lanes);
  }
}

/// Calls f<Type, kWidth>(numbers, lanes) for the layouts that the same kernels serve; `numbers` are
/// theirs.
template <uint32_t kMost = 4, class F>
void with_kernels(const std::vector<RowLayout>& layouts, const F& f) {
  std::map<std::tuple<RowType, uint32_t, uint32_t>, std::vector<size_t>> alike;
  for (size_t i = 0; i < layouts.size(); ++i) {
    const uint32_t width = width_of(layouts[i], kMost);
    alike[{layouts[i].type, width, lanes_for(layouts[i].dim, width)}].push_back(i);
  }
  for (const auto& [kind, numbers] : alike) {
    with_kernel<kMost>(layouts[numbers[0]],
                       [&, &of = numbers, lanes = std::get<2>(kind)]<class Type, int kWidth>() {
                         f.template operator()<Type, kWidth>(of, lanes);
                       });
  }
}

}  // namespace vramkit::embedding::device
