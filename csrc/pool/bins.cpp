#include "pool/bins.h"

#include <algorithm>
#include <bit>

#include "base/bytes.h"

namespace vramkit {

uint32_t Bins::bin_of(uint64_t size) {
  const uint64_t units = size / kAlignment;
  if (units < 64) return static_cast<uint32_t>(units);
  const uint32_t power = 63 - static_cast<uint32_t>(std::countl_zero(units));
  const auto sub = static_cast<uint32_t>(units >> (power - kSubBits)) & 63;
  return (power - kSubBits + 1) * 64 + sub;
}

uint32_t Bins::next_bin(uint32_t bin) const {
  if (bin >= kBins) return kBins;
  const uint32_t word = bin >> 6;
  const uint64_t here = used_[word] & (~uint64_t{0} << (bin & 63));
  if (here != 0) return word * 64 + static_cast<uint32_t>(std::countr_zero(here));
  const uint64_t above = word + 1 < 64 ? used_words_ & (~uint64_t{0} << (word + 1)) : 0;
  if (above == 0) return kBins;
  const auto next = static_cast<uint32_t>(std::countr_zero(above));
  return next * 64 + static_cast<uint32_t>(std::countr_zero(used_[next]));
}

void Bins::insert(BlockId id) {
  Block& block = blocks_[id];
  const uint32_t bin = bin_of(block.size);
  block.bin_prev = 0;
  block.bin_next = heads_[bin];
  if (block.bin_next != 0) blocks_[block.bin_next].bin_prev = id;
  heads_[bin] = id;
  used_[bin >> 6] |= uint64_t{1} << (bin & 63);
  used_words_ |= uint64_t{1} << (bin >> 6);
}

void Bins::remove(BlockId id) {
  const Block& block = blocks_[id];
  if (block.bin_next != 0) blocks_[block.bin_next].bin_prev = block.bin_prev;
  if (block.bin_prev != 0) {
    blocks_[block.bin_prev].bin_next = block.bin_next;
    return;
  }
  const uint32_t bin = bin_of(block.size);
  heads_[bin] = block.bin_next;
  if (heads_[bin] != 0) return;
  used_[bin >> 6] &= ~(uint64_t{1} << (bin & 63));
  if (used_[bin >> 6] == 0) used_words_ &= ~(uint64_t{1} << (bin >> 6));
}

BlockId Bins::find(uint64_t size) const {
  for (uint32_t bin = next_bin(bin_of(size)); bin < kBins; bin = next_bin(bin + 1)) {
    BlockId best = 0;
    int scanned = 0;
    for (BlockId id = heads_[bin]; id != 0; id = blocks_[id].bin_next) {
      const Block& block = blocks_[id];
      if (block.size < size) continue;
      if (best == 0 || block.size < blocks_[best].size ||
          (block.size == blocks_[best].size && block.offset < blocks_[best].offset)) {
        best = id;
      }
      if (++scanned == kScan) break;
    }
    if (best != 0) return best;
  }
  return 0;
}

BlockId Bins::find_aligned(uint64_t size, uint64_t alignment) const {
  BlockId found = 0;
  each_from(size, [&](BlockId id) {
    const Block& block = blocks_[id];
    if (align_up(block.offset, alignment) + size <= block.end()) found = id;
    return found == 0;
  });
  return found;
}

uint64_t Bins::largest() const {
  if (used_words_ == 0) return 0;
  const uint32_t word = 63 - static_cast<uint32_t>(std::countl_zero(used_words_));
  const uint32_t bin = word * 64 + 63 - static_cast<uint32_t>(std::countl_zero(used_[word]));
  uint64_t best = 0;
  for (BlockId id = heads_[bin]; id != 0; id = blocks_[id].bin_next) {
    best = std::max(best, blocks_[id].size);
  }
  return best;
}

}  // namespace vramkit
