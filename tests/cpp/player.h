// Plays random operations on an engine and on a plain model of it, and compares the two after each.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "device_model.h"
#include "pool/engine.h"
#include "support.h"

namespace vramkit {

struct Game {
  std::string backend;
  uint64_t page_bytes;
  uint64_t pages;
  size_t streams;
  bool faults = false;  // injected failures
  bool captures = false;
  uint64_t max_alias_pages = 1 << 20;
  bool external = false;  // streams other than the first come and go

  friend void PrintTo(const Game& game, std::ostream* out) {
    *out << game.backend << ", " << game.pages << " pages of " << game.page_bytes / kKiB << " KiB, "
         << game.streams << " streams" << (game.faults ? ", faults" : "")
         << (game.captures ? ", captures" : "") << (game.external ? ", external" : "") << ", "
         << game.max_alias_pages << " aliases";
  }
};

class Player {
 public:
  Player(const Game& game, uint64_t seed) : game_(game), random_(seed) {
    auto model = std::make_unique<DeviceModel>(make_backend(game.backend), violations_,
                                               game.max_alias_pages);
    device_ = model.get();
    engine_ = std::make_unique<Engine>(
        EngineConfig{game.backend, "test", game.pages * game.page_bytes, game.page_bytes},
        std::make_unique<FaultBackend>(std::move(model)));
    for (size_t stream = 1; game.external && stream < game.streams; ++stream) {
      engine_->declare_external(DeviceModel::handle(stream));
    }
  }

  /// One random operation. Returns what went wrong, in words.
  std::string step() {
    step_ = "?";
    try {
      if (game_.faults && one_in(15)) arm();
      operate();
      engine_->check_valid();
      compare();
    } catch (const Error& error) {
      violations_ += error.what();
    }
    return violations_.empty() ? "" : step_ + ": " + violations_;
  }

  /// Frees all and closes, as a pool does. Returns what went wrong.
  std::string finish() {
    capture(false);
    for (const char* call : kBackendCalls) engine_->inject_fault(call, 0);
    while (!live_.empty()) free_block(live_.begin()->first);
    engine_->drain();
    device_ = nullptr;
    engine_.reset();
    return violations_;
  }

  const Engine& engine() const { return *engine_; }
  const DeviceModel& device() const { return *device_; }
  uint64_t faults_seen() const { return faults_seen_; }

 private:
  struct Block {
    uint64_t requested;
    uint64_t size;
    size_t stream;
    std::set<size_t> users;
    uint64_t pattern;
  };
  struct Totals {
    uint64_t live = 0;
    uint64_t peak = 0;
    uint64_t allocated = 0;
    uint64_t allocations = 0;
    uint64_t frees = 0;
    uint64_t failures = 0;
  };

  uint64_t pick(uint64_t count) {
    return std::uniform_int_distribution<uint64_t>(0, count - 1)(random_);
  }
  bool one_in(uint64_t count) { return pick(count) == 0; }
  auto any_live() { return std::next(live_.begin(), static_cast<ptrdiff_t>(pick(live_.size()))); }
  uint64_t capacity() const { return capacity_pages_ * game_.page_bytes; }

  void operate() {
    for (uint64_t i = pick(4); i > 0; --i) device_->streams().advance(pick(game_.streams));
    if (game_.external && one_in(60)) return one_in(3) ? make_stream() : destroy_last_stream();
    const uint64_t dice = pick(1000);
    if (dice < 500) return allocate();
    if (dice < 840) return live_.empty() ? allocate() : free_block(any_live()->first);
    if (dice < 900) return use(true);
    if (dice < 940) return use(false);
    if (dice < 970) return misuse();
    if (dice < 980) return game_.captures ? capture(one_in(2)) : allocate();
    if (dice < 985) return trim();
    if (dice < 991) return resize();
    if (dice < 995) return empty();
    engine_->reset_peaks();
    totals_.peak = totals_.live;
  }

  uint64_t random_size() {
    const uint64_t most = std::max<uint64_t>(capacity() / 2, kMaxSmall);
    const double low = static_cast<double>(one_in(3) ? 1 : game_.page_bytes / 2);
    const double high = static_cast<double>(one_in(3) ? most : most / 4);
    const double power = std::uniform_real_distribution<>(0, 1)(random_);
    return static_cast<uint64_t>(low * std::pow(std::max(high / low, 1.0), power));
  }

  void allocate() {
    const uint64_t size = random_size();
    const size_t stream = pick(streams_);
    step_ = format("allocate %llu on stream %zu", static_cast<unsigned long long>(size), stream);
    uint64_t address = 0;
    if (!guarded([&] { address = engine_->allocate(size, DeviceModel::handle(stream), 0); }))
      return;
    if (address == 0) {
      ++totals_.failures;
      // Pages that are wholly free can always be stitched, and a hole can always be taken.
      const bool stitchable = engine_->free_page_bytes() >= align_up(size, game_.page_bytes);
      const bool fits =
          engine_->largest_free_extent() >= align_up(std::max(size, kGranule), kAlignment);
      const bool capped = game_.max_alias_pages < 1 << 20;
      if (!capturing_ && (fits || (stitchable && !capped))) violations_ += "failed with room left";
      return;
    }
    accept(address, size, stream);
  }

  void accept(uint64_t address, uint64_t size, size_t stream) {
    const auto info = engine_->find(address);
    if (!info || info->address != address || info->requested != size || info->size < size) {
      violations_ += "the new block is not found as it was asked for";
      return;
    }
    if (address % kAlignment != 0 || info->size % kAlignment != 0) violations_ += "not aligned";
    device_->on_allocate(address, info->size, stream);
    Block block{size, info->size, stream, {}, random_()};
    write(address, block);
    live_.emplace(address, block);
    ++totals_.allocations;
    totals_.live += size;
    totals_.peak = std::max(totals_.peak, totals_.live);
    totals_.allocated += info->size;
  }

  void free_block(uint64_t address) {
    const Block& block = live_.at(address);
    step_ = format("free %llu", static_cast<unsigned long long>(block.requested));
    // The owner and the recorded streams use it until the end.
    if (block.stream < streams_) device_->on_use(address, block.size, block.stream);
    for (const size_t user : block.users) device_->on_use(address, block.size, user);
    verify(address, block);
    const uint64_t freed = one_in(4) ? release_on(address, block) : engine_->release(address);
    if (freed != block.requested) violations_ += "another size was freed";
    device_->on_free(address, block.size);
    ++totals_.frees;
    totals_.live -= block.requested;
    totals_.allocated -= block.size;
    live_.erase(address);
  }

  /// On a stream that the program has made wait for the owner, and that may use it after that.
  uint64_t release_on(uint64_t address, const Block& block) {
    const size_t stream = pick(streams_);
    step_ += format(" on stream %zu", stream);
    device_->streams().wait(stream, device_->streams().now(block.stream));
    if (one_in(2)) device_->on_use(address, block.size, stream);
    return engine_->release_on(address, DeviceModel::handle(stream));
  }

  void use(bool elsewhere) {
    if (live_.empty()) return;
    auto& [address, block] = *any_live();
    step_ = "record_stream";
    const size_t user = elsewhere ? pick(streams_) : block.stream;
    if (user >= streams_) return;
    if (elsewhere) {
      engine_->record_stream(address, DeviceModel::handle(user));
      block.users.insert(user);
    }
    device_->on_use(address, block.size, user);
  }

  void misuse() {
    step_ = "misuse";
    expect_refused(engine_->base() - 512, Status::kForeignPointer);
    expect_refused(engine_->base() + engine_->address_bytes(), Status::kForeignPointer);
    expect_refused(engine_->base() + pick(engine_->address_bytes()), Status::kDoubleFree);
    if (live_.empty()) return;
    const auto& [address, block] = *any_live();
    expect_refused(address + 1 + pick(block.size - 1), Status::kDoubleFree);
  }

  void expect_refused(uint64_t address, Status status) {
    if (live_.contains(address)) return;
    try {
      engine_->release(address);
      violations_ += "a wrong free was accepted";
    } catch (const Error& error) {
      if (error.status() != status) violations_ += error.what();
    }
  }

  void capture(bool on) {
    step_ = "capture";
    capturing_ = on;
    device_->set_capturing(on);
  }

  void trim() {
    step_ = "trim";
    guarded([&] { engine_->trim(); });
  }

  void resize() {
    const uint64_t wanted =
        one_in(8) ? 1 + pick(game_.pages) : game_.pages / 2 + pick(game_.pages * 3 / 4);
    step_ = format("resize to %llu pages", static_cast<unsigned long long>(wanted));
    const uint64_t before = engine_->capacity_bytes();
    const bool done = guarded([&] { engine_->resize(wanted * game_.page_bytes); });
    capacity_pages_ = engine_->capacity_bytes() / game_.page_bytes;
    if (done && capacity_pages_ != wanted) violations_ += "another capacity";
    if (!done && !game_.faults && engine_->capacity_bytes() != before) {
      violations_ += "a refused resize changed the capacity";
    }
  }

  void empty() {
    while (!live_.empty()) free_block(any_live()->first);
  }

  /// It keeps the blocks that it owns; those recorded for it must be freed before.
  void destroy_last_stream() {
    if (streams_ == 1) return;
    const size_t last = streams_ - 1;
    std::vector<uint64_t> used;
    for (const auto& [address, block] : live_) {
      if (block.users.contains(last)) used.push_back(address);
    }
    for (const uint64_t address : used) free_block(address);
    step_ = "destroy a stream";
    device_->destroy_stream(--streams_);
  }

  void make_stream() {
    step_ = "make a stream";
    if (streams_ < game_.streams) device_->make_stream(streams_++);
  }

  void arm() { engine_->inject_fault(kBackendCalls[pick(kBackendCalls.size())], 1 + pick(3)); }

  /// Runs what may fail. False if it did: then for a reason that it may have.
  template <typename Body>
  bool guarded(Body body) {
    try {
      body();
      return true;
    } catch (const Error& error) {
      const std::string text = error.what();
      const bool injected = text.find("injected failure") != std::string::npos;
      faults_seen_ += injected;
      if (!injected && error.status() != Status::kBusy) violations_ += text;
      return false;
    }
  }

  void write(uint64_t address, const Block& block) {
    if (game_.backend == "null") return;
    for (uint64_t at = 0; at + 8 <= block.requested; at += 4 * kKiB) {
      std::memcpy(reinterpret_cast<void*>(address + at), &block.pattern, 8);
    }
  }

  void verify(uint64_t address, const Block& block) {
    if (game_.backend == "null") return;
    for (uint64_t at = 0; at + 8 <= block.requested; at += 4 * kKiB) {
      if (std::memcmp(reinterpret_cast<void*>(address + at), &block.pattern, 8) != 0) {
        violations_ += "a block's memory was overwritten";
        return;
      }
    }
  }

  void compare() {
    const Counters& counters = engine_->counters();
    const bool same =
        counters.live_bytes == totals_.live && counters.peak_live_bytes == totals_.peak &&
        counters.allocated_bytes == totals_.allocated && counters.live_blocks == live_.size() &&
        counters.allocations == totals_.allocations && counters.frees == totals_.frees &&
        counters.failures == totals_.failures && engine_->capacity_bytes() == capacity();
    if (!same) violations_ += "the statistics differ from the model's";
    size_t seen = 0;
    for (const BlockInfo& info : engine_->snapshot()) {
      if (info.state != BlockState::kLive) continue;
      ++seen;
      const auto found = live_.find(info.address);
      if (found == live_.end() || found->second.requested != info.requested ||
          found->second.size != info.size ||
          DeviceModel::handle(found->second.stream) != info.stream) {
        violations_ += "the snapshot differs from the model";
      }
    }
    if (seen != live_.size()) violations_ += "the snapshot lacks blocks";
  }

  const Game game_;
  std::mt19937_64 random_;
  std::string violations_;
  DeviceModel* device_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::map<uint64_t, Block> live_;
  Totals totals_;
  uint64_t capacity_pages_ = game_.pages;
  size_t streams_ = game_.streams;  // not destroyed
  bool capturing_ = false;
  uint64_t faults_seen_ = 0;
  std::string step_;
};

}  // namespace vramkit
