// A random loop of equal steps, as a training is one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "base/bytes.h"

namespace vramkit {

/// A loop of equal steps whose first one also makes what stays, as a training's does.
class Loop {
 public:
  /// Sizes of blocks: powers of two below 2^`doublings` times 32 KiB, and a part of `rest` more.
  struct Kind {
    uint64_t doublings;
    uint64_t rest;
    uint64_t stays_least;
    uint64_t stays_most;
    bool small;        // a third of the blocks has at most 16 KiB
    uint64_t events;   // at most
    uint64_t carried;  // blocks that a step frees when the next one has made the same one
  };
  static constexpr Kind kLargeOnly{11, kMiB, 32 * kKiB, 16 * kMiB, false, 200, 0};
  static constexpr Kind kFewPages{6, 32 * kKiB, 32 * kKiB, 512 * kKiB, false, 200, 0};
  static constexpr Kind kWithSmall{6, 32 * kKiB, 1, 512 * kKiB, true, 200, 0};
  static constexpr Kind kCarrying{11, kMiB, 32 * kKiB, 16 * kMiB, false, 200, 2};
  static constexpr Kind kLong{6, 32 * kKiB, 1, 512 * kKiB, true, 1000, 0};

  Loop(uint32_t seed, uint64_t streams, const Kind& kind) : random_(seed) {
    std::vector<uint64_t> sizes(3 + random_() % 22);
    for (uint64_t& size : sizes) {
      size = kind.small && random_() % 3 == 0
                 ? 1 + random_() % (16 * kKiB)
                 : uint64_t{32 * kKiB} << random_() % kind.doublings | random_() % kind.rest;
    }
    std::vector<uint64_t> live;
    const uint64_t events = 10 + random_() % (kind.events - 10);
    for (uint64_t i = 0; i < events; ++i) {
      if (live.empty() || random_() % 100 < 55) {
        live.push_back(i);
        events_.push_back({i, sizes[random_() % sizes.size()], 1 + random_() % streams});
        if (random_() % 8 == 0)
          stays_[events_.size()] = kind.stays_least + random_() % kind.stays_most;
      } else {
        end(live, random_() % 2 == 0 ? live.size() - 1 : random_() % live.size());
      }
    }
    while (!live.empty()) end(live, random_() % live.size());
    for (uint64_t i = 0; i < kind.carried; ++i) carry(events_[random_() % events_.size()].block);
  }

  uint64_t peak_bytes() const {
    uint64_t live = 0;
    uint64_t peak = 0;
    for (const auto& [at, size] : stays_) live += size;
    std::map<uint64_t, uint64_t> sizes;
    for (const bool first : {true, false}) {
      for (const Event& event : events_) {
        if (event.size > 0) {
          live += sizes[event.block] = event.size;
          peak = std::max(peak, live);
          if (!first && carried_.contains(event.block)) live -= event.size;
        } else {
          live -= sizes[event.block];
        }
      }
    }
    return peak;
  }

  /// Plays on a pool with allocate(size, stream), release(address) and end_step(). Returns how many
  /// requests it refused, which the loop then does without.
  template <typename Pool>
  int run(Pool& pool, int steps) const {
    int refused = 0;
    std::map<uint64_t, uint64_t> carried;
    for (int step = 0; step < steps; ++step) {
      std::map<uint64_t, uint64_t> addresses;
      for (size_t i = 0; i < events_.size(); ++i) {
        const auto stays = step == 0 ? stays_.find(i) : stays_.end();
        if (stays != stays_.end()) refused += pool.allocate(stays->second, 1) == 0;
        const Event& event = events_[i];
        uint64_t& address = addresses[event.block];
        if (event.size > 0) {
          address = pool.allocate(event.size, event.stream);
          refused += address == 0;
          if (carried_.contains(event.block)) {
            std::swap(carried[event.block], address);
            if (address != 0) pool.release(address);
          }
        } else if (address != 0) {
          pool.release(address);
        }
      }
      pool.end_step();
    }
    for (const auto& [block, address] : carried) {
      if (address != 0) pool.release(address);
    }
    return refused;
  }

 private:
  struct Event {
    uint64_t block;
    uint64_t size;  // 0: it is freed
    uint64_t stream;
  };

  void end(std::vector<uint64_t>& live, size_t which) {
    events_.push_back({live[which], 0, 0});
    live.erase(live.begin() + static_cast<ptrdiff_t>(which));
  }

  void carry(uint64_t block) {
    std::erase_if(events_, [block](const Event& e) { return e.block == block && e.size == 0; });
    carried_.insert(block);
  }

  std::mt19937 random_;
  std::vector<Event> events_;
  std::set<uint64_t> carried_;
  std::map<size_t, uint64_t> stays_;  // by the number of the event before which it is made
};

}  // namespace vramkit
