// Addresses only: replays a trace for any capacity on any machine.
#pragma once

#include <algorithm>

#include "backend/backend.h"

namespace vramkit {

/// Behaves like CUDA: pages have aliases, addresses are bound for ever, and an event is known to be
/// done only after somebody waited for it on the host.
class NullBackend : public Backend {
 public:
  uint64_t memory_limit() const override { return uint64_t{16} << 40; }
  void reserve(const Layout&) override {}
  /// Above every address that a process of this machine can have.
  uint64_t base() const override { return uint64_t{1} << 60; }
  void map_primary(PageRun) override {}
  void unmap_and_release(PageRun) override {}
  bool rebindable() const override { return false; }
  bool aliasing() const override { return true; }
  uint64_t max_alias_pages() const override { return uint64_t{1} << 20; }
  void map_alias(uint64_t, PageRun) override {}
  void unmap_alias(uint64_t, PageRun) override {}
  bool events_allowed() const override { return true; }
  Event record_event(uint64_t) override { return ++last_event_; }
  bool event_done(Event event) override { return event <= synchronized_; }
  void stream_wait(uint64_t, Event) override {}
  void synchronize(Event event) override { synchronized_ = std::max(synchronized_, event); }
  void synchronize_all() override { synchronized_ = last_event_; }
  void release_event(Event) override {}
  void discard_in_child(uint64_t, uint64_t) override {}

 private:
  Event last_event_ = 0;
  Event synchronized_ = 0;
};

}  // namespace vramkit
