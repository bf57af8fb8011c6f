#include "pool/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "pool/engine.h"

namespace vramkit {
namespace {

TEST(Recall, KnowsWhatWasNoted) {
  Recall recall(1024);
  EXPECT_EQ(recall.find(77), std::nullopt);
  recall.note(77, 4096);
  EXPECT_EQ(recall.find(77), 4096U);
  recall.note(77, 8192);
  EXPECT_EQ(recall.find(77), 8192U);
  EXPECT_EQ(recall.find(78), std::nullopt);
}

TEST(Recall, KeepsTheLatestFourOfThoseThatShareASet) {
  Recall recall(1024);
  for (uint64_t i = 0; i < 6; ++i) recall.note(5 + 256 * i, i);
  EXPECT_EQ(recall.find(5), std::nullopt);
  EXPECT_EQ(recall.find(5 + 256), std::nullopt);
  recall.note(5 + 256 * 2, 22);
  recall.note(5 + 256 * 6, 6);
  EXPECT_EQ(recall.find(5 + 256 * 2), 22U);
  EXPECT_EQ(recall.find(5 + 256 * 3), std::nullopt);
  EXPECT_EQ(recall.find(5 + 256 * 6), 6U);
  EXPECT_LE(recall.metadata_bytes(), 1024 * 16U);
}

TEST(LayoutMark, IsTheSameWhateverTheOrder) {
  LayoutMark one;
  LayoutMark other;
  const uint64_t empty = one.with_request(512, 0);
  one.toggle(0, 512);
  one.toggle(512, 1024);
  other.toggle(512, 1024);
  other.toggle(0, 512);
  EXPECT_EQ(one.with_request(512, 0), other.with_request(512, 0));
  one.toggle(512, 1024);
  one.toggle(0, 512);
  EXPECT_EQ(one.with_request(512, 0), empty);
}

TEST(LayoutMark, TellsPlacesSizesAndStreamsApart) {
  std::set<uint64_t> marks;
  for (uint64_t place = 0; place < 16; ++place) {
    for (uint64_t size = 1; size <= 16; ++size) {
      LayoutMark layout;
      layout.toggle(place * 512, size * 512);
      for (uint64_t stream = 0; stream < 4; ++stream) {
        for (uint64_t asked = 1; asked <= 4; ++asked) {
          marks.insert(layout.with_request(asked * 512, stream));
        }
      }
    }
  }
  EXPECT_EQ(marks.size(), 16U * 16 * 4 * 4);
}

/// A loop of equal steps whose first one also makes what stays, as a training's does.
class Loop {
 public:
  Loop(uint32_t seed, uint64_t streams) : random_(seed) {
    std::vector<uint64_t> sizes(3 + random_() % 22);
    for (uint64_t& size : sizes) size = uint64_t{32 * kKiB} << random_() % 11 | random_() % kMiB;
    std::vector<uint64_t> live;
    const uint64_t events = 10 + random_() % 190;
    for (uint64_t i = 0; i < events; ++i) {
      if (live.empty() || random_() % 100 < 55) {
        live.push_back(i);
        events_.push_back({i, sizes[random_() % sizes.size()], 1 + random_() % streams});
        if (random_() % 8 == 0) stays_[events_.size()] = 32 * kKiB + random_() % (16 * kMiB);
      } else {
        end(live, random_() % 2 == 0 ? live.size() - 1 : random_() % live.size());
      }
    }
    while (!live.empty()) end(live, random_() % live.size());
  }

  uint64_t peak_bytes() const {
    uint64_t live = 0;
    uint64_t peak = 0;
    for (const auto& [at, size] : stays_) live += size;
    std::map<uint64_t, uint64_t> sizes;
    for (const Event& event : events_) {
      if (event.size > 0) {
        live += sizes[event.block] = event.size;
        peak = std::max(peak, live);
      } else {
        live -= sizes[event.block];
      }
    }
    return peak;
  }

  /// Returns the mapping calls until the end of each step; fewer when the memory did not do.
  std::vector<uint64_t> run(Engine& pool, int steps) {
    std::vector<uint64_t> calls;
    for (int step = 0; step < steps; ++step) {
      std::map<uint64_t, uint64_t> addresses;
      for (size_t i = 0; i < events_.size(); ++i) {
        const auto stays = step == 0 ? stays_.find(i) : stays_.end();
        if (stays != stays_.end() && pool.allocate(stays->second, 1, 0) == 0) return calls;
        const Event& event = events_[i];
        if (event.size == 0) {
          pool.release(addresses[event.block]);
        } else if ((addresses[event.block] = pool.allocate(event.size, event.stream, 0)) == 0) {
          return calls;
        }
      }
      calls.push_back(pool.pages().mapping_calls());
    }
    return calls;
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

  std::mt19937 random_;
  std::vector<Event> events_;
  std::map<size_t, uint64_t> stays_;  // by the number of the event before which it is made
};

/// By the number of streams.
class EqualSteps : public testing::TestWithParam<uint64_t> {};

TEST_P(EqualSteps, MapNothingFromTheThirdOn) {
  int completed = 0;
  int stitched = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Loop loop(seed, GetParam());
    const uint64_t capacity = loop.peak_bytes() * 108 / 100 / (2 * kMiB) * (2 * kMiB);
    Engine pool({"null", "test", capacity, 2 * kMiB});
    const std::vector<uint64_t> calls = loop.run(pool, 10);
    if (calls.size() < 10) continue;
    ++completed;
    stitched += pool.counters().stitched_requests > 0 ? 1 : 0;
    EXPECT_EQ(calls[9], calls[1]) << "seed " << seed;
    pool.check_valid();
  }
  EXPECT_GT(completed, 100);
  EXPECT_GT(stitched, 50);
}

INSTANTIATE_TEST_SUITE_P(Streams, EqualSteps, testing::Values(1, 2, 3));

}  // namespace
}  // namespace vramkit
