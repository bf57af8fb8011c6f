// Random operations against a plain model, with every invariant checked after each.
#include <gtest/gtest.h>

#include <cstdlib>

#include "player.h"

namespace vramkit {
namespace {

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

class RandomOperations : public testing::TestWithParam<Game> {};

TEST_P(RandomOperations, KeepEveryInvariant) {
  const uint64_t first = environment("VRAMKIT_TEST_SEED", 1);
  const uint64_t steps = environment("VRAMKIT_TEST_STEPS", 1500);
  for (uint64_t seed = first; seed < first + environment("VRAMKIT_TEST_SEEDS", 1); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Player player(GetParam(), seed);
    for (uint64_t step = 0; step < steps; ++step) {
      ASSERT_EQ(player.step(), "") << "at step " << step;
    }
    std::printf(
        "stitched %lu hits %lu waits %lu handover %lu unmapped %lu unbacked %lu faults %lu\n",
        player.engine().counters().stitched_requests, player.engine().counters().alias_hits,
        player.engine().cross_stream_waits(), player.device().handovers(),
        player.device().unmapped_pages(), player.device().unbacked_pages(), player.faults_seen());
    ASSERT_EQ(player.finish(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Games, RandomOperations,
    testing::Values(Game{"null", 64 * kKiB, 64, 1}, Game{"null", 64 * kKiB, 64, 4},
                    Game{"null", 2 * kMiB, 24, 3},
                    Game{"null", 256 * kKiB, 64, 4, true, true},
                    Game{"null", 64 * kKiB, 48, 2, false, false, 40},
                    Game{"memfd", 64 * kKiB, 64, 4, false}, Game{"memfd", 128 * kKiB, 64, 2, true},
                    Game{"host", 64 * kKiB, 64, 1}, Game{"host", 512 * kKiB, 48, 1, true},
                    Game{"host", 64 * kKiB, 64, 4, true},
                    Game{"host", 64 * kKiB, 64, 2, false, false, 24}));

}  // namespace
}  // namespace vramkit
