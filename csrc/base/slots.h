// Records with small numbers as names; a freed number is used again. Number 0 is never given out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/lazy_array.h"

namespace vramkit {

template <typename T>
class Slots {
 public:
  explicit Slots(uint64_t max_count) : items_(max_count + 1), max_count_(max_count) {}

  /// Afterwards `count` records can be taken, and all be given back, without a failure.
  void reserve(uint64_t count) {
    if (used_ + count > ready_) reserve_slowly(count);
  }
  /// The record's old content is left in place: the caller assigns all of it.
  uint32_t take() {
    if (free_.empty()) reserve(1);
    if (!free_.empty()) {
      const uint32_t id = free_.back();
      free_.pop_back();
      return id;
    }
    return static_cast<uint32_t>(++used_);
  }
  void give_back(uint32_t id) { free_.push_back(id); }

  T& operator[](uint32_t id) { return items_[id]; }
  const T& operator[](uint32_t id) const { return items_[id]; }

  uint64_t live_count() const { return used_ - free_.size(); }
  uint64_t metadata_bytes() const {
    return (used_ + 1) * sizeof(T) + free_.capacity() * sizeof(uint32_t);
  }

 private:
  void reserve_slowly(uint64_t count) {
    if (free_.size() + (max_count_ - used_) < count) {
      throw_error(Status::kSystem, "the pool's metadata is full: %llu records",
                  static_cast<unsigned long long>(max_count_));
    }
    if (free_.capacity() < used_ + count) free_.reserve(2 * (used_ + count));
    ready_ = std::min<uint64_t>(free_.capacity(), max_count_);
  }

  LazyArray<T> items_;
  std::vector<uint32_t> free_;
  uint64_t used_ = 0;
  uint64_t ready_ = 0;  // so many records can be in use: free_ has room for their numbers
  uint64_t max_count_;
};

}  // namespace vramkit
