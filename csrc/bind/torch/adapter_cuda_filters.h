// Which allocations belong to one of PyTorch's own private pools now.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace vramkit::adapter {

/// CUDA graphs, explicit `MemPool`s and the warm-up of compiled graphs announce their allocations
/// with a filter; what a filter accepts must be native's.
class Filters {
 public:
  using Filter = std::function<bool(cudaStream_t)>;

  struct Entry {
    c10::DeviceIndex device;
    c10::MempoolId_t pool;
    Filter filter;
    cudaStream_t stream;  // current when it began
  };

  void add(Entry entry) {
    const std::lock_guard guard(mutex_);
    entries_.push_back(std::move(entry));
    count_.store(entries_.size(), std::memory_order_release);
  }

  /// The entry's stream; nothing if there was none.
  std::optional<cudaStream_t> remove(c10::DeviceIndex device, c10::MempoolId_t id) {
    const std::lock_guard guard(mutex_);
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
      return entry.device == device && entry.pool == id;
    });
    if (found == entries_.end()) return std::nullopt;
    const cudaStream_t stream = found->stream;
    entries_.erase(found);
    count_.store(entries_.size(), std::memory_order_release);
    return stream;
  }

  bool any() const { return count_.load(std::memory_order_acquire) != 0; }

  bool accept(c10::DeviceIndex device, cudaStream_t stream) {
    if (!any()) return false;
    const std::lock_guard guard(mutex_);
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
      return entry.device == device && entry.filter(stream);
    });
  }

 private:
  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::atomic<size_t> count_ = 0;
};

}  // namespace vramkit::adapter
