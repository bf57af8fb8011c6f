// The lanes of a warp on the CPU: one after another, with the matrix products computed from what
// the lanes hold. This is how machines without a GPU test what a GPU computes.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "ops/conv/matrix.h"
#include "ops/conv/vectors.h"

namespace vramkit::ops {

inline constexpr int kLanes = 32;

template <class Type>
float half_of(uint32_t word, int index) {
  return to_float<Type>(static_cast<uint16_t>(word >> (16 * index)));
}

/// Element (row, k) of the left operand, from the lane that holds it.
template <class Type>
float left_at(const std::array<LeftFragment, kLanes>& lanes, int row, int k) {
  const auto lane = static_cast<std::size_t>(row % 8 * 4 + k % 8 / 2);
  return half_of<Type>(lanes[lane].words[row / 8 + k / 8 * 2], k % 2);
}

/// Element (k, column) of the right operand, from the lane that holds it.
template <class Type>
float right_at(const std::array<RightFragment, kLanes>& lanes, int k, int column) {
  const auto lane = static_cast<std::size_t>(column * 4 + k % 8 / 2);
  return half_of<Type>(lanes[lane].words[k / 8], k % 2);
}

/// A warp with the members of CudaWarp.
class CpuWarp {
 public:
  template <class Value>
  using Lanes = std::array<Value, kLanes>;

  template <class F>
  void each(const F& f) const {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  }

  template <class Value>
  static Value& at(Lanes<Value>& lanes, int lane) {
    return lanes[static_cast<std::size_t>(lane)];
  }
  template <class Value>
  static const Value& at(const Lanes<Value>& lanes, int lane) {
    return lanes[static_cast<std::size_t>(lane)];
  }

  template <bool kTransposed, class F>
  void load(Lanes<LeftFragment>& to, const F& row_of) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t word = 0;
        for (int i = 0; i < 2; ++i) {
          const int row = kTransposed ? lane % 4 * 2 + i : lane / 4;
          const int column = kTransposed ? lane / 4 : lane % 4 * 2 + i;
          word |= static_cast<uint32_t>(row_of(8 * matrix + row)[column]) << (16 * i);
        }
        at(to, lane).words[matrix] = word;
      }
    }
  }

  template <class Type>
  void multiply(const Lanes<LeftFragment>& left, const Lanes<RightFragment>& right,
                Lanes<SumFragment>& sums) const {
    add(sums, 16, [&](int row, int k, int column) {
      return left_at<Type>(left, row, k) * right_at<Type>(right, k, column);
    });
  }

  template <class Type, int kHalf>
  void multiply_half(const Lanes<LeftFragment>& left, const Lanes<uint32_t>& right,
                     Lanes<SumFragment>& sums) const {
    add(sums, 8, [&](int row, int k, int column) {
      return left_at<Type>(left, row, k + 8 * kHalf) *
             half_of<Type>(at(right, column * 4 + k / 2), k % 2);
    });
  }

  void transpose(Lanes<Vector<uint32_t, 4>>& words) const {
    const Lanes<Vector<uint32_t, 4>> given = words;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i) at(words, lane).at[i] = at(given, lane / 4 * 4 + i).at[lane % 4];
    }
  }

 private:
  template <class F>
  static void add(Lanes<SumFragment>& sums, int depth, const F& product) {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float sum = 0;
        for (int k = 0; k < depth; ++k) sum += product(row, k, column);
        at(sums, row % 8 * 4 + column / 2).values[row / 8 * 2 + column % 2] += sum;
      }
    }
  }
};

}  // namespace vramkit::ops
