// The order of torch.randperm, made a part at a time.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/lazy_array.h"
#include "loader/mt19937.h"

namespace vramkit {

/// The permutation of 0 to count - 1 that torch.randperm(count) returns on the CPU for a generator
/// that was just seeded with `seed`. It takes 4 bytes of memory an entry, and those only once a
/// part of it needs them. Not thread-safe.
class Permutation {
 public:
  /// For more entries, torch.randperm uses another algorithm.
  static constexpr uint64_t kMostEntries = UINT32_MAX / 20 - 1;

  /// Throws kInvalidArgument for more than kMostEntries.
  Permutation(uint64_t seed, uint64_t count);

  /// Entries that `next` has not written yet.
  uint64_t left() const { return count_ - at_; }

  /// Writes the next entries, as many as `out` takes. Throws kInvalidArgument, and writes nothing,
  /// if there are fewer left.
  void next(std::span<int64_t> out);

 private:
  void draw_partners();
  void swap_up_to(uint32_t end, int64_t* out);

  const uint32_t count_;
  uint32_t at_ = 0;
  // Positions before this one have had their partners drawn.
  uint32_t drawn_ = 0;
  Mt19937 random_;
  // With which positions those of the current block are swapped.
  std::array<uint32_t, Mt19937::kBlock> partners_;
  // What lies at each position, minus the position: memory that is zero holds 0, 1, 2, ...
  LazyArray<uint32_t> shifts_;
};

}  // namespace vramkit
