#include "pool/pages.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "support.h"

namespace vramkit {
namespace {

class PagesTest : public testing::TestWithParam<const char*> {
 protected:
  PagesTest() {
    faults_.reserve(kLayout);
    pages_.emplace(faults_, kLayout);
    pages_->extend(8);
  }
  ~PagesTest() override {
    pages_.reset();
    EXPECT_EQ(violations_, "");
  }

  static constexpr Layout kLayout{64 * kKiB, 16, 16};
  std::string violations_;
  FaultBackend faults_{std::make_unique<DeviceModel>(make_backend(GetParam()), violations_)};
  std::optional<Pages> pages_;
};

TEST_P(PagesTest, HaveNoMemoryUntilNeeded) {
  EXPECT_EQ(pages_->backed_count(), 0U);
  pages_->need_primary({2, 3});
  EXPECT_EQ(pages_->backed_count(), 3U);
  EXPECT_TRUE(pages_->backed(2));
  EXPECT_FALSE(pages_->backed(5));
  EXPECT_EQ(pages_->mapping_calls(), 1U);
}

TEST_P(PagesTest, AreBackedOnce) {
  pages_->need_primary({2, 3});
  pages_->need_primary({0, 8});
  EXPECT_EQ(pages_->backed_count(), 8U);
  EXPECT_EQ(pages_->mapping_calls(), 3U) << "the two extents beside the first";
  pages_->need_primary({0, 8});
  EXPECT_EQ(pages_->mapping_calls(), 3U);
}

TEST_P(PagesTest, ContinueAfterAFailure) {
  pages_->need_primary({2, 1});
  faults_.inject_fault("map_primary", 2);
  expect_error(Status::kSystem, "injected failure of map_primary", [&] {
    pages_->need_primary({0, 8});
  });
  EXPECT_EQ(pages_->backed_count(), 3U);
  pages_->need_primary({0, 8});
  EXPECT_EQ(pages_->backed_count(), 8U);
}

TEST_P(PagesTest, StandAtAnAlias) {
  pages_->need_alias(4, {1, 2});
  if (faults_.aliasing()) pages_->map_alias(4, {1, 2});
  EXPECT_TRUE(pages_->at_alias(1, 4));
  EXPECT_TRUE(pages_->at_alias(2, 5));
  EXPECT_EQ(pages_->at_primary(1), faults_.aliasing());
  pages_->unmap_alias(4, {1, 2});
  EXPECT_TRUE(pages_->at_primary(1));
}

TEST_P(PagesTest, GiveTheirMemoryBack) {
  pages_->need_primary({0, 4});
  EXPECT_EQ(pages_->drop({2, 6}), 2U);
  EXPECT_EQ(pages_->backed_count(), 2U);
  EXPECT_EQ(pages_->peak_backed_count(), 4U);
  pages_->reset_peak();
  EXPECT_EQ(pages_->peak_backed_count(), 2U);
}

TEST_P(PagesTest, AreMappedAheadByWhoeverHasThem) {
  pages_->need_primary({5, 1});
  const std::shared_ptr<BackgroundMapping> mapping = pages_->begin_background_mapping({1, 3});
  EXPECT_FALSE(pages_->backed(2)) << "not yet";
  pages_->need_primary({4, 4});  // others need not wait
  EXPECT_EQ(pages_->backed_count(), 4U);
  mapping->map();
  EXPECT_EQ(pages_->backed_count(), 4U) << "nobody has taken note";
  const uint64_t calls = pages_->mapping_calls();
  pages_->need_primary({0, 4});
  EXPECT_EQ(pages_->backed_count(), 8U);
  EXPECT_EQ(pages_->mapping_calls(), calls + 2) << "what was mapped in the background, and page 0";
  pages_->finish_background_mapping();
  EXPECT_EQ(pages_->mapping_calls(), calls + 2);
}

TEST_P(PagesTest, AreWaitedForWhileTheyAreMappedAhead) {
  std::shared_ptr<BackgroundMapping> mapping = pages_->begin_background_mapping({1, 3});
  std::atomic<bool> may_map = false;
  std::thread other([&] {
    may_map.wait(false);
    mapping->map();
  });
  std::thread starter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(pages_->backed(2)) << "the main thread waits";
    may_map = true;
    may_map.notify_all();
  });
  EXPECT_EQ(pages_->drop({3, 1}), 1U);
  EXPECT_TRUE(may_map) << "or it did not wait";
  EXPECT_TRUE(pages_->backed(2));
  starter.join();
  other.join();
}

TEST_P(PagesTest, ThatCannotBeMappedAheadAreMappedWhenNeeded) {
  faults_.inject_fault("map_primary", 1);
  const std::shared_ptr<BackgroundMapping> mapping = pages_->begin_background_mapping({0, 4});
  mapping->map();
  ASSERT_TRUE(mapping->failure());
  EXPECT_STREQ(mapping->failure()->what(), "injected failure of map_primary");
  pages_->need_primary({2, 4});
  EXPECT_EQ(pages_->backed_count(), 4U);
  EXPECT_FALSE(pages_->backed(1));
}

INSTANTIATE_TEST_SUITE_P(Backends, PagesTest, testing::Values("null", "memfd", "host"));

TEST(MovingPages, GoFromOneAliasToAnother) {
  std::string violations;
  DeviceModel device(make_backend("host"), violations);
  const Layout layout{64 * kKiB, 16, 16};
  device.reserve(layout);
  {
    Pages pages(device, layout);
    pages.extend(8);
    pages.need_alias(0, {0, 4});
    pages.need_alias(4, {2, 2});
    EXPECT_TRUE(pages.at_alias(1, 1));
    EXPECT_TRUE(pages.at_alias(2, 4));
    pages.unmap_alias(0, {0, 4});
    EXPECT_TRUE(pages.at_primary(0));
    EXPECT_FALSE(pages.at_primary(2)) << "another alias has it";
    pages.need_primary({0, 8});
    EXPECT_TRUE(pages.at_primary(2));
  }
  EXPECT_EQ(violations, "");
}

}  // namespace
}  // namespace vramkit
