// Random operations against a plain model, with every invariant checked after each.
// VRAMKIT_TEST_SEED, VRAMKIT_TEST_SEEDS and VRAMKIT_TEST_STEPS choose other and longer games.
#include <gtest/gtest.h>

#include <cstdlib>

#include "player.h"

namespace vramkit {
namespace {

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

class RandomOperations : public testing::TestWithParam<Game> {
 protected:
  void count(const Player& player) {
    const Engine& engine = player.engine();
    stitched_ += engine.counters().stitched_requests;
    alias_hits_ += engine.counters().alias_hits;
    waits_ += engine.cross_stream_waits();
    handovers_ += player.device().handovers();
    unmapped_ += player.device().unmapped_pages();
    unbacked_ += player.device().unbacked_pages();
    device_waits_ += player.device().device_waits();
    faults_ += player.faults_seen();
  }

  /// What was to be tested has really happened.
  void expect_coverage() const {
    EXPECT_GT(stitched_, 10U);
    EXPECT_GT(alias_hits_, 2U);
    EXPECT_GT(unmapped_, 10U);
    EXPECT_GT(unbacked_, 10U);
    EXPECT_EQ(faults_ > 10, GetParam().faults);
    EXPECT_EQ(device_waits_ > 0, GetParam().external);
    if (GetParam().streams == 1) return;
    EXPECT_GT(waits_, 10U);
    EXPECT_GT(handovers_, 1000U);
  }

 private:
  uint64_t stitched_ = 0;
  uint64_t alias_hits_ = 0;
  uint64_t waits_ = 0;
  uint64_t handovers_ = 0;
  uint64_t unmapped_ = 0;
  uint64_t unbacked_ = 0;
  uint64_t faults_ = 0;
  uint64_t device_waits_ = 0;
};

TEST_P(RandomOperations, KeepEveryInvariant) {
  const QuietStderr quiet;  // an event that could not be recorded at a free is reported there
  const uint64_t first = environment("VRAMKIT_TEST_SEED", 1);
  const uint64_t steps = environment("VRAMKIT_TEST_STEPS", 1500);
  for (uint64_t seed = first; seed < first + environment("VRAMKIT_TEST_SEEDS", 4); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Player player(GetParam(), seed);
    for (uint64_t step = 0; step < steps; ++step) {
      ASSERT_EQ(player.step(), "") << "at step " << step;
    }
    count(player);
    ASSERT_EQ(player.finish(), "");
  }
  expect_coverage();
}

INSTANTIATE_TEST_SUITE_P(
    Games, RandomOperations,
    testing::Values(Game{"null", 64 * kKiB, 64, 1}, Game{"null", 64 * kKiB, 64, 4},
                    Game{"null", 2 * kMiB, 24, 3}, Game{"null", 256 * kKiB, 64, 4, true, true},
                    Game{"null", 64 * kKiB, 48, 2, false, false, 40},
                    Game{"memfd", 64 * kKiB, 64, 4, false}, Game{"memfd", 128 * kKiB, 64, 2, true},
                    Game{"host", 64 * kKiB, 64, 1}, Game{"host", 512 * kKiB, 48, 1, true},
                    Game{"host", 64 * kKiB, 64, 4, true},
                    Game{"host", 64 * kKiB, 64, 2, false, false, 24},
                    Game{"null", 64 * kKiB, 64, 4, false, false, 1 << 20, true},
                    Game{"null", 256 * kKiB, 64, 4, true, true, 1 << 20, true},
                    Game{"null", 64 * kKiB, 48, 3, false, true, 40, true},
                    Game{"memfd", 64 * kKiB, 64, 4, true, true, 1 << 20, true}));

}  // namespace
}  // namespace vramkit
