#include "pool/replay.h"

#include <gtest/gtest.h>

#include "pool/registry.h"
#include "support.h"

namespace vramkit {
namespace {

using Op = Replay::Op;

class ReplayTest : public testing::Test {
 protected:
  ~ReplayTest() override { pool_.orphan(); }
  Pool& pool_ = *Registry::instance().create({config_of("null", kMiB), false, true});
  Replay replay_{pool_, 3};
};

TEST_F(ReplayTest, AllocatesAndFreesByNumber) {
  EXPECT_EQ(replay_.step(Op::kAllocate, 0, 1000, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kAllocate, 2, 500000, 1), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kFree, 0, 0, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kAllocate, 0, 7, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kFree, 0, 0, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kFree, 2, 0, 1), Status::kOk);
}

TEST_F(ReplayTest, GoesOnAfterRunningOut) {
  EXPECT_EQ(replay_.step(Op::kAllocate, 0, kMiB, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kAllocate, 1, 1, 0), Status::kOutOfMemory);
  EXPECT_EQ(replay_.step(Op::kFree, 0, 0, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kAllocate, 1, 1, 0), Status::kOk);
  EXPECT_EQ(replay_.step(Op::kFree, 1, 0, 0), Status::kOk);
}

TEST_F(ReplayTest, RefusesEventsThatCannotBe) {
  const auto step = [&](Op op, int64_t id, int64_t size) {
    return [=, this] { replay_.step(op, id, size, 0); };
  };
  expect_error(Status::kInvalidArgument, "block 3 is not between 0 and 3", step(Op::kFree, 3, 0));
  expect_error(Status::kInvalidArgument, "block -1", step(Op::kAllocate, -1, 8));
  expect_error(Status::kInvalidArgument, "freed but not live", step(Op::kFree, 0, 0));
  expect_error(Status::kInvalidArgument, "must be positive", step(Op::kAllocate, 0, 0));
  expect_error(Status::kInvalidArgument, "must be positive", step(Op::kAllocate, 0, -5));
  replay_.step(Op::kAllocate, 0, 8, 0);
  expect_error(Status::kInvalidArgument, "while it is live", step(Op::kAllocate, 0, 8));
  replay_.step(Op::kFree, 0, 0, 0);
}

}  // namespace
}  // namespace vramkit
