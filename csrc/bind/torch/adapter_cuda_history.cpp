#include "bind/torch/adapter_cuda_history.h"

#include <algorithm>
#include <utility>

namespace vramkit::adapter {
namespace {

using c10::CachingDeviceAllocator::parseTraceEntryAction;

uint32_t bit_of(History::TraceEntry::Action action) { return uint32_t{1} << action; }

}  // namespace

void History::configure(const Settings& settings) {
  uint32_t skipped = 0;
  for (const std::string& name : settings.skipped_actions) {
    skipped |= bit_of(parseTraceEntryAction(name));
  }
  const std::lock_guard guard(mutex_);
  enabled_.store(settings.enabled, std::memory_order_release);
  // Kept when recording stops: another thread may be about to call it.
  if (settings.recorder != nullptr) recorder_.store(settings.recorder, std::memory_order_release);
  when_.store(settings.enabled ? settings.when : RecordContext::NEVER, std::memory_order_release);
  most_entries_ = std::max<size_t>(1, settings.most_entries);
  skipped_ = skipped;
  if (!settings.enabled || settings.clear) traces_.clear();
  // Frees are not followed from here on: an address may soon be another block's.
  if (!settings.enabled) contexts_.clear();
}

History::Context History::gather(RecordContext level) const {
  if (when_.load(std::memory_order_acquire) < level) return nullptr;
  const auto recorder = recorder_.load(std::memory_order_acquire);
  return recorder != nullptr ? recorder() : nullptr;
}

void History::allocated(const Subject& block, const Context& context) {
  const std::lock_guard guard(mutex_);
  if (!enabled()) return;
  if (context != nullptr) contexts_.insert_or_assign(block.address, context);
  append(TraceEntry::ALLOC, block, context);
}

void History::freed(const Subject& block, const Context& context) {
  const std::lock_guard guard(mutex_);
  if (!enabled()) return;
  const auto node = contexts_.extract(block.address);
  const Context& known = context == nullptr && !node.empty() ? node.mapped() : context;
  append(TraceEntry::FREE_REQUESTED, block, known);
  // When the work of other streams lets the pool use it again is not told.
  append(TraceEntry::FREE_COMPLETED, block, known);
}

void History::record(TraceEntry::Action action, const Subject& subject, const Context& context) {
  const std::lock_guard guard(mutex_);
  if (enabled()) append(action, subject, context);
}

void History::append(TraceEntry::Action action, const Subject& subject, const Context& context) {
  if ((skipped_ & bit_of(action)) != 0) return;
  auto& trace = traces_[subject.device];
  while (trace.size() >= most_entries_) trace.pop_front();
  const bool keeps_context = when_.load(std::memory_order_relaxed) >= RecordContext::ALLOC;
  trace.emplace_back(action, subject.device, reinterpret_cast<size_t>(subject.address),
                     subject.size_bytes, subject.stream, c10::MempoolId_t{0, 0},
                     c10::getApproximateTime(), keeps_context ? context : nullptr, "N/A",
                     subject.metadata);
}

History::Context History::context_of(const void* address) const {
  const std::lock_guard guard(mutex_);
  const auto found = contexts_.find(address);
  return found != contexts_.end() ? found->second : nullptr;
}

void History::merge_into(std::vector<std::vector<TraceEntry>>& device_traces) const {
  const auto to_unix_ns = clock_.makeConverter();
  const std::lock_guard guard(mutex_);
  for (const auto& [device, trace] : traces_) {
    const auto index = static_cast<size_t>(device);
    if (device_traces.size() <= index) device_traces.resize(index + 1);
    auto& merged = device_traces[index];
    for (const TraceEntry& entry : trace) {
      merged.push_back(entry);
      merged.back().time_.t_ = to_unix_ns(entry.time_.approx_t_) / 1000;  // microseconds
    }
    std::stable_sort(merged.begin(), merged.end(), [](const TraceEntry& a, const TraceEntry& b) {
      return a.time_.t_ < b.time_.t_;
    });
  }
}

}  // namespace vramkit::adapter
