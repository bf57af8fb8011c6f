#include "pool/pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "pool/registry.h"
#include "support.h"

namespace vramkit {
namespace {

Pool& make_pool(const std::string& backend, uint64_t capacity, uint64_t page = 64 * kKiB,
                bool checks = true) {
  return *Registry::instance().create({config_of(backend, capacity, page), false, checks});
}

uint64_t allocate(Pool& pool, uint64_t size, uint64_t stream = 0) {
  uint64_t address = 0;
  EXPECT_EQ(pool.allocate(size, stream, 0, &address), Status::kOk);
  return address;
}

TEST(Pool, ServesUntilItIsFull) {
  Pool& pool = make_pool("null", kMiB);
  const uint64_t address = allocate(pool, kMiB);
  uint64_t none = 1;
  EXPECT_EQ(pool.allocate(1, 0, 0, &none), Status::kOutOfMemory);
  EXPECT_EQ(none, 0U);
  EXPECT_EQ(pool.release_block(address), kMiB);
  pool.close();
}

TEST(Pool, TellsWhenTheBackendHasNoMemoryLeft) {
  Pool& pool = make_pool("null+limit=262144", kMiB);
  uint64_t none = 1;
  EXPECT_EQ(pool.allocate(800 * kKiB, 0, 0, &none), Status::kOutOfMemory);
  EXPECT_EQ(none, 0U);
  EXPECT_EQ(pool.inspect([](Engine& engine) { return engine.counters().failures; }), 1U);
  EXPECT_NE(pool.explain(800 * kKiB).find("the device has no memory for"), std::string::npos);
  EXPECT_EQ(pool.allocate(2 * kMiB, 0, 0, &none), Status::kOutOfMemory);
  EXPECT_EQ(pool.explain(2 * kMiB).find("the device has no memory"), std::string::npos);
  pool.close();
}
TEST(Pool, DoesNotCloseWhileBlocksAreLive) {
  Pool& pool = make_pool("null", kMiB);
  const uint64_t first = allocate(pool, 100);
  const uint64_t second = allocate(pool, 500 * kKiB);
  expect_error(Status::kBusy, "the pool still holds 2 live blocks of 500.1 KiB in total",
               [&] { pool.close(); });
  pool.release_block(first);
  pool.release_block(second);
  pool.close();
  pool.close();
}

TEST(Pool, RefusesAllUseAfterItsClose) {
  Pool& pool = make_pool("null", kMiB);
  const uint64_t address = allocate(pool, 100);
  pool.release_block(address);
  pool.close();
  uint64_t none = 0;
  EXPECT_EQ(pool.allocate(1, 0, 0, &none), Status::kClosed);
  EXPECT_FALSE(pool.find(address));
  const std::string text = "the pool is closed; make a new one";
  expect_error(Status::kClosed, text, [&] { pool.release_block(address); });
  expect_error(Status::kClosed, text, [&] { pool.release_block_on(address, 0); });
  expect_error(Status::kClosed, text, [&] { pool.record_stream(address, 0); });
  expect_error(Status::kClosed, text, [&] { pool.declare_external(0); });
  expect_error(Status::kClosed, text, [&] { pool.resize(kMiB); });
  expect_error(Status::kClosed, text, [&] { pool.trim(); });
  expect_error(Status::kClosed, text, [&] { pool.check_valid(); });
  expect_error(Status::kClosed, text, [&] { pool.explain(1); });
  pool.orphan();
}

TEST(Pool, AReleasedPoolClosesWithItsLastBlock) {
  Pool& pool = make_pool("host", kMiB);
  const uint64_t address = allocate(pool, 100);
  pool.orphan();
  EXPECT_EQ(Registry::instance().owner(address), &pool);
  std::thread([&] { EXPECT_EQ(pool.release_block(address), 100U); }).join();
  EXPECT_EQ(Registry::instance().owner(address), nullptr);
  expect_error(Status::kClosed, "closed", [&] { pool.check_valid(); });
}

TEST(Pool, AFreeSucceedsThoughThePoolCannotBeClosed) {
  Pool& pool = make_pool("null+faults", kMiB);
  const uint64_t address = allocate(pool, 100);
  pool.orphan();
  pool.inspect([](Engine& engine) { engine.inject_fault("record_event", 1); });
  testing::internal::CaptureStderr();
  EXPECT_EQ(pool.release_block(address), 100U);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("stays open"), std::string::npos);
  pool.orphan();
  expect_error(Status::kClosed, "closed", [&] { pool.check_valid(); });
}

TEST(Pool, AReleasedPoolWithoutBlocksClosesAtOnce) {
  Pool& pool = make_pool("null", kMiB);
  pool.orphan();
  expect_error(Status::kClosed, "closed", [&] { pool.check_valid(); });
}

TEST(Pool, AnOverflowIsToldOnce) {
  Pool& pool = make_pool("null", kMiB);
  EXPECT_TRUE(pool.count_overflow(10));
  EXPECT_FALSE(pool.count_overflow(5));
  EXPECT_EQ(pool.inspect([](Engine& engine) { return engine.counters().overflow_bytes; }), 15U);
  pool.close();
}

TEST(Pool, StackIdsAreKeptWithTheBlocks) {
  Pool& pool = make_pool("null", 4 * kMiB);
  for (const uint64_t size : {uint64_t{1000}, 2 * kMiB}) {
    uint64_t address = 0;
    ASSERT_EQ(pool.allocate(size, 0, 42, &address), Status::kOk);
    EXPECT_EQ(pool.find(address + 999)->stack_id, 42U);
    pool.release_block(address);
    const uint64_t again = allocate(pool, size);
    EXPECT_EQ(pool.find(again)->stack_id, 0U);
    pool.release_block(again);
  }
  pool.close();
}

TEST(Pool, ClosesWhileOthersAllocate) {
  for (int round = 0; round < 20; ++round) {
    Pool& pool = make_pool("host", 4 * kMiB, 64 * kKiB, false);
    std::vector<std::thread> threads;
    for (uint64_t stream = 0; stream < 3; ++stream) {
      threads.emplace_back([&pool, stream] {
        uint64_t address = 0;
        while (pool.allocate(5000 * (stream + 1), stream, 0, &address) == Status::kOk) {
          pool.release_block(address);
        }
      });
    }
    for (bool open = true; open;) {
      try {
        pool.close();
        open = false;
      } catch (const Error& error) {
        EXPECT_EQ(error.status(), Status::kBusy);
        std::this_thread::yield();
      }
    }
    for (std::thread& thread : threads) thread.join();
  }
}

// ---- stress: a pattern in every block, whoever frees it; VRAMKIT_TEST_STRESS=20 is longer,
// VRAMKIT_STRESS_SEED repeats a run's sizes and choices (not how its threads interleave)

struct Held {
  uint64_t address;
  uint64_t size;
  uint64_t pattern;
};

TEST(StressSeed, IsTheGivenOneAndElseAFreshOne) {
  const char* const set = std::getenv("VRAMKIT_STRESS_SEED");
  const std::string given = set != nullptr ? set : "";
  ::setenv("VRAMKIT_STRESS_SEED", "17", 1);
  EXPECT_EQ(stress_seed(), 17U);
  EXPECT_EQ(replay_with(17), "replay with VRAMKIT_STRESS_SEED=17");
  ::unsetenv("VRAMKIT_STRESS_SEED");
  std::set<uint64_t> seeds;
  for (int i = 0; i < 8; ++i) seeds.insert(stress_seed());
  EXPECT_GT(seeds.size(), 1U);
  if (set != nullptr) ::setenv("VRAMKIT_STRESS_SEED", given.c_str(), 1);
}

class Stress : public testing::TestWithParam<const char*> {
 protected:
  static uint64_t rounds() {
    const char* text = std::getenv("VRAMKIT_TEST_STRESS");
    return 10000 * (text != nullptr ? std::strtoull(text, nullptr, 10) : 1);
  }

  void write(const Held& held) const {
    for (uint64_t at = 0; at + 8 <= held.size; at += kAlignment) {
      const uint64_t value = held.pattern + at;
      std::memcpy(reinterpret_cast<void*>(held.address + at), &value, 8);
    }
  }
  bool intact(const Held& held) const {
    for (uint64_t at = 0; at + 8 <= held.size; at += kAlignment) {
      uint64_t value = 0;
      std::memcpy(&value, reinterpret_cast<const void*>(held.address + at), 8);
      if (value != held.pattern + at) return false;
    }
    return true;
  }

  /// Allocates on its own stream, and frees what any thread has allocated.
  void work(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (uint64_t round = 0; round < rounds(); ++round) {
      const uint64_t size = 1 + random() % (uint64_t{1} << (5 + random() % 16));
      Held held{0, size, random()};
      if (pool_->allocate(size, seed % 4 * 16, 0, &held.address) == Status::kOk) {
        write(held);
        if (random() % 8 == 0) pool_->record_stream(held.address, random() % 4 * 16);
        const std::lock_guard guard(mutex_);
        held_.push_back(held);
      }
      while (free_one(random, 40)) {
      }
    }
  }

  bool free_one(std::mt19937_64& random, size_t most) {
    Held held{};
    {
      const std::lock_guard guard(mutex_);
      if (held_.size() <= most) return false;
      std::swap(held_[random() % held_.size()], held_.back());
      held = held_.back();
      held_.pop_back();
    }
    broken_ += !intact(held);
    broken_ += pool_->release_block(held.address) != held.size;
    return true;
  }

  /// What happens beside: events complete, memory is given back, the capacity changes.
  void disturb(uint64_t seed, const std::atomic<bool>& stop) {
    std::mt19937_64 random(seed);
    while (!stop) {
      try {
        pool_->inspect([&](Engine& engine) { engine.complete_events(random() % 4); });
        if (random() % 8 == 0) pool_->trim();
        if (random() % 8 == 0) pool_->resize((48 + random() % 32) * 64 * kKiB);
        if (random() % 4 == 0) pool_->check_valid();
        pool_->explain(kMiB);
      } catch (const Error& error) {
        broken_ += error.status() != Status::kBusy;
      }
      std::this_thread::yield();
    }
  }

  Pool* pool_ = nullptr;
  std::mutex mutex_;
  std::vector<Held> held_;
  std::atomic<uint64_t> broken_ = 0;
};

TEST_P(Stress, NoBlockLosesWhatWasWritten) {
  pool_ = &make_pool(GetParam(), 4 * kMiB, 64 * kKiB, false);
  const uint64_t seed = stress_seed();
  SCOPED_TRACE(replay_with(seed));
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) threads.emplace_back([this, i, seed] { work(seed + i); });
  std::thread disturber([&] { disturb(seed, stop); });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  disturber.join();
  std::mt19937_64 random(seed);
  while (free_one(random, 0)) {
  }
  EXPECT_EQ(broken_, 0U);
  pool_->check_valid();
  pool_->inspect([](Engine& engine) {
    EXPECT_GT(engine.counters().stitched_requests, 0U);
    EXPECT_GT(engine.cross_stream_waits(), 0U);
    EXPECT_EQ(engine.counters().live_bytes, 0U);
  });
  pool_->close();
}

INSTANTIATE_TEST_SUITE_P(Backends, Stress,
                         testing::Values("host+late_events", "memfd+late_events"));

// ---- memory that is mapped in the background

uint64_t pages_mapped(Pool& pool) {
  return pool.inspect([](Engine& engine) { return engine.pages().backed_count(); });
}

TEST(Background, MapsTheWholeCapacity) {
  Pool& pool = make_pool("memfd+slow_maps", 256 * 64 * kKiB);
  while (pages_mapped(pool) < 256) std::this_thread::yield();
  const uint64_t calls =
      pool.inspect([](Engine& engine) { return engine.pages().mapping_calls(); });
  pool.release_block(allocate(pool, 256 * 64 * kKiB));
  EXPECT_EQ(pool.inspect([](Engine& engine) { return engine.pages().mapping_calls(); }), calls);
  pool.close();
}

TEST(Background, GivesWayToThreadsThatAllocate) {
  constexpr uint64_t kPages = 20000;  // a second and more
  Pool& pool = make_pool("null+slow_maps", kPages * 64 * kKiB, 64 * kKiB, false);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&pool] {
      for (int turn = 0; turn < 100; ++turn) pool.release_block(allocate(pool, 100 * kKiB));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(pages_mapped(pool), kPages);
  pool.close();
}

TEST(Background, MapsWhileOthersUseThePool) {
  constexpr uint64_t kPages = 1500;
  constexpr uint64_t kPage = 64 * kKiB;
  Pool& pool = make_pool("memfd+slow_maps", kPages * kPage, kPage, false);
  std::atomic<bool> over = false;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(i);
      while (!over) {
        const uint64_t bytes = kPage * (1 + random() % 300);
        const uint64_t address = allocate(pool, bytes);
        auto* const ends = reinterpret_cast<volatile char*>(address);
        ends[0] = static_cast<char>(i);
        ends[bytes - 1] = static_cast<char>(i);
        EXPECT_EQ(ends[0], static_cast<char>(i));
        pool.release_block(address);
      }
    });
  }
  while (pages_mapped(pool) < kPages) std::this_thread::yield();
  over = true;
  for (std::thread& thread : threads) thread.join();
  pool.check_valid();
  pool.close();
}

TEST(Background, FailureIsReportedAndHarmsNothing) {
  Pool& pool = make_pool("memfd+limit=1000000+slow_maps", 64 * 64 * kKiB, 64 * kKiB, false);
  while (pool.inspect([](Engine& engine) { return engine.maps_in_background(); })) {
    std::this_thread::yield();
  }
  EXPECT_LE(pages_mapped(pool), 15U);
  const uint64_t address = allocate(pool, 10 * 64 * kKiB);
  EXPECT_NE(address, 0U);
  pool.check_valid();
  pool.release_block(address);
  pool.close();
}

TEST(Background, EndsWithThePool) {
  for (int i = 0; i < 20; ++i) {
    Pool& pool = make_pool("memfd+slow_maps", 1000 * 64 * kKiB, 64 * kKiB, false);
    pool.release_block(allocate(pool, 100 * kKiB));
    pool.close();
  }
}

TEST(Background, EndsBeforeTheProcess) {
  Pool& pool = make_pool("null+slow_maps", 20000 * 64 * kKiB, 64 * kKiB, false);
  Registry::instance().stop_background_mapping();
  const uint64_t mapped = pages_mapped(pool);
  pool.release_block(allocate(pool, 100 * kKiB));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_LE(pages_mapped(pool), mapped + 2);
  pool.close();
}

TEST(Background, GoesOnAroundAResizeAndATrim) {
  Pool& pool = make_pool("memfd+slow_maps", 64 * 64 * kKiB);
  const uint64_t address = allocate(pool, 10 * 64 * kKiB);
  std::memset(reinterpret_cast<void*>(address), 7, 10 * 64 * kKiB);
  pool.trim();
  pool.resize(512 * 64 * kKiB);
  pool.resize(128 * 64 * kKiB);
  const uint64_t other = allocate(pool, 100 * 64 * kKiB);
  std::memset(reinterpret_cast<void*>(other), 8, 100 * 64 * kKiB);
  EXPECT_EQ(*reinterpret_cast<const char*>(address), 7);
  pool.check_valid();
  pool.release_block(address);
  pool.release_block(other);
  pool.close();
}

}  // namespace
}  // namespace vramkit
