#include "backend/decorators.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>
#include <thread>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

void LimitBackend::back(PageRun run) {
  const uint64_t bytes = run.count * page_bytes_;
  uint64_t before = backed_bytes_;
  do {
    if (before + bytes > limit_bytes_) {
      fail(Status::kOutOfMemory, "the device has no memory for %s more: %s of %s are in use",
           mib(bytes).c_str(), mib(before).c_str(), mib(limit_bytes_).c_str());
    }
  } while (!backed_bytes_.compare_exchange_weak(before, before + bytes));
  try {
    Decorator::back(run);
  } catch (...) {
    backed_bytes_ -= bytes;
    throw;
  }
}

void LimitBackend::unback(PageRun run) {
  Decorator::unback(run);
  backed_bytes_ -= run.count * page_bytes_;
}

void SlowMapsBackend::back(PageRun run) {
  constexpr std::chrono::microseconds kAPage{50};  // what CUDA takes
  Decorator::back(run);
  std::this_thread::sleep_for(kAPage * run.count);
}

void FaultBackend::inject_fault(const std::string& call, uint64_t nth) {
  constexpr std::array<std::string_view, 8> kKnown = {"reserve",    "back",        "unback",
                                                      "map_alias",  "unmap_alias", "record_event",
                                                      "wait_event", "wait_device"};
  if (std::find(kKnown.begin(), kKnown.end(), call) == kKnown.end()) {
    fail(Status::kInvalidArgument, "no backend call '%s' can be made to fail", call.c_str());
  }
  const std::lock_guard guard(mutex_);
  countdown_[call] = nth;
}

void FaultBackend::strike(const char* call) {
  const std::lock_guard guard(mutex_);
  const auto found = countdown_.find(call);
  if (found == countdown_.end() || found->second == 0 || --found->second > 0) return;
  fail(Status::kSystem, "injected failure of %s", call);
}

void FaultBackend::reserve(const Layout& layout) {
  strike("reserve");
  Decorator::reserve(layout);
}
void FaultBackend::back(PageRun run) {
  strike("back");
  Decorator::back(run);
}
void FaultBackend::unback(PageRun run) {
  strike("unback");
  Decorator::unback(run);
}
void FaultBackend::map(uint64_t address, PageRun run) {
  strike("map_alias");
  Decorator::map(address, run);
}
void FaultBackend::unmap(uint64_t address, PageRun run) {
  strike("unmap_alias");
  Decorator::unmap(address, run);
}
Event FaultBackend::record_event(uint64_t stream) {
  strike("record_event");
  return Decorator::record_event(stream);
}
void FaultBackend::stream_wait(uint64_t stream, Event event) {
  strike("wait_event");
  Decorator::stream_wait(stream, event);
}
void FaultBackend::synchronize_all() {
  strike("wait_device");
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
