#include "pool/background_mapper.h"

#include <algorithm>

namespace vramkit {

std::shared_ptr<BackgroundMapping> BackgroundMapper::next(uint64_t pages) {
  finish();
  if (!active_) return nullptr;
  while (next_ < pages_.count()) {
    const Block& block = range_[range_.block_at(next_ * page_bytes_)];
    const uint64_t end = std::min(block.end() / page_bytes_, pages_.count());
    if (block.state == BlockState::kRetired || pages_.backed(next_)) {
      next_ = block.state == BlockState::kRetired ? end : next_ + 1;
      continue;
    }
    const uint64_t first = next_++;
    const uint64_t most = std::min(first + pages, end);
    while (next_ < most && !pages_.backed(next_)) ++next_;
    return pages_.begin_background_mapping({first, next_ - first});
  }
  return nullptr;
}

}  // namespace vramkit
