// Lanes that are threads of the host and wait for each other wherever those of a warp may have to:
// slow, but a test with them sees lanes that disagree about what comes next.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "ops/embedding/device/rows.h"

namespace vramkit::embedding::device {

/// Groups of lanes, each lane with a place for what it tells the others.
class Crew {
  /// What a lane tells the others.
  struct Told {
    double values[4];
  };

 public:
  Crew(uint32_t count, uint32_t groups)
      : count_(count), groups_(groups), places_(count * groups), all_(count * groups) {
    for (uint32_t i = 0; i < groups; ++i) {
      barriers_.push_back(std::make_unique<std::barrier<>>(count));
    }
  }

  class Lanes {
   public:
    Lanes(Crew& crew, uint32_t thread)
        : crew_(&crew), group_(thread / crew.count_), rank_(thread % crew.count_) {}

    uint32_t rank() const { return rank_; }
    uint32_t count() const { return crew_->count_; }
    uint32_t group() const { return group_; }
    uint32_t groups() const { return crew_->groups_; }

    uint32_t from(uint32_t value, uint32_t rank) const {
      return static_cast<uint32_t>(
          together(value, [&](const Told* of) { return of[rank].values[0]; }));
    }
    template <class T>
    T sum(T value) const {
      return static_cast<T>(together(static_cast<double>(value), [&](const Told* of) {
        T total = 0;
        for (uint32_t i = 0; i < count(); ++i) total += static_cast<T>(of[i].values[0]);
        return static_cast<double>(total);
      }));
    }
    double largest(double value) const {
      return together(value, [&](const Told* of) {
        double most = of[0].values[0];
        for (uint32_t i = 1; i < count(); ++i) most = std::max(most, of[i].values[0]);
        return most;
      });
    }
    void meet() const { crew_->barriers_[group_]->arrive_and_wait(); }

    template <int kWidth>
    Vec<kWidth> over_groups(const Vec<kWidth>& value) const {
      for (int i = 0; i < kWidth; ++i) place(group_)[i] = static_cast<double>(value.at[i]);
      crew_->all_.arrive_and_wait();
      Vec<kWidth> total = {};
      for (uint32_t group = 0; group < groups(); ++group) {
        for (int i = 0; i < kWidth; ++i) total.at[i] += static_cast<float>(place(group)[i]);
      }
      crew_->all_.arrive_and_wait();
      return total;
    }

   private:
    double* place(uint32_t group) const { return crew_->places_[group * count() + rank_].values; }

    template <class F>
    double together(double value, const F& f) const {
      place(group_)[0] = value;
      meet();
      const double result = f(&crew_->places_[group_ * count()]);
      meet();
      return result;
    }

    Crew* crew_;
    uint32_t group_;
    uint32_t rank_;
  };

  /// Calls f(lanes) in all threads, and waits for them.
  void run(const std::function<void(const Lanes&)>& f) {
    std::vector<std::jthread> threads;
    for (uint32_t i = 0; i < count_ * groups_; ++i) {
      threads.emplace_back([&f, this, i] { f(Lanes(*this, i)); });
    }
  }

 private:
  uint32_t count_;
  uint32_t groups_;
  std::vector<Told> places_;
  std::vector<std::unique_ptr<std::barrier<>>> barriers_;
  std::barrier<> all_;
};

}  // namespace vramkit::embedding::device
