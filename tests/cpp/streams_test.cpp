#include "pool/streams.h"

#include <gtest/gtest.h>

#include "support.h"

namespace vramkit {
namespace {

class StreamsTest : public testing::Test {
 protected:
  StreamsTest() { device_.reserve({64 * kKiB, 16, 16}); }

  StreamIndex stream(size_t index) { return streams_.index_of(DeviceModel::handle(index)); }
  size_t open_events() const { return device_.open_events(); }
  void finish(size_t index) {
    device_.streams().work(index);
    while (device_.streams().advance(index)) {
    }
  }

  std::string violations_;
  DeviceModel device_{make_backend("null"), violations_};
  Streams streams_{device_};
};

TEST_F(StreamsTest, NumbersStreamsByTheirFirstUse) {
  EXPECT_EQ(streams_.index_of(77), 0U);
  EXPECT_EQ(streams_.index_of(0), 1U);
  EXPECT_EQ(streams_.index_of(77), 0U);
  EXPECT_EQ(streams_.handle_of(0), 77U);
  EXPECT_EQ(streams_.count(), 2U);
}

TEST_F(StreamsTest, AStreamNeverWaitsForItself) {
  const Tag tag = streams_.tag_freed(stream(0), 0);
  EXPECT_TRUE(streams_.ready(stream(0), tag));
  streams_.wait_for(stream(0), tag);
  EXPECT_EQ(streams_.waits(), 0U);
}

TEST_F(StreamsTest, NobodyWaitsForNobodysMemory) {
  EXPECT_TRUE(streams_.ready(stream(1), Tag{}));
  EXPECT_EQ(streams_.handle_of(kAnyStream), 0U);
}

TEST_F(StreamsTest, RecordsOnlyWhenAnotherStreamWantsTheMemory) {
  const Tag tag = streams_.tag_freed(stream(0), 0);
  EXPECT_EQ(open_events(), 0U);
  EXPECT_FALSE(streams_.ready(stream(1), tag));
  streams_.wait_for(stream(1), tag);
  EXPECT_EQ(open_events(), 1U);
  EXPECT_TRUE(streams_.ready(stream(1), tag));
  EXPECT_FALSE(streams_.ready(stream(2), tag));
}

TEST_F(StreamsTest, OneWaitCoversAllEarlierFrees) {
  const Tag first = streams_.tag_freed(stream(0), 0);
  const Tag second = streams_.tag_freed(stream(0), 0);
  streams_.wait_for(stream(1), first);
  streams_.wait_for(stream(1), second);
  EXPECT_EQ(streams_.waits(), 1U);
  EXPECT_FALSE(streams_.ready(stream(1), streams_.tag_freed(stream(0), 0)));
}

TEST_F(StreamsTest, SeveralTakersShareAnEvent) {
  const Tag tag = streams_.tag_freed(stream(0), 0);
  streams_.wait_for(stream(1), tag);
  streams_.wait_for(stream(2), tag);
  EXPECT_EQ(open_events(), 1U);
  EXPECT_EQ(streams_.waits(), 2U);
}

TEST_F(StreamsTest, ADoneEventFreesForEverybody) {
  device_.streams().work(0);
  const Tag tag = streams_.tag_freed(stream(0), 0);
  streams_.wait_for(stream(1), tag);
  EXPECT_FALSE(streams_.poll());
  EXPECT_FALSE(streams_.ready(stream(2), tag));
  finish(0);
  EXPECT_TRUE(streams_.poll());
  EXPECT_TRUE(streams_.ready(stream(2), tag));
  EXPECT_EQ(open_events(), 0U);
}

TEST_F(StreamsTest, EventsCompleteInOrder) {
  device_.streams().work(0);
  const Tag early = streams_.tag_freed(stream(0), 0);
  streams_.wait_for(stream(1), early);
  device_.streams().work(0);
  const Tag late = streams_.tag_freed(stream(0), 0);
  streams_.wait_for(stream(1), late);
  device_.streams().advance(0);
  EXPECT_TRUE(streams_.poll());
  EXPECT_TRUE(streams_.ready(stream(2), early));
  EXPECT_FALSE(streams_.ready(stream(2), late));
}

TEST_F(StreamsTest, RecordedUsesHoldTheMemoryBack) {
  const uint32_t uses = streams_.add_use(0, stream(1));
  EXPECT_EQ(streams_.add_use(uses, stream(1)), uses);
  device_.streams().work(1);
  const Tag tag = streams_.tag_freed(stream(0), uses);
  EXPECT_EQ(open_events(), 1U) << "the use is recorded at the free, once";
  EXPECT_FALSE(streams_.ready(stream(0), tag));
  EXPECT_FALSE(streams_.uses_done(tag));
  finish(1);
  streams_.poll();
  EXPECT_TRUE(streams_.uses_done(tag));
  EXPECT_TRUE(streams_.ready(stream(0), tag));
  EXPECT_FALSE(streams_.ready(stream(2), tag)) << "the owner's own work is not known to be done";
}

TEST_F(StreamsTest, ATakerWaitsForOwnerAndUsers) {
  uint32_t uses = streams_.add_use(0, stream(1));
  uses = streams_.add_use(uses, stream(2));
  const Tag tag = streams_.tag_freed(stream(0), uses);
  streams_.wait_for(stream(3), tag);
  EXPECT_EQ(streams_.waits(), 3U);
  EXPECT_TRUE(streams_.ready(stream(3), tag));
}

TEST_F(StreamsTest, ASetOfUsesLivesAsLongAsItsHolders) {
  const uint32_t uses = streams_.add_use(0, stream(1));
  const Tag tag = streams_.tag_freed(stream(0), uses);
  streams_.hold_uses(uses);
  streams_.drop_uses(uses);
  EXPECT_FALSE(streams_.ready(stream(0), tag));
  streams_.drop_uses(uses);
  EXPECT_EQ(streams_.add_use(0, stream(2)), uses) << "the number is used again, and empty";
  EXPECT_TRUE(streams_.ready(stream(2), {stream(2), uses, 0}));
}

TEST_F(StreamsTest, LongLivedStreamsCanAlwaysBeWaitedFor) {
  const Tag tag = streams_.tag_freed(stream(0), 0);
  EXPECT_TRUE(streams_.obtainable(stream(0), tag, false)) << "its own";
  EXPECT_FALSE(streams_.obtainable(stream(1), tag, false));
  EXPECT_TRUE(streams_.obtainable(stream(1), tag, true));
  streams_.declare_external(DeviceModel::handle(2));
  EXPECT_TRUE(streams_.obtainable(stream(1), tag, true));
  streams_.note_alive(stream(0));
  EXPECT_EQ(open_events(), 1U) << "of the declaration";
}

TEST_F(StreamsTest, WhatAShortLivedStreamFreesIsItsOwnUntilItIsNamedAgain) {
  streams_.declare_external(DeviceModel::handle(0));
  device_.streams().work(0);
  streams_.poll();
  const Tag tag = streams_.tag_freed(stream(0), 0);
  EXPECT_EQ(open_events(), 0U);
  EXPECT_TRUE(streams_.lack_events());
  EXPECT_TRUE(streams_.obtainable(stream(0), tag, true));
  EXPECT_FALSE(streams_.obtainable(stream(1), tag, true));
  streams_.note_alive(stream(0));
  streams_.note_alive(stream(0));
  EXPECT_EQ(open_events(), 1U) << "one event covers all";
  EXPECT_FALSE(streams_.lack_events());
  device_.destroy_stream(0);
  EXPECT_TRUE(streams_.obtainable(stream(1), tag, true));
  streams_.wait_for(stream(1), tag);
  streams_.wait_for(stream(2), streams_.tag_given_back(stream(0)));
  EXPECT_EQ(violations_, "");
}

TEST_F(StreamsTest, NothingIsRecordedOnAStreamThatMayBeGone) {
  streams_.declare_external(DeviceModel::handle(0));
  device_.streams().work(0);
  device_.destroy_stream(0);
  const Tag tag = streams_.tag_freed(stream(0), 0);
  streams_.poll();
  EXPECT_FALSE(streams_.obtainable(stream(1), tag, true));
  EXPECT_EQ(device_.device_waits(), 0U);
  streams_.drain();
  EXPECT_EQ(device_.device_waits(), 1U);
  EXPECT_TRUE(streams_.ready(stream(1), tag));
  EXPECT_FALSE(streams_.lack_events());
  EXPECT_EQ(open_events(), 0U);
  EXPECT_EQ(violations_, "");
}

TEST_F(StreamsTest, UsesOfShortLivedStreamsAreRecordedAtTheFree) {
  streams_.declare_external(DeviceModel::handle(1));
  device_.streams().work(1);
  const Tag tag = streams_.tag_freed(stream(0), streams_.add_use(0, stream(1)));
  device_.destroy_stream(1);
  EXPECT_TRUE(streams_.obtainable(stream(0), tag, true));
  streams_.wait_for(stream(0), tag);
  finish(1);
  streams_.poll();
  EXPECT_TRUE(streams_.uses_done(tag));
  EXPECT_EQ(violations_, "");
}

TEST_F(StreamsTest, AUseThatACaptureLeftUnrecordedIsNotRecordedUninvited) {
  streams_.declare_external(DeviceModel::handle(1));
  device_.set_capturing(true);
  const Tag tag = streams_.tag_freed(stream(0), streams_.add_use(0, stream(1)));
  streams_.note_alive(stream(1));
  device_.set_capturing(false);
  device_.destroy_stream(1);
  streams_.poll();
  EXPECT_FALSE(streams_.uses_done(tag));
  EXPECT_FALSE(streams_.obtainable(stream(0), tag, true)) << "not even by its owner";
  device_.make_stream(1);
  streams_.note_alive(stream(1));
  EXPECT_TRUE(streams_.obtainable(stream(0), tag, true));
  EXPECT_EQ(violations_, "");
}

TEST_F(StreamsTest, AUserThatComesAfterTheOwnerIsAllThereIsToWaitFor) {
  streams_.declare_external(DeviceModel::handle(0));
  device_.destroy_stream(0);
  const Tag tag = streams_.tag_used(streams_.add_use(0, stream(1)));
  EXPECT_FALSE(streams_.lack_events());
  streams_.poll();
  EXPECT_TRUE(streams_.uses_done(tag));
  EXPECT_TRUE(streams_.ready(stream(2), tag));
}

TEST_F(StreamsTest, EventsOfShortLivedStreamsDoNotPileUp) {
  streams_.declare_external(DeviceModel::handle(0));
  for (int i = 0; i < 1000; ++i) {
    streams_.tag_freed(stream(0), 0);
    streams_.note_alive(stream(0));
    finish(0);
  }
  EXPECT_LE(open_events(), 2U);
}

TEST_F(StreamsTest, ACaptureDefersWhatAFreeOwes) {
  device_.set_capturing(true);
  const Tag tag = streams_.tag_freed(stream(0), streams_.add_use(0, stream(1)));
  EXPECT_EQ(open_events(), 0U);
  EXPECT_FALSE(streams_.poll());
  expect_error(Status::kBusy, "graph is being captured", [&] { streams_.drain(); });
  device_.set_capturing(false);
  EXPECT_TRUE(streams_.poll());
  EXPECT_TRUE(streams_.uses_done(tag)) << "stream 1 had no work";
  EXPECT_EQ(violations_, "");
}

TEST_F(StreamsTest, DrainLearnsAllThatWasFreed) {
  device_.streams().work(0);
  device_.streams().work(1);
  const Tag first = streams_.tag_freed(stream(0), 0);
  const Tag second = streams_.tag_freed(stream(1), 0);
  streams_.drain();
  EXPECT_TRUE(streams_.ready(stream(2), first));
  EXPECT_TRUE(streams_.ready(stream(2), second));
  EXPECT_EQ(open_events(), 0U);
  EXPECT_EQ(device_.device_waits(), 0U) << "events tell it";
}

TEST_F(StreamsTest, EventsAreGivenBackAtTheEnd) {
  {
    Streams streams(device_);
    const Tag tag = streams.tag_freed(streams.index_of(0), 0);
    streams.wait_for(streams.index_of(DeviceModel::handle(1)), tag);
    EXPECT_EQ(open_events(), 1U);
  }
  EXPECT_EQ(open_events(), 0U);
}

TEST_F(StreamsTest, RefusesMoreStreamsThanItCanTellApart) {
  for (uint64_t handle = 0; handle < kAnyStream; ++handle) streams_.index_of(handle);
  expect_error(Status::kInvalidArgument, "more than 65535 streams",
               [&] { streams_.index_of(kAnyStream); });
}

}  // namespace
}  // namespace vramkit
