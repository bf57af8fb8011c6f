// The memory history of the pools' blocks, as torch.cuda.memory._record_memory_history asks for it.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ApproximateClock.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace vramkit::adapter {

/// Thread-safe. Part of the immortal adapter, because it may hold references into Python.
class History {
 public:
  using TraceEntry = c10::CachingDeviceAllocator::TraceEntry;
  using RecordContext = c10::CachingDeviceAllocator::RecordContext;
  using Context = std::shared_ptr<c10::GatheredContext>;

  struct Settings {
    bool enabled;
    c10::CachingDeviceAllocator::CreateContextFn recorder;
    size_t most_entries;  // for each device
    RecordContext when;
    bool clear;
    const std::vector<std::string>& skipped_actions;
  };
  struct Subject {
    c10::DeviceIndex device;
    const void* address;
    size_t size_bytes;
    void* stream;
    std::string metadata;
  };

  void configure(const Settings& settings);
  bool enabled() const { return enabled_.load(std::memory_order_acquire); }
  /// Without the lock, which another thread may have held at the fork.
  void stop_in_child() { enabled_.store(false, std::memory_order_release); }

  /// Where the caller is, if contexts of that level are wanted, else null. Takes the GIL.
  Context gather(RecordContext level) const;

  /// To be called after a block was allocated, and before it is freed.
  void allocated(const Subject& block, const Context& context);
  void freed(const Subject& block, const Context& context);
  void record(TraceEntry::Action action, const Subject& subject, const Context& context);

  /// Where a live block was allocated, or null.
  Context context_of(const void* address) const;

  /// Merges what was recorded into native's traces, ordered by time.
  void merge_into(std::vector<std::vector<TraceEntry>>& device_traces) const;

 private:
  void append(TraceEntry::Action action, const Subject& subject, const Context& context);

  std::atomic<bool> enabled_ = false;
  std::atomic<RecordContext> when_ = RecordContext::NEVER;
  std::atomic<c10::CachingDeviceAllocator::CreateContextFn> recorder_ = nullptr;
  mutable c10::ApproximateClockToUnixTimeConverter clock_;

  mutable std::mutex mutex_;
  size_t most_entries_ = 1;
  uint32_t skipped_ = 0;  // a bit for each action
  std::map<c10::DeviceIndex, std::deque<TraceEntry>> traces_;
  std::unordered_map<const void*, Context> contexts_;  // of live blocks
};

}  // namespace vramkit::adapter
