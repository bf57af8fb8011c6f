// Free blocks by size: the tightest fit in a few steps, whatever their number.
#pragma once

#include <array>
#include <cstdint>

#include "pool/block.h"

namespace vramkit {

/// 64 bins for each power of two (exact sizes up to 32 KiB), with a bitmap over them: bins after
/// the two-level scheme of TLSF (Masmano et al., 2004), searched for the best fit.
///
/// A block is in one `Bins` at most, from `insert` to `remove`, and must not change its size in
/// between. `Range` calls it under the pool's lock; nothing allocates or throws.
class Bins {
 public:
  explicit Bins(Blocks& blocks) : blocks_(blocks) {}

  void insert(BlockId id);
  void remove(BlockId id);

  /// The smallest block of at least `size` bytes, the lowest address among equals. Exact unless
  /// more than kScan blocks share a bin. 0 if there is none.
  BlockId find(uint64_t size) const;

  /// A block that holds `size` bytes at a multiple of `alignment` (a power of two), small ones
  /// first.
  BlockId find_aligned(uint64_t size, uint64_t alignment) const;

  /// 0 if empty.
  uint64_t largest() const;

  /// Calls visit(id) for blocks of at least `size` bytes, from small bins to large ones, until it
  /// returns false. `visit` must not change the bins.
  template <typename Visit>
  void each_from(uint64_t size, Visit visit) const {
    for (uint32_t bin = next_bin(bin_of(size)); bin < kBins; bin = next_bin(bin + 1)) {
      for (BlockId id = heads_[bin]; id != 0; id = blocks_[id].bin_next) {
        if (blocks_[id].size >= size && !visit(id)) return;
      }
    }
  }

 private:
  static constexpr uint32_t kSubBits = 6;
  static constexpr uint32_t kWords = 36;  // up to 2**41 units of 512 bytes
  static constexpr uint32_t kBins = kWords * 64;
  static constexpr int kScan = 4;

  static uint32_t bin_of(uint64_t size);
  uint32_t next_bin(uint32_t bin) const;  // first non-empty one from `bin` on, or kBins

  Blocks& blocks_;
  uint64_t used_words_ = 0;
  std::array<uint64_t, kWords> used_{};
  std::array<BlockId, kBins> heads_{};
};

}  // namespace vramkit
