#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "support.h"

namespace vramkit {
namespace {

TEST(Error, CarriesStatusAndText) {
  expect_error(Status::kBusy, "3 of 4", [] { throw_error(Status::kBusy, "%d of %s", 3, "4"); });
}

TEST(Error, NamesWhatTheSystemSaid) {
  expect_error(Status::kSystem, "cannot x: No space left on device", [] {
    errno = ENOSPC;
    throw_errno("cannot %s", "x");
  });
}

TEST(Error, FormatsLongTexts) {
  const std::string text(5000, 'a');
  EXPECT_EQ(format("%s.", text.c_str()), text + ".");
}

TEST(Error, ReportsWithoutThrowing) {
  testing::internal::CaptureStderr();
  report("call %d failed", 9);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "vramkit: call 9 failed\n");
}

}  // namespace
}  // namespace vramkit
