#include "base/slots.h"

#include <gtest/gtest.h>

#include "support.h"

namespace vramkit {
namespace {

TEST(Slots, NeverGivesOutZero) {
  Slots<int> slots(2);
  EXPECT_EQ(slots.take(), 1U);
  EXPECT_EQ(slots.take(), 2U);
}

TEST(Slots, UsesFreedNumbersAgain) {
  Slots<int> slots(2);
  const uint32_t first = slots.take();
  slots[first] = 7;
  slots.give_back(first);
  EXPECT_EQ(slots.live_count(), 0U);
  EXPECT_EQ(slots.take(), first);
  EXPECT_EQ(slots.live_count(), 1U);
}

TEST(Slots, SaysHowManyThereAreWhenFull) {
  Slots<int> slots(1);
  slots.take();
  expect_error(Status::kSystem, "metadata is full: 1 records", [&] { slots.take(); });
}

}  // namespace
}  // namespace vramkit
