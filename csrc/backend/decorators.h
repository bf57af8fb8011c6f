// Backends around backends: limits, injected failures, late events.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "backend/backend.h"

namespace vramkit {

/// Forwards everything, under the contract of `Backend`, and owns what it decorates.
class Decorator : public Backend {
 public:
  explicit Decorator(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  int device() const override { return inner_->device(); }
  bool has_own_addresses() const override { return inner_->has_own_addresses(); }
  bool takes_address_space() const override { return inner_->takes_address_space(); }
  uint64_t memory_limit() const override { return inner_->memory_limit(); }
  void reserve(const Layout& layout) override {
    page_bytes_ = layout.page_bytes;
    inner_->reserve(layout);
  }
  uint64_t base() const override { return inner_->base(); }
  void create_physical(PageRun run) override { inner_->create_physical(run); }
  uint64_t release_physical(PageRun run) override { return inner_->release_physical(run); }
  uint64_t held_pages(uint64_t backed) const override { return inner_->held_pages(backed); }
  bool maps_slowly() const override { return inner_->maps_slowly(); }
  void map_primary(PageRun run) override { inner_->map_primary(run); }
  void unmap_and_release(PageRun run) override { inner_->unmap_and_release(run); }
  bool rebindable() const override { return inner_->rebindable(); }
  bool aliasing() const override { return inner_->aliasing(); }
  uint64_t max_alias_pages() const override { return inner_->max_alias_pages(); }
  bool take_mappings(uint64_t pages) override { return inner_->take_mappings(pages); }
  void give_back_mappings(uint64_t pages) noexcept override { inner_->give_back_mappings(pages); }
  std::string describe_mappings() const override { return inner_->describe_mappings(); }
  void map_alias(uint64_t address, PageRun run) override { inner_->map_alias(address, run); }
  void unmap_alias(uint64_t address, PageRun run) override { inner_->unmap_alias(address, run); }
  std::vector<int> peers_in_use() const override { return inner_->peers_in_use(); }
  void add_peer(int device) override { inner_->add_peer(device); }
  void remove_peer(int device) override { inner_->remove_peer(device); }
  void grant_peers(uint64_t address, uint64_t pages) override {
    inner_->grant_peers(address, pages);
  }
  bool events_allowed() const override { return inner_->events_allowed(); }
  Event record_event(uint64_t stream) override { return inner_->record_event(stream); }
  bool event_done(Event event) override { return inner_->event_done(event); }
  void stream_wait(uint64_t stream, Event event) override { inner_->stream_wait(stream, event); }
  void synchronize(Event event) override { inner_->synchronize(event); }
  void synchronize_all() override { inner_->synchronize_all(); }
  void release_event(Event event) override { inner_->release_event(event); }
  void discard_in_child(uint64_t address, uint64_t bytes) override {
    inner_->discard_in_child(address, bytes);
  }
  void inject_fault(const std::string& call, uint64_t nth) override {
    inner_->inject_fault(call, nth);
  }
  void complete_events(uint64_t count) override { inner_->complete_events(count); }

 protected:
  uint64_t page_bytes_ = 0;

 private:
  std::unique_ptr<Backend> inner_;
};

/// Backs at most `limit_bytes`, as a device shared with others does.
class LimitBackend : public Decorator {
 public:
  LimitBackend(std::unique_ptr<Backend> inner, uint64_t limit_bytes)
      : Decorator(std::move(inner)), limit_bytes_(limit_bytes) {}
  void map_primary(PageRun run) override;
  void unmap_and_release(PageRun run) override;

 private:
  const uint64_t limit_bytes_;
  std::atomic<uint64_t> backed_bytes_ = 0;
};

/// Makes a chosen call fail before it reaches what is decorated. A fault has the name of the method
/// that it breaks. `map_primary` may run in another thread, so the countdown has a lock of its own.
class FaultBackend : public Decorator {
 public:
  using Decorator::Decorator;
  void reserve(const Layout& layout) override;
  void map_primary(PageRun run) override;
  void unmap_and_release(PageRun run) override;
  void map_alias(uint64_t address, PageRun run) override;
  void unmap_alias(uint64_t address, PageRun run) override;
  Event record_event(uint64_t stream) override;
  void stream_wait(uint64_t stream, Event event) override;
  void synchronize_all() override;
  void inject_fault(const std::string& call, uint64_t nth) override;

 private:
  void strike(const char* call);
  std::mutex mutex_;  // of the countdown
  std::map<std::string, uint64_t> countdown_;
};

/// Takes its time to back pages, as a device does.
class SlowMapsBackend : public Decorator {
 public:
  using Decorator::Decorator;
  bool maps_slowly() const override { return true; }
  void map_primary(PageRun run) override;
};

/// Events stay open until `complete_events` or a host wait, as on a busy device.
class LateEventsBackend : public Decorator {
 public:
  using Decorator::Decorator;
  Event record_event(uint64_t stream) override;
  bool event_done(Event event) override;
  void stream_wait(uint64_t stream, Event event) override;
  void synchronize(Event event) override;
  void synchronize_all() override;
  void release_event(Event event) override;
  void complete_events(uint64_t count) override;

 private:
  Event last_event_ = 0;
  std::set<Event> open_;
};

}  // namespace vramkit
