#include "pool/placement_cache.h"

#include <algorithm>

namespace vramkit {

/// Doubles the table. Sets behind its end are empty.
void PlacementCache::grow() {
  for (size_t i = 0; i < count_; ++i) {
    auto& low = sets_[i].entries;
    auto& high = sets_[i + count_].entries;
    const auto goes = [this](const Entry& entry) { return (entry.key & count_) != 0; };
    std::copy_if(low.begin(), low.end(), high.begin(), goes);
    std::fill(std::remove_if(low.begin(), low.end(), goes), low.end(), Entry{0, 0});
  }
  count_ *= 2;
}

}  // namespace vramkit
