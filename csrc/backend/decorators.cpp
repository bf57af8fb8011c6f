#include "backend/decorators.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>
#include <thread>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

void LimitBackend::map_primary(PageRun run) {
  const uint64_t bytes = run.count * page_bytes_;
  uint64_t before = backed_bytes_;
  do {
    if (before + bytes > limit_bytes_) {
      throw_error(Status::kOutOfMemory, "the device has no memory for %s more: %s of %s are in use",
                  mib(bytes).c_str(), mib(before).c_str(), mib(limit_bytes_).c_str());
    }
  } while (!backed_bytes_.compare_exchange_weak(before, before + bytes));
  try {
    Decorator::map_primary(run);
  } catch (...) {
    backed_bytes_ -= bytes;
    throw;
  }
}

void LimitBackend::unmap_and_release(PageRun run) {
  Decorator::unmap_and_release(run);
  backed_bytes_ -= run.count * page_bytes_;
}

void SlowMapsBackend::map_primary(PageRun run) {
  constexpr std::chrono::microseconds kAPage{50};  // what CUDA takes
  Decorator::map_primary(run);
  std::this_thread::sleep_for(kAPage * run.count);
}

void FaultBackend::inject_fault(const std::string& call, uint64_t nth) {
  constexpr std::array<std::string_view, 8> kKnown = {
      "reserve",     "map_primary",  "unmap_and_release", "map_alias",
      "unmap_alias", "record_event", "stream_wait",       "synchronize_all"};
  if (std::find(kKnown.begin(), kKnown.end(), call) == kKnown.end()) {
    throw_error(Status::kInvalidArgument, "no backend call '%s' can be made to fail", call.c_str());
  }
  const std::lock_guard guard(mutex_);
  countdown_[call] = nth;
}

void FaultBackend::strike(const char* call) {
  const std::lock_guard guard(mutex_);
  const auto found = countdown_.find(call);
  if (found == countdown_.end() || found->second == 0 || --found->second > 0) return;
  throw_error(Status::kSystem, "injected failure of %s", call);
}

void FaultBackend::reserve(const Layout& layout) {
  strike("reserve");
  Decorator::reserve(layout);
}
void FaultBackend::map_primary(PageRun run) {
  strike("map_primary");
  Decorator::map_primary(run);
}
void FaultBackend::unmap_and_release(PageRun run) {
  strike("unmap_and_release");
  Decorator::unmap_and_release(run);
}
void FaultBackend::map_alias(uint64_t address, PageRun run) {
  strike("map_alias");
  Decorator::map_alias(address, run);
}
void FaultBackend::unmap_alias(uint64_t address, PageRun run) {
  strike("unmap_alias");
  Decorator::unmap_alias(address, run);
}
Event FaultBackend::record_event(uint64_t stream) {
  strike("record_event");
  return Decorator::record_event(stream);
}
void FaultBackend::stream_wait(uint64_t stream, Event event) {
  strike("stream_wait");
  Decorator::stream_wait(stream, event);
}
void FaultBackend::synchronize_all() {
  strike("synchronize_all");
  Decorator::synchronize_all();
}

Event LateEventsBackend::record_event(uint64_t) {
  open_.insert(++last_event_);
  return last_event_;
}
bool LateEventsBackend::event_done(Event event) { return !open_.contains(event); }
void LateEventsBackend::stream_wait(uint64_t, Event) {}
void LateEventsBackend::synchronize(Event event) { open_.erase(event); }
void LateEventsBackend::synchronize_all() { open_.clear(); }
void LateEventsBackend::release_event(Event event) { open_.erase(event); }
void LateEventsBackend::complete_events(uint64_t count) {
  while (count-- > 0 && !open_.empty()) open_.erase(open_.begin());
}

}  // namespace vramkit
