// A device whose streams run late, and a judge of what the pool does with it: every piece of
// memory remembers the work that may still touch it, and each hand-over must be ordered behind
// that work by a wait, or by an event that the pool has seen done.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/decorators.h"
#include "base/error.h"

namespace vramkit {

/// How many pieces of work of each stream: a vector clock.
struct Clock : std::array<uint64_t, 4> {
  bool covers(const Clock& other) const {
    for (size_t i = 0; i < size(); ++i) {
      if ((*this)[i] < other[i]) return false;
    }
    return true;
  }
  void merge(const Clock& other) {
    for (size_t i = 0; i < size(); ++i) (*this)[i] = std::max((*this)[i], other[i]);
  }
  std::string text() const {
    return format("(%llu %llu %llu %llu)", at_(0), at_(1), at_(2), at_(3));
  }

 private:
  unsigned long long at_(size_t i) const { return (*this)[i]; }
};

/// Streams whose work is queued, and done only when `advance` says so.
class LateStreams {
 public:
  static constexpr size_t kCount = 4;

  /// Queues a piece of work. It runs after all that the host knew to be done.
  const Clock& work(size_t stream) {
    clocks_[stream].merge(host_);
    ++clocks_[stream][stream];
    queue_[stream].push_back(clocks_[stream]);
    return clocks_[stream];
  }
  void wait(size_t stream, const Clock& event) { clocks_[stream].merge(event); }
  Clock now(size_t stream) const {
    Clock clock = clocks_[stream];
    clock.merge(host_);
    return clock;
  }
  bool done(const Clock& event) {
    if (!done_.covers(event)) return false;
    host_.merge(event);
    return true;
  }
  void synchronize(const Clock& event) {
    done_.merge(event);
    host_.merge(event);
  }
  void synchronize_all() {
    for (size_t stream = 0; stream < kCount; ++stream) done_[stream] = queue_[stream].size();
    host_.merge(done_);
  }
  const Clock& host() const { return host_; }

  /// Finishes one piece of work, if what it waits for is done. True if it did.
  bool advance(size_t stream) {
    const uint64_t next = done_[stream];
    if (next == queue_[stream].size()) return false;
    Clock needed = queue_[stream][next];
    needed[stream] = next;
    if (!done_.covers(needed)) return false;
    ++done_[stream];
    return true;
  }

 private:
  std::array<Clock, kCount> clocks_{};
  std::array<std::vector<Clock>, kCount> queue_{};
  Clock done_{};
  Clock host_{};  // known to be done on the host
};

class DeviceModel : public Decorator {
 public:
  static constexpr size_t kStreams = LateStreams::kCount;

  /// `violations` receives, in words, what the pool does wrong, its closing included.
  DeviceModel(std::unique_ptr<Backend> inner, std::string& violations,
              uint64_t max_alias_pages = 1 << 20)
      : Decorator(std::move(inner)), max_alias_pages_(max_alias_pages), violations_(violations) {}

  static uint64_t handle(size_t stream) { return stream * 16; }

  // ---- what the program does

  void on_allocate(uint64_t address, uint64_t bytes, size_t stream) {
    const Clock now = streams_.work(stream);
    each_unit(address, bytes, [&](Unit& unit) {
      if (unit.owner != 0) accuse("%s is live and handed out again", at(address).c_str());
      if (!now.covers(unit.uses)) {
        accuse("%s handed to stream %zu at %s before the work %s on it", at(address).c_str(),
               stream, now.text().c_str(), unit.uses.text().c_str());
      }
      handovers_ += unit.uses[stream] == 0 && !host_covers(unit.uses);
      unit = Unit{{}, address};
      unit.uses[stream] = now[stream];
    });
    note_alias_use(address, bytes, stream, now);
  }

  void on_use(uint64_t address, uint64_t bytes, size_t stream) {
    const Clock now = streams_.work(stream);
    each_unit(address, bytes, [&](Unit& unit) {
      if (unit.owner != address) accuse("%s lost its memory while live", at(address).c_str());
      unit.uses[stream] = now[stream];
    });
    note_alias_use(address, bytes, stream, now);
  }

  void on_free(uint64_t address, uint64_t bytes) {
    each_unit(address, bytes, [&](Unit& unit) {
      if (unit.owner != address) accuse("%s lost its memory while live", at(address).c_str());
      unit.owner = 0;
    });
  }

  LateStreams& streams() { return streams_; }
  void set_capturing(bool capturing) { capturing_ = capturing; }
  /// Events recorded on the stream from now on are violations.
  void destroy_stream(size_t stream) { destroyed_[stream] = true; }
  /// Another stream with the same handle. The program has waited for the work of the first.
  void make_stream(size_t stream) { destroyed_[stream] = false; }

  size_t open_events() const { return events_.size(); }
  /// Pieces of memory that went to a stream while another's work on them was not known done.
  uint64_t handovers() const { return handovers_; }
  uint64_t unmapped_pages() const { return unmapped_pages_; }
  /// How often the pool has waited for the whole device.
  uint64_t device_waits() const { return device_waits_; }
  uint64_t unbacked_pages() const { return unbacked_pages_; }

  // ---- what the pool does

  uint64_t max_alias_pages() const override { return max_alias_pages_; }
  bool events_allowed() const override { return !capturing_; }

  void reserve(const Layout& layout) override {
    Decorator::reserve(layout);
    primary_pages_ = layout.primary_pages;
  }

  void map_primary(PageRun run) override {
    Decorator::map_primary(run);
    for (uint64_t page = run.first; page < run.first + run.count; ++page) {
      if (pages_[page].backed) accuse("page %llu backed twice", number(page));
      if (pages_[page].retired && !rebindable()) accuse("page %llu backed again", number(page));
      pages_[page].backed = true;
    }
  }

  void unmap_and_release(PageRun run) override {
    for (uint64_t page = run.first; page < run.first + run.count; ++page) {
      Page& known = pages_[page];
      if (!known.backed || known.aliases > 0) {
        accuse("page %llu given back with %d aliases, backed %d", number(page), known.aliases,
               known.backed);
      }
      each_unit_of(page, [&](Unit& unit) {
        if (unit.owner == 0 && host_covers(unit.uses)) return;
        accuse("page %llu given back under work %s, known done %s, owner %s", number(page),
               unit.uses.text().c_str(), streams_.host().text().c_str(), at(unit.owner).c_str());
      });
      known.backed = false;
      known.retired = true;
    }
    unbacked_pages_ += run.count;
    Decorator::unmap_and_release(run);
  }

  void map_alias(uint64_t address, PageRun run) override {
    Decorator::map_alias(address, run);
    for (uint64_t i = 0; i < run.count; ++i) {
      Alias& alias = aliases_[alias_page(address) + i];
      Page& page = pages_[run.first + i];
      if (alias.mapped) accuse("%s mapped twice", at(address).c_str());
      if (!aliasing() && page.aliases > 0) accuse("page %llu moved twice", number(run.first + i));
      if (!page.backed) accuse("page %llu mapped without memory", number(run.first + i));
      if (!rebindable() && alias.page != kNowhere && alias.page != run.first + i) {
        accuse("%s bound to another page", at(address).c_str());
      }
      if (!aliasing()) check_idle(run.first + i);
      alias.page = run.first + i;
      alias.mapped = true;
      ++page.aliases;
    }
  }

  void unmap_alias(uint64_t address, PageRun run) override {
    for (uint64_t i = 0; i < run.count; ++i) {
      Alias& alias = aliases_[alias_page(address) + i];
      if (!alias.mapped || alias.page != run.first + i) {
        accuse("%s unmapped, but page %llu is not there", at(address).c_str(),
               number(run.first + i));
      }
      // Where pages move, nothing runs late: see Backend::aliasing.
      if (aliasing() && !host_covers(alias.uses)) {
        accuse("%s unmapped under work %s", at(address).c_str(), alias.uses.text().c_str());
      }
      if (!aliasing()) check_idle(run.first + i);
      alias.mapped = false;
      --pages_[run.first + i].aliases;
    }
    unmapped_pages_ += run.count;
    Decorator::unmap_alias(address, run);
  }

  Event record_event(uint64_t stream) override {
    must_not_capture("record");
    if (destroyed_[stream / 16]) accuse("event recorded on destroyed stream %zu", index(stream));
    events_[++last_event_] = streams_.now(index(stream));
    return last_event_;
  }
  bool event_done(Event event) override {
    must_not_capture("query");
    return streams_.done(events_.at(event));
  }
  void stream_wait(uint64_t stream, Event event) override {
    must_not_capture("wait");
    streams_.wait(index(stream), events_.at(event));
  }
  void synchronize(Event event) override {
    must_not_capture("synchronize");
    streams_.synchronize(events_.at(event));
  }
  void synchronize_all() override {
    if (capturing_) accuse("wait for the device during a capture");
    streams_.synchronize_all();
    ++device_waits_;
  }
  void release_event(Event event) override {
    if (events_.erase(event) != 1) accuse("event %llu released twice", number(event));
  }

 private:
  static constexpr uint64_t kUnit = 512;
  static constexpr uint64_t kNowhere = ~uint64_t{0};

  struct Unit {
    Clock uses{};
    uint64_t owner = 0;  // address of the live block
  };
  struct Page {
    bool backed = false;
    bool retired = false;
    int aliases = 0;  // where it stands besides home, or instead
    std::vector<Unit> units{};
  };
  struct Alias {
    uint64_t page = kNowhere;
    bool mapped = false;
    Clock uses{};
  };

  static unsigned long long number(uint64_t value) { return value; }
  static size_t index(uint64_t handle) { return handle / 16; }
  std::string at(uint64_t address) const {
    return format("block at +%llu KiB", number((address - base()) / 1024));
  }

  template <typename... Values>
  void accuse(const char* pattern, Values... values) {
    const std::string text = format(pattern, values...) + "\n";
    if (!violations_.ends_with(text) && violations_.size() < 1000) violations_ += text;
  }
  void must_not_capture(const char* call) {
    if (capturing_) accuse("%s of an event during a capture", call);
  }
  bool host_covers(const Clock& uses) const { return streams_.host().covers(uses); }

  uint64_t alias_page(uint64_t address) const {
    return (address - base()) / page_bytes_ - primary_pages_;
  }
  bool is_alias(uint64_t address) const {
    return (address - base()) / page_bytes_ >= primary_pages_;
  }

  template <typename Visit>
  void each_unit_of(uint64_t page, Visit visit) {
    auto& units = pages_[page].units;
    units.resize(page_bytes_ / kUnit);
    for (Unit& unit : units) visit(unit);
  }

  void check_idle(uint64_t page) {
    each_unit_of(page, [&](const Unit& unit) {
      if (unit.owner != 0) accuse("page %llu moved under %s", number(page), at(unit.owner).c_str());
    });
  }

  /// Visits the memory behind the addresses.
  template <typename Visit>
  void each_unit(uint64_t address, uint64_t bytes, Visit visit) {
    while (bytes > 0) {
      const uint64_t inside = (address - base()) % page_bytes_;
      const uint64_t part = std::min(bytes, page_bytes_ - inside);
      Page* page = page_behind(address);
      if (page != nullptr) {
        page->units.resize(page_bytes_ / kUnit);
        for (uint64_t i = 0; i < part / kUnit; ++i) visit(page->units[inside / kUnit + i]);
      }
      address += part;
      bytes -= part;
    }
  }

  Page* page_behind(uint64_t address) {
    uint64_t index = (address - base()) / page_bytes_;
    if (is_alias(address)) {
      const Alias& alias = aliases_[alias_page(address)];
      index = alias.page;
      if (!alias.mapped) {
        accuse("%s has no memory", at(address).c_str());
        return nullptr;
      }
    } else if (!aliasing() && pages_[index].aliases > 0) {
      accuse("%s is used while its page is away", at(address).c_str());
    }
    Page& page = pages_[index];
    if (!page.backed) accuse("%s is not backed", at(address).c_str());
    return &page;
  }

  void note_alias_use(uint64_t address, uint64_t bytes, size_t stream, const Clock& now) {
    if (!is_alias(address)) return;
    for (uint64_t done = 0; done < bytes; done += page_bytes_) {
      aliases_[alias_page(address + done)].uses[stream] = now[stream];
    }
  }

  LateStreams streams_;
  uint64_t max_alias_pages_;
  std::string& violations_;
  uint64_t primary_pages_ = 0;
  bool capturing_ = false;
  std::array<bool, kStreams> destroyed_{};
  std::map<Event, Clock> events_;
  Event last_event_ = 0;
  std::map<uint64_t, Page> pages_;
  std::map<uint64_t, Alias> aliases_;
  uint64_t handovers_ = 0;
  uint64_t unmapped_pages_ = 0;
  uint64_t device_waits_ = 0;
  uint64_t unbacked_pages_ = 0;
};

}  // namespace vramkit
