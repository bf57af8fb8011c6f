#include "pool/aliases.h"

#include <gtest/gtest.h>

#include <optional>

#include "support.h"

namespace vramkit {
namespace {

class AliasesTest : public testing::TestWithParam<const char*> {
 protected:
  explicit AliasesTest(uint64_t max_alias_pages = 12) {
    auto model =
        std::make_unique<DeviceModel>(make_backend(GetParam()), violations_, max_alias_pages);
    faults_ = std::make_unique<FaultBackend>(std::move(model));
    faults_->reserve(kLayout);
    streams_.emplace(*faults_);
    range_.emplace(16 * kPage, *streams_);
    range_->extend(16 * kPage);
    pages_.emplace(*faults_, kLayout);
    pages_->extend(16);
    aliases_.emplace(*faults_, *pages_, *range_, kLayout);
  }
  ~AliasesTest() override {
    aliases_.reset();
    pages_.reset();
    EXPECT_EQ(violations_, "");
  }

  Tag freed() { return streams_->tag_freed(streams_->index_of(0), 0); }
  AliasId find(uint64_t pages) {
    return aliases_->find(pages, [](PageRun) { return true; });
  }
  void release(AliasId id) { aliases_->release(id, freed(), *streams_); }

  static constexpr uint64_t kPage = 64 * kKiB;
  static constexpr Layout kLayout{kPage, 16, 24};
  std::string violations_;
  std::unique_ptr<FaultBackend> faults_;
  std::optional<Streams> streams_;
  std::optional<Range> range_;
  std::optional<Pages> pages_;
  std::optional<Aliases> aliases_;
};

TEST_P(AliasesTest, OccupyTheirPages) {
  const AliasId id = aliases_->create({{2, 1}, {5, 2}});
  aliases_->occupy(id, 3);
  EXPECT_TRUE((*aliases_)[id].live());
  EXPECT_EQ((*range_)[range_->block_at(5 * kPage)].state, BlockState::kAliased);
  EXPECT_EQ(range_->largest_free_extent(), 9 * kPage);
  release(id);
  EXPECT_EQ(range_->largest_free_extent(), 16 * kPage);
}

TEST_P(AliasesTest, StayMappedAndServeAgain) {
  const AliasId id = aliases_->create({{2, 1}, {5, 2}});
  aliases_->occupy(id, 3);
  EXPECT_EQ(find(2), 0U) << "it is live";
  release(id);
  const uint64_t calls = pages_->mapping_calls();
  EXPECT_EQ(find(2), id);
  aliases_->occupy(id, 2);
  EXPECT_EQ(pages_->mapping_calls(), calls);
  EXPECT_EQ((*aliases_)[id].primary_blocks.size(), 2U);
  EXPECT_TRUE((*range_)[range_->block_at(6 * kPage)].is_free()) << "only a prefix is used";
  release(id);
}

TEST_P(AliasesTest, TheTightestFits) {
  const AliasId large = aliases_->create({{0, 5}});
  const AliasId small = aliases_->create({{8, 3}});
  EXPECT_EQ(find(3), small);
  EXPECT_EQ(find(4), large);
  EXPECT_EQ(find(6), 0U);
}

TEST_P(AliasesTest, AreFoundByTheirPages) {
  const AliasId id = aliases_->create({{0, 2}});
  const AliasId next = aliases_->create({{8, 3}});
  EXPECT_EQ(aliases_->at((*aliases_)[id].first + 1), id);
  EXPECT_EQ(aliases_->at((*aliases_)[next].first), next);
  EXPECT_EQ(aliases_->at((*aliases_)[next].first + 3), 0U);
}

TEST_P(AliasesTest, TheLeastRecentlyUsedGivesWay) {
  const AliasId first = aliases_->create({{0, 5}});
  const AliasId second = aliases_->create({{5, 5}});
  aliases_->occupy(second, 5);
  aliases_->occupy(first, 5);
  release(first);
  release(second);
  EXPECT_FALSE(aliases_->has_room(4));
  streams_->drain();
  EXPECT_TRUE(aliases_->make_room(4));
  EXPECT_EQ(find(1), first);
  EXPECT_EQ(aliases_->mapped_pages(), 5U);
}

TEST_P(AliasesTest, NothingGivesWayInVain) {
  const AliasId idle = aliases_->create({{0, 5}});
  const AliasId live = aliases_->create({{5, 5}});
  aliases_->occupy(live, 5);
  EXPECT_FALSE(aliases_->could_make_room(8));
  EXPECT_TRUE(aliases_->could_make_room(7));
  EXPECT_EQ(find(5), idle);
  release(live);
}

TEST_P(AliasesTest, WhatALiveBlockDoesNotUseGivesWayToo) {
  const AliasId id = aliases_->create({{0, 1}, {5, 4}});
  aliases_->occupy(id, 3);
  aliases_->drop_idle();
  EXPECT_EQ(aliases_->mapped_pages(), 3U);
  EXPECT_EQ((*aliases_)[id].pages, 3U);
  release(id);
  streams_->drain();
  aliases_->drop_idle();
  EXPECT_EQ(aliases_->mapped_pages(), 0U);
}

TEST_P(AliasesTest, AFailedMappingLeavesNothingWrong) {
  for (const char* call : {"map_primary", "map_alias"}) {
    faults_->inject_fault(call, 2);
    try {
      const AliasId id = aliases_->create({{2, 1}, {5, 2}});
      aliases_->occupy(id, 3);
      release(id);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("injected"), std::string::npos);
    }
    faults_->inject_fault(call, 0);
    streams_->drain();
    const AliasId again = aliases_->create({{9, 1}, {5, 2}});
    aliases_->occupy(again, 3);
    pages_->need_primary({2, 1});
    release(again);
    streams_->drain();
    aliases_->drop_idle();
  }
}

TEST_P(AliasesTest, AFailedUnmappingIsContinued) {
  const AliasId id = aliases_->create({{2, 1}, {5, 2}, {9, 1}});
  aliases_->occupy(id, 4);
  release(id);
  streams_->drain();
  faults_->inject_fault("unmap_alias", 2);
  expect_error(Status::kSystem, "injected", [&] { aliases_->drop_idle(); });
  EXPECT_EQ(find(4), 0U) << "its last page is gone";
  EXPECT_EQ(find(3), id);
  aliases_->drop_idle();
  EXPECT_EQ(aliases_->mapped_pages(), 0U);
}

class MappedAtOnceTest : public AliasesTest {};

TEST_P(MappedAtOnceTest, WithoutMemoryNoAddressIsUsedUp) {
  const AliasId before = aliases_->create({{0, 1}});
  for (uint64_t page = 4; page < 9; ++page) {
    faults_->inject_fault("map_primary", 1);
    expect_error(Status::kSystem, "injected", [&] { aliases_->create({{0, 1}, {page, 1}}); });
  }
  const AliasId behind = aliases_->create({{2, 1}});
  EXPECT_EQ((*aliases_)[behind].first, (*aliases_)[before].first + 1);
  EXPECT_EQ(aliases_->mapped_pages(), 2U);
}

INSTANTIATE_TEST_SUITE_P(Backends, MappedAtOnceTest, testing::Values("null", "memfd"));

class ManyAliasesTest : public AliasesTest {
 protected:
  ManyAliasesTest() : AliasesTest(16) {}
};

TEST_P(ManyAliasesTest, MoreThanIsNeededGivesWay) {
  for (uint64_t page = 0; page < 16; ++page) aliases_->create({{page, 1}});
  EXPECT_FALSE(aliases_->has_room(1));
  EXPECT_TRUE(aliases_->make_room(1));
  EXPECT_EQ(aliases_->mapped_pages(), 13U) << "an eighth of 16, and what is asked for";
}

INSTANTIATE_TEST_SUITE_P(Backends, ManyAliasesTest, testing::Values("null", "memfd", "host"));

TEST_P(AliasesTest, AddressesEndCleanly) {
  for (int i = 0; i < 40; ++i) {
    const uint64_t pages = 1 + static_cast<uint64_t>(i) % 5;
    if (!aliases_->has_room(pages)) {
      EXPECT_FALSE(faults_->rebindable());
      EXPECT_FALSE(aliases_->could_make_room(pages));
      return;
    }
    aliases_->create({{static_cast<uint64_t>(i) % 10, pages}});
    aliases_->drop_idle();
  }
  EXPECT_TRUE(faults_->rebindable()) << "elsewhere no address is bound again";
}

INSTANTIATE_TEST_SUITE_P(Backends, AliasesTest, testing::Values("null", "memfd", "host"));

}  // namespace
}  // namespace vramkit
