#include "pool/placement_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <ostream>
#include <random>
#include <set>
#include <vector>

#include "loop.h"
#include "pool/engine.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kRequest = 0x1234567890abcdef;
constexpr uint64_t kOther = 0x1234567891abcdef;

TEST(PlacementCache, KnowsWhatWasNoted) {
  PlacementCache cache(1024);
  EXPECT_EQ(cache.find(kRequest), std::nullopt);
  cache.remember(kRequest, 4096);
  EXPECT_EQ(cache.find(kRequest), 4096U);
  cache.remember(kRequest, 8192);
  EXPECT_EQ(cache.find(kRequest), 8192U);
  EXPECT_EQ(cache.find(kOther), std::nullopt);
}

TEST(PlacementCache, KeepsTheLatestFourOfThoseThatShareASet) {
  PlacementCache cache(1024);
  const auto request = [](uint64_t i) { return 5 + 256 * (i + 1); };
  for (uint64_t i = 0; i < 6; ++i) cache.remember(request(i), 512 * i);
  EXPECT_EQ(cache.find(request(0)), std::nullopt);
  EXPECT_EQ(cache.find(request(1)), std::nullopt);
  cache.remember(request(2), 22 * 512);
  cache.remember(request(6), 6 * 512);
  EXPECT_EQ(cache.find(request(2)), 22U * 512);
  EXPECT_EQ(cache.find(request(3)), std::nullopt);
  EXPECT_EQ(cache.find(request(6)), 6U * 512);
  EXPECT_LE(cache.metadata_bytes(), 1024 * 16U);
}

TEST(PlacementCache, KnowsThatThereWasNoPlace) {
  PlacementCache cache(1024);
  cache.remember(kRequest, ~uint64_t{0});
  EXPECT_EQ(cache.find(kRequest), ~uint64_t{0});
}

TEST(PlacementCache, GrowsRatherThanForget) {
  PlacementCache cache(65536);
  std::mt19937_64 random(5);
  std::vector<uint64_t> requests(500);
  for (uint64_t& request : requests) {
    request = random();
    cache.remember(request, request);
  }
  for (const uint64_t request : requests) EXPECT_EQ(cache.find(request), request);
  EXPECT_LE(cache.metadata_bytes(), 65536U);
}

TEST(PlacementCache, GrowsAndForgetsNothingByThat) {
  PlacementCache cache(65536);
  std::mt19937_64 random(11);
  std::vector<uint64_t> requests(12000);
  uint64_t smallest = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i] = random();
    cache.remember(requests[i], i * 512);
    if (i == 0) smallest = cache.metadata_bytes();
  }
  size_t known = 0;
  for (size_t i = 0; i < requests.size(); ++i) known += cache.find(requests[i]) == i * 512;
  EXPECT_GT(known, requests.size() * 99 / 100)
      << "sets of a table that is not full rarely overflow";
  EXPECT_LE(smallest, 16384U);
  const uint64_t grown = cache.metadata_bytes();
  for (int round = 0; round < 20; ++round) {
    for (size_t i = 0; i < 1000; ++i) cache.remember(requests[i], i * 512);
  }
  EXPECT_EQ(cache.metadata_bytes(), grown) << "known requests need no room";
  EXPECT_LE(grown, 65536 * 16U);
}

TEST(LiveSetHash, IsTheSameWhateverTheOrder) {
  LiveSetHash one;
  LiveSetHash other;
  const uint64_t empty = one.request_key(512, 0);
  one.toggle(0, 512);
  one.toggle(512, 1024);
  other.toggle(512, 1024);
  other.toggle(0, 512);
  EXPECT_EQ(one.request_key(512, 0), other.request_key(512, 0));
  one.toggle(512, 1024);
  one.toggle(0, 512);
  EXPECT_EQ(one.request_key(512, 0), empty);
}

TEST(LiveSetHash, TellsPlacesSizesAndStreamsApart) {
  std::set<uint64_t> marks;
  for (uint64_t place = 0; place < 16; ++place) {
    for (uint64_t size = 1; size <= 16; ++size) {
      LiveSetHash layout;
      layout.toggle(place * 512, size * 512);
      for (uint64_t stream = 0; stream < 4; ++stream) {
        for (uint64_t asked = 1; asked <= 4; ++asked) {
          marks.insert(layout.request_key(asked * 512, stream));
        }
      }
    }
  }
  EXPECT_EQ(marks.size(), 16U * 16 * 4 * 4);
}

/// Plays a loop on an engine as it is.
struct PlainPool {
  Engine& engine;

  uint64_t allocate(uint64_t size, uint64_t stream) { return engine.allocate(size, stream, 0); }
  void release(uint64_t address) { engine.release(address); }
  void end_step() { calls.push_back(engine.pages().mapping_calls()); }

  std::vector<uint64_t> calls{};  // until the end of each step
};

/// By the number of streams.
class EqualSteps : public testing::TestWithParam<uint64_t> {
 protected:
  /// Runs loops with `percent` of their peak as capacity.
  void run(uint32_t seeds, const Loop::Kind& kind, uint64_t page, uint64_t percent) {
    for (uint32_t seed = 0; seed < seeds; ++seed) {
      Loop loop(seed, GetParam(), kind);
      const uint64_t capacity = loop.peak_bytes() * percent / 100 / page * page;
      Engine pool({"null", "test", capacity, page});
      PlainPool plain{pool};
      if (loop.run(plain, 10) > 0) continue;
      ++completed_;
      stitched_ += pool.counters().stitched_requests > 0 ? 1 : 0;
      EXPECT_EQ(plain.calls[9], plain.calls[1]) << "seed " << seed;
      pool.check_valid();
    }
  }

  int completed_ = 0;
  int stitched_ = 0;
};

TEST_P(EqualSteps, MapNothingFromTheThirdOn) {
  run(200, Loop::kLargeOnly, 2 * kMiB, 108);
  EXPECT_GT(completed_, 100);
  EXPECT_GT(stitched_, 50);
}

TEST_P(EqualSteps, MapNothingFromTheThirdOnWithSmallBlocksEither) {
  run(300, Loop::kWithSmall, 64 * kKiB, 140);
  EXPECT_GT(completed_, 250);
  EXPECT_GT(stitched_, 10);
}

TEST_P(EqualSteps, MapNothingFromTheThirdOnHoweverLongTheyAre) {
  run(100, Loop::kLong, 64 * kKiB, 140);
  EXPECT_GT(completed_, 50);
}

/// Carried blocks are at two places in turn, so that hardly a step begins in the layout of the last
/// one: such loops go on mapping, and have to find room all the same.
TEST(CarryingSteps, CompleteAndStayValid) {
  int stitched = 0;
  int completed = 0;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    Loop loop(seed, 1, Loop::kCarrying);
    Engine pool({"null", "test", align_down(loop.peak_bytes() * 108 / 100, 2 * kMiB), 2 * kMiB});
    PlainPool plain{pool};
    completed += loop.run(plain, 20) == 0 ? 1 : 0;
    stitched += pool.counters().stitched_requests > 0 ? 1 : 0;
    pool.check_valid();
  }
  EXPECT_GT(stitched, 120);
  EXPECT_GT(completed, 300);
}

/// Plays a loop on a judged engine, whose streams run late: with recorded uses, and with whatever
/// else may come between a step and its repetition.
class LatePool {
 public:
  struct Trouble {
    const char* backend = "null";
    uint64_t max_alias_pages = 1 << 20;
    bool faults = false;
    bool captures = false;
    bool trims = false;

    friend void PrintTo(const Trouble& trouble, std::ostream* out) {
      *out << trouble.backend << ", " << trouble.max_alias_pages << " aliases"
           << (trouble.faults ? ", faults" : "") << (trouble.captures ? ", captures" : "")
           << (trouble.trims ? ", trims" : "");
    }
  };

  LatePool(uint64_t pages, const Trouble& trouble, uint32_t seed)
      : pool_(pages, trouble.backend, trouble.max_alias_pages), trouble_(trouble), random_(seed) {}

  uint64_t allocate(uint64_t size, uint64_t stream) {
    for (uint64_t i = random_() % 4; i > 0; --i) pool_.device().streams().advance(random_() % 4);
    if (trouble_.faults && random_() % 20 == 0) {
      pool_->inject_fault(kBackendCalls[random_() % kBackendCalls.size()], 1 + random_() % 2);
    }
    if (trouble_.captures && random_() % 16 == 0) pool_.device().set_capturing(random_() % 2 == 0);
    try {
      const uint64_t address = pool_.allocate(size, stream % 4);
      if (address != 0 && random_() % 8 == 0) pool_.record_stream(address, random_() % 4);
      return address;
    } catch (const Error& error) {
      EXPECT_TRUE(trouble_.faults) << error.what();
      return 0;
    }
  }

  void release(uint64_t address) { pool_.free(address); }

  void end_step() {
    if (trouble_.trims && random_() % 3 == 0) trim();
  }

  Engine* operator->() { return pool_.operator->(); }

 private:
  void trim() {
    try {
      pool_->trim();
    } catch (const Error& error) {
      EXPECT_TRUE(trouble_.faults || error.status() == Status::kBusy) << error.what();
    }
    pool_.check();
  }

  JudgedEngine pool_;
  const Trouble trouble_;
  std::mt19937 random_;
};

class LateSteps : public testing::TestWithParam<LatePool::Trouble> {};

TEST_P(LateSteps, RecallNoMemoryThatIsInUse) {
  const QuietStderr quiet;
  uint64_t stitched = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    Loop loop(seed, 3, seed % 2 == 0 ? Loop::kWithSmall : Loop::kFewPages);
    const uint64_t pages = loop.peak_bytes() * 115 / 100 / JudgedEngine::kPage;
    LatePool pool(pages + 4, GetParam(), seed);
    loop.run(pool, 6);
    stitched += pool->counters().alias_hits;
  }
  EXPECT_GT(stitched, 0U);
}

INSTANTIATE_TEST_SUITE_P(Troubles, LateSteps,
                         testing::Values(LatePool::Trouble{}, LatePool::Trouble{.trims = true},
                                         LatePool::Trouble{.max_alias_pages = 60},
                                         LatePool::Trouble{.faults = true, .trims = true},
                                         LatePool::Trouble{.captures = true},
                                         LatePool::Trouble{
                                             .backend = "memfd", .faults = true, .captures = true},
                                         LatePool::Trouble{.backend = "host", .faults = true}));

INSTANTIATE_TEST_SUITE_P(Streams, EqualSteps, testing::Values(1, 2, 3));

}  // namespace
}  // namespace vramkit
