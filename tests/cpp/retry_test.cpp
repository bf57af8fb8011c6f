#include "bind/c/retry.h"

#include <chrono>
#include <thread>

#include "pool/registry.h"
#include "support.h"

namespace vramkit {
namespace {

Pool* pool = nullptr;
uint64_t kept = 0;
int collections = 0;
bool may_run = true;

bool collect() {
  ++collections;
  if (may_run && kept != 0) pool->release_block(std::exchange(kept, 0));
  return may_run;
}

class Retry : public testing::Test {
 protected:
  Retry() {
    set_garbage_collector(collect);
    pool = Registry::instance().create({config_of("host", kMiB), false, true});
    EXPECT_EQ(pool->allocate(900 * kKiB, 0, 0, &kept), Status::kOk);
    collections = 0;
    may_run = true;
  }
  ~Retry() override {
    set_garbage_collector(nullptr);
    if (kept != 0) pool->release_block(std::exchange(kept, 0));
    pool->close();
  }

  Status allocate(uint64_t size) {
    collected_ = {};
    return allocate_or_collect(*pool, size, 0, 0, &address_, &collected_);
  }
  uint64_t failures() {
    return pool->inspect([](Engine& engine) { return engine.counters().failures; });
  }

  uint64_t address_ = 0;
  Collected collected_;
};

TEST_F(Retry, WhatACollectionFreesIsServed) {
  EXPECT_EQ(allocate(500 * kKiB), Status::kOk);
  EXPECT_EQ(collections, 1);
  EXPECT_EQ(collected_.blocks, 1U);
  EXPECT_EQ(collected_.bytes, 900 * kKiB);
  EXPECT_EQ(failures(), 0U);
  pool->release_block(address_);
}

TEST_F(Retry, WhatFitsCollectsNothing) {
  EXPECT_EQ(allocate(64 * kKiB), Status::kOk);
  EXPECT_EQ(collections, 0);
  pool->release_block(address_);
}

TEST_F(Retry, ACollectionThatMayNotRunChangesNothing) {
  may_run = false;
  EXPECT_EQ(allocate(500 * kKiB), Status::kOutOfMemory);
  EXPECT_FALSE(collected_.ran);
  EXPECT_EQ(failures(), 1U);
  EXPECT_EQ(explain_after(*pool, 500 * kKiB, collected_).find("garbage"), std::string::npos);
}

TEST_F(Retry, ARequestAboveTheCapacityCollectsNothing) {
  EXPECT_EQ(allocate(2 * kMiB), Status::kOutOfMemory);
  EXPECT_EQ(collections, 0);
}

TEST_F(Retry, AnEmptyPoolCollectsNothing) {
  pool->release_block(std::exchange(kept, 0));
  EXPECT_EQ(allocate(2 * kMiB), Status::kOutOfMemory);
  EXPECT_EQ(collections, 0);
}

bool collect_slowly() {
  ++collections;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return true;
}

TEST_F(Retry, ACollectionInVainPostponesTheNext) {
  set_garbage_collector(collect_slowly);
  EXPECT_EQ(allocate(500 * kKiB), Status::kOutOfMemory);
  EXPECT_TRUE(collected_.ran);
  EXPECT_EQ(explain_after(*pool, 500 * kKiB, collected_).find("garbage"), std::string::npos);
  EXPECT_EQ(allocate(500 * kKiB), Status::kOutOfMemory);
  EXPECT_EQ(collections, 1);
  EXPECT_FALSE(collected_.ran);
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_EQ(allocate(500 * kKiB), Status::kOutOfMemory);
  EXPECT_EQ(collections, 2);
  EXPECT_EQ(failures(), 3U);
}

TEST_F(Retry, TheTextTellsWhatWasNotEnough) {
  Collected some;
  some.ran = true;
  some.bytes = 3 * kMiB;
  some.blocks = 2;
  const std::string text = explain_after(*pool, kMiB, some);
  EXPECT_NE(text.find("A garbage collection before this freed 3"), std::string::npos) << text;
  EXPECT_NE(text.find("in 2 tensors; it was not enough."), std::string::npos) << text;
}

}  // namespace
}  // namespace vramkit
