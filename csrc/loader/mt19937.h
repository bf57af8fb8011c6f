// The numbers of std::mt19937, made a block at a time so that the compiler can use vector units.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vramkit {

/// The Mersenne Twister of 32-bit numbers, which torch's generator on the CPU is too. Not
/// thread-safe.
class Mt19937 {
 public:
  static constexpr size_t kBlock = 624;

  explicit Mt19937(uint32_t seed) {
    state_[0] = seed;
    for (uint32_t i = 1; i < kBlock; ++i) {
      const uint32_t last = state_[i - 1];
      state_[i] = 1812433253U * (last ^ last >> 30) + i;
    }
  }

  /// Goes on to the next block; there is none before the first call.
  void advance() {
    for (size_t i = 0; i < kBlock - kShift; ++i) {
      state_[i] = state_[i + kShift] ^ twisted(state_[i], state_[i + 1]);
    }
    for (size_t i = kBlock - kShift; i < kBlock - 1; ++i) {
      state_[i] = state_[i + kShift - kBlock] ^ twisted(state_[i], state_[i + 1]);
    }
    state_[kBlock - 1] = state_[kShift - 1] ^ twisted(state_[kBlock - 1], state_[0]);
  }

  /// Number `i` of the block, in the order in which std::mt19937 returns them.
  uint32_t operator[](size_t i) const {
    uint32_t y = state_[i];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680U;
    y ^= y << 15 & 0xefc60000U;
    return y ^ y >> 18;
  }

 private:
  static constexpr size_t kShift = 397;

  static uint32_t twisted(uint32_t upper, uint32_t lower) {
    const uint32_t mixed = (upper & 0x80000000U) | (lower & 0x7fffffffU);
    // No branch: the low bit is as likely to be 0 as 1.
    return mixed >> 1 ^ ((0U - (lower & 1U)) & 0x9908b0dfU);
  }

  std::array<uint32_t, kBlock> state_;
};

}  // namespace vramkit
