// Updates and norms of the gradients of some forward passes: prepares them, sorts them by slot, and
// runs the kernels of update.h.
#pragma once

#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/embedding/device/store.h"
#include "ops/embedding/device/update.h"

namespace vramkit::embedding::device {

template <class Device>
class Gradients {
 public:
  /// `parts` without `first` and `first_bag`, which are set here.
  Gradients(Device& device, const DeviceStore<Device>& store, std::vector<GradientPart> parts,
            RowType type)
      : device_(device), parts_(std::move(parts)), layout_(store.layout()), none_(store.size()) {
    int64_t bags = 0;
    bool in_bags = false;
    for (GradientPart& part : parts_) {
      part.first = count_;
      part.first_bag = bags;
      count_ += part.bags.positions;
      bags += part.bags.bags;
      in_bags |= part.bags.mode != Mode::kNone;
      has_factors_ |=
          part.bags.mode == Mode::kMean || part.bags.weights != nullptr || part.by_frequency;
      by_frequency_ |= part.by_frequency;
    }
    if (count_ == 0) return;
    allocate(in_bags, bags, store.config().padding.has_value());
    prepare(store, bags);
    const auto bits = static_cast<int>(std::bit_width(none_));
    device_.sort(piece(keys_), piece(sorted_keys_), piece(positions_), piece(sorted_positions_),
                 count_, bits);
    sorted_ = {piece(sorted_keys_),
               piece(sorted_positions_),
               count_,
               none_,
               layout_.dim,
               parts_[0],
               nullptr,
               static_cast<int>(parts_.size()),
               piece(bag_of_),
               factors(),
               type};
    if (parts_.size() > 1) {
      auto* const list = scratch_.piece<GradientPart>(list_);
      device_.write(list, parts_.data(), parts_.size() * sizeof(GradientPart));
      sorted_.parts = list;
    }
  }

  /// Updates the rows that are still there.
  void apply(DeviceStore<Device>& store, const Step& step, float factor, uint64_t draws) {
    const uint32_t clock = store.tick();
    if (count_ == 0) return;
    with_kernel(layout_, [&]<class Type, int kWidth>() {
      run<kWidth>(Apply<Type, kWidth>{store.rows(), step, factor, draws, clock});
    });
  }

  /// The 2-norm over all rows.
  double norm() {
    if (count_ == 0) return 0;
    Scratch scratch;
    const auto squares_at = scratch.add<double>(static_cast<uint64_t>(count_));
    const auto total_at = scratch.add<double>(1);
    scratch.allocate(device_);
    auto* const squares = scratch.piece<double>(squares_at);
    auto* const total = scratch.piece<double>(total_at);
    device_.fill(squares, 0, static_cast<uint64_t>(count_) * sizeof(double));
    if (layout_.dim % 4 == 0) {
      run<4>(SquareNorm<4>{layout_.dim, squares});
    } else {
      run<1>(SquareNorm<1>{layout_.dim, squares});
    }
    device_.sum(squares, count_, total);
    double result = 0;
    device_.read(&result, total, sizeof result);
    return std::sqrt(result);
  }

 private:
  uint32_t* piece(size_t number) const { return scratch_.template piece<uint32_t>(number); }
  float* factors() const {
    return has_factors_ ? scratch_.template piece<float>(factors_) : nullptr;
  }

  void allocate(bool in_bags, int64_t bags, bool has_padding) {
    const auto count = static_cast<uint64_t>(count_);
    const auto kernels = static_cast<uint64_t>((count_ + kPart - 1) / kPart);
    keys_ = scratch_.add<uint32_t>(count);
    sorted_keys_ = scratch_.add<uint32_t>(count);
    positions_ = scratch_.add<uint32_t>(count);
    sorted_positions_ = scratch_.add<uint32_t>(count);
    bag_of_ = scratch_.add<uint32_t>(in_bags ? count : 0);
    factors_ = scratch_.add<float>(has_factors_ ? count : 0);
    counts_members_ = in_bags && has_padding;
    members_ = scratch_.add<uint32_t>(counts_members_ ? static_cast<uint64_t>(bags) : 0);
    counts_ = scratch_.add<uint32_t>(by_frequency_ ? uint64_t{none_} + 1 : 0);
    partials_ = scratch_.add<float>(2 * kernels * layout_.dim);
    long_rows_ = scratch_.add<LongRow>(kernels / static_cast<uint64_t>(kShort) + 1);
    long_count_ = scratch_.add<uint32_t>(1);
    list_ = scratch_.add<GradientPart>(parts_.size());
    scratch_.allocate(device_);
  }

  void prepare(const DeviceStore<Device>& store, int64_t bags) {
    uint32_t* const members = counts_members_ ? piece(members_) : nullptr;
    if (counts_members_) {
      device_.fill(members, 0, static_cast<uint64_t>(bags) * sizeof(uint32_t));
    }
    for (const GradientPart& part : parts_) {
      device_.run(part.bags.positions,
                  Prepare{part, store.initial(), store.index(), none_, piece(keys_),
                          piece(positions_), piece(bag_of_), members});
    }
    for (const GradientPart& part : parts_) {
      if (!has_factors_) break;
      if (part.by_frequency) {
        device_.fill(piece(counts_), 0, (uint64_t{none_} + 1) * sizeof(uint32_t));
        device_.run(part.bags.positions, CountSlots{piece(keys_) + part.first, piece(counts_)});
      }
      device_.run(part.bags.positions, Factors{part, none_, piece(keys_), piece(bag_of_), members,
                                               piece(counts_), factors()});
    }
  }

  template <int kWidth, class Sink>
  void run(const Sink& sink) {
    const Partials partials{scratch_.template piece<float>(partials_)};
    auto* const long_rows = scratch_.template piece<LongRow>(long_rows_);
    uint32_t* const long_count = piece(long_count_);
    const uint32_t lanes = lanes_for(layout_.dim, kWidth);
    device_.fill(long_count, 0, sizeof(uint32_t));
    device_.run_groups(SumParts<kWidth, Sink>{sorted_, partials, sink}, lanes);
    if (count_ <= kPart) return;
    device_.run_groups(SumShort<kWidth, Sink>{sorted_, partials, sink, long_rows, long_count},
                       lanes);
    if (count_ <= kPart * kShort) return;
    device_.run_teams(SumLong<kWidth, Sink>{sorted_, partials, sink, long_rows, long_count}, lanes);
  }

  Device& device_;
  std::vector<GradientPart> parts_;
  RowLayout layout_;
  uint32_t none_;
  int64_t count_ = 0;
  bool has_factors_ = false;
  bool by_frequency_ = false;
  bool counts_members_ = false;
  Scratch scratch_;
  size_t keys_ = 0, sorted_keys_ = 0, positions_ = 0, sorted_positions_ = 0, bag_of_ = 0;
  size_t factors_ = 0, members_ = 0, counts_ = 0, partials_ = 0, long_rows_ = 0, long_count_ = 0;
  size_t list_ = 0;
  Sorted sorted_{};
};

}  // namespace vramkit::embedding::device
