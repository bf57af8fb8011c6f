// Random arrays, the rows of which a test has copied, and the copies that are right.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "base/bytes.h"
#include "loader/gather_plan.h"

namespace vramkit {

using Bytes = std::vector<unsigned char>;
using Indices = std::vector<int64_t>;

inline constexpr unsigned char kUntouched = 0xa5;

inline uint64_t address_of(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

/// An array with random contents in segments at random alignments.
class Array {
 public:
  Array(std::mt19937& random, uint64_t rows, uint64_t row_bytes, uint64_t stride, size_t segments)
      : row_bytes_(row_bytes), stride_(stride) {
    std::vector<uint64_t> cuts = {0, rows};
    for (size_t i = 1; i < segments; ++i) cuts.push_back(random() % (rows + 1));
    std::sort(cuts.begin(), cuts.end());
    for (size_t i = 0; i < segments; ++i) {
      const uint64_t count = cuts[i + 1] - cuts[i];
      const size_t shift = random() % 64;
      Bytes& memory = memory_.emplace_back(shift + count * stride_ + row_bytes_ + 1);
      for (size_t at = 0; at < memory.size(); at += sizeof(uint32_t)) {
        const auto word = static_cast<uint32_t>(random());
        std::memcpy(memory.data() + at, &word, std::min(sizeof(word), memory.size() - at));
      }
      segments_.push_back({address_of(memory.data() + shift), cuts[i], count});
    }
  }

  PieceSpec spec() const { return {segments_, row_bytes_, stride_}; }
  uint64_t row_bytes() const { return row_bytes_; }

  /// Row by row with a plain loop.
  Bytes expected(const Indices& indices) const {
    Bytes made;
    for (const int64_t index : indices) {
      const auto row = static_cast<uint64_t>(index);
      for (const Segment& s : segments_) {
        if (row < s.first_row || row >= s.first_row + s.rows) continue;
        const auto* from =
            reinterpret_cast<const unsigned char*>(s.address + (row - s.first_row) * stride_);
        made.insert(made.end(), from, from + row_bytes_);
      }
    }
    return made;
  }

 private:
  uint64_t row_bytes_;
  uint64_t stride_;
  std::vector<Bytes> memory_;
  std::vector<Segment> segments_;
};

/// Runs of consecutive rows that begin anywhere; in some lists each is one row.
inline Indices random_indices(std::mt19937& random, uint64_t rows, uint64_t count) {
  Indices made(count);
  const uint64_t longest_run = uint64_t{1} << random() % 10;
  for (uint64_t k = 0, left = 0, row = 0; k < count; ++k, --left) {
    const bool goes_on = left > 0 && row + 1 < rows;
    row = goes_on ? row + 1 : random() % rows;
    if (!goes_on) left = 1 + random() % longest_run;
    made[k] = static_cast<int64_t>(row);
  }
  return made;
}

/// A plan over some arrays, an index list and destinations between untouched margins.
class Task {
 public:
  Task(std::mt19937& random, uint64_t most_bytes) {
    const bool few = most_bytes > 64 * kKiB;
    const uint64_t rows = 1 + random() % (few ? 10 : 200);
    const uint64_t count = random() % (few ? 20 : 300);
    std::vector<PieceSpec> specs;
    arrays_.reserve(3);
    for (size_t piece = 0, pieces = 1 + random() % 3; piece < pieces; ++piece) {
      const uint64_t row_bytes = random_row_bytes(random, most_bytes);
      const uint64_t stride = row_bytes + (random() % 2 == 0 ? 0 : random() % 100);
      arrays_.emplace_back(random, rows, row_bytes, stride, random() % 2 == 0 ? 1 : 5);
      specs.push_back(arrays_.back().spec());
    }
    indices_ = random_indices(random, rows, count);
    plan_ = std::make_shared<const GatherPlan>(specs);
    for (const Array& array : arrays_) {
      const size_t shift = random() % 64;
      shifts_.push_back(shift);
      copied_.emplace_back(shift + count * array.row_bytes() + kMargin, kUntouched);
      destinations_.push_back(address_of(copied_.back().data() + shift));
    }
  }

  const std::shared_ptr<const GatherPlan>& plan() const { return plan_; }
  const std::vector<uint64_t>& destinations() const { return destinations_; }
  const Indices& indices() const { return indices_; }

  void expect_copied() const {
    for (size_t piece = 0; piece < arrays_.size(); ++piece) {
      Bytes expected(shifts_[piece], kUntouched);
      const Bytes rows = arrays_[piece].expected(indices_);
      expected.insert(expected.end(), rows.begin(), rows.end());
      expected.insert(expected.end(), kMargin, kUntouched);
      ASSERT_TRUE(copied_[piece] == expected) << "rows of " << arrays_[piece].row_bytes();
    }
  }
  void expect_untouched() const {
    for (const Bytes& copied : copied_) {
      EXPECT_TRUE(std::all_of(copied.begin(), copied.end(),
                              [](unsigned char byte) { return byte == kUntouched; }));
    }
  }

 private:
  static constexpr size_t kMargin = 64;

  static uint64_t random_row_bytes(std::mt19937& random, uint64_t most_bytes) {
    constexpr uint64_t kSpecial[] = {0, 1, 2, 4, 8, 16, 32, 64, 256, 4096};
    if (random() % 2 == 0) return kSpecial[random() % std::size(kSpecial)];
    const uint64_t magnitude = uint64_t{1} << random() % 20;
    return 1 + random() % std::min(magnitude, most_bytes);
  }

  std::vector<Array> arrays_;
  Indices indices_;
  std::shared_ptr<const GatherPlan> plan_;
  std::vector<Bytes> copied_;
  std::vector<size_t> shifts_;
  std::vector<uint64_t> destinations_;
};

}  // namespace vramkit
