#include "base/host_memory.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <new>
#include <set>
#include <vector>

#include "bind/c/vramkit.h"
#include "failing_new.h"
#include "pool/explain.h"
#include "pool/registry.h"
#include "pool/replay.h"
#include "support.h"

namespace vramkit::failing_new {

thread_local Countdown countdown;

namespace {

void* allocate(size_t bytes) {
  if (countdown.armed) {
    const bool goes_on = countdown.struck && countdown.shortage == Shortage::kLasting;
    if (goes_on || (!countdown.struck && --countdown.left == 0)) {
      countdown.struck = true;
      throw std::bad_alloc();
    }
  }
  void* const got = std::malloc(bytes > 0 ? bytes : 1);
  if (got == nullptr) throw std::bad_alloc();
  return got;
}

}  // namespace

uint64_t fail_each(Shortage shortage, const std::function<void(Trial&)>& trial) {
  for (uint64_t nth = 1;; ++nth) {
    SCOPED_TRACE(testing::Message() << "allocation " << nth);
    Trial one(nth, shortage);
    trial(one);
    if (!Trial::struck() || testing::Test::HasFailure()) return nth - 1;
  }
}

}  // namespace vramkit::failing_new

void* operator new(size_t bytes) { return vramkit::failing_new::allocate(bytes); }
void* operator new[](size_t bytes) { return vramkit::failing_new::allocate(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes > 0 ? bytes : 1);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes > 0 ? bytes : 1);
}
void operator delete(void* address) noexcept { std::free(address); }
void operator delete[](void* address) noexcept { std::free(address); }
void operator delete(void* address, size_t) noexcept { std::free(address); }
void operator delete[](void* address, size_t) noexcept { std::free(address); }

namespace vramkit {
namespace {

using failing_new::fail_each;
using failing_new::Shortage;
using failing_new::Trial;

constexpr uint64_t kPage = 64 * kKiB;

TEST(ReserveMore, GrowsAsPushBackDoes) {
  std::vector<int> items;
  size_t moves = 0;
  for (int i = 0; i < 1000; ++i) {
    const size_t before = items.capacity();
    reserve_more(items, 1);
    moves += items.capacity() != before;
    items.push_back(i);
  }
  EXPECT_LT(moves, 15U);
}

TEST(NodePool, ReservedNodesServeWithoutMemory) {
  using Key = std::pair<uint64_t, uint64_t>;
  NodePool nodes(NodeAllocator<Key>::kNodeBytes);
  std::set<Key, std::less<Key>, NodeAllocator<Key>> keys{NodeAllocator<Key>(nodes)};
  nodes.reserve(100);
  Trial none(1, Shortage::kOnce);
  none.run(
      [&] {
        for (uint64_t turn = 0; turn < 10; ++turn) {
          for (uint64_t i = 0; i < 100; ++i) keys.emplace(i * 7 % 100, turn);
          keys.clear();
        }
        return true;
      },
      [] {});
  EXPECT_FALSE(Trial::struck());
}

TEST(NodePool, RefusesNodesThatAreLarger) {
  NodePool nodes(8);
  std::set<int, std::less<int>, NodeAllocator<int>> items{NodeAllocator<int>(nodes)};
  EXPECT_THROW(items.insert(1), std::bad_alloc);
}

// ---- every allocation of every operation fails once; see failing_new.h

/// The operations of an engine, on all kinds of blocks and several streams.
class EngineTrial {
 public:
  EngineTrial(Trial& trial, const std::string& backend) : trial_(trial), backend_(backend) {}

  void run() {
    step([&] {
      engine_ = std::make_unique<Engine>(config_of(backend_, 64 * kPage));
      return true;
    });
    small_blocks();
    large_blocks();
    stitched_blocks();
    step([&] { return engine_->trim() > 0; });
    capacity();
    EXPECT_EQ(engine_->counters().live_blocks, 0U);
    drain();
    EXPECT_EQ(engine_->free_page_bytes(), 60 * kPage);
  }

 private:
  template <typename Step>
  void step(Step body) {
    trial_.run(body, [this] {
      if (engine_) engine_->check_valid();
    });
  }
  uint64_t allocate(uint64_t bytes, uint64_t stream = 0, uint32_t stack_id = 0) {
    uint64_t address = 0;
    step([&] {
      address = engine_->allocate(bytes, stream, stack_id);
      return address != 0;
    });
    return address;
  }
  void free(uint64_t address) {
    step([&] { return engine_->release(address) > 0; });
  }
  void drain() {
    step([&] {
      engine_->drain();
      return true;
    });
  }
  void record(uint64_t address, uint64_t stream) {
    step([&] {
      engine_->record_stream(address, stream);
      return true;
    });
  }

  void small_blocks() {
    std::vector<uint64_t> blocks;
    for (uint64_t i = 0; i < 40; ++i) {
      blocks.push_back(allocate(1 + i * 100, i % 3 * 16, static_cast<uint32_t>(i)));
    }
    for (size_t i = 0; i < blocks.size(); i += 4) record(blocks[i], 48);
    step([&] { return engine_->snapshot().size() >= blocks.size(); });
    step([&] {
      engine_->declare_external(32);
      return true;
    });
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 5 == 0) {
        step([&] { return engine_->release_on(blocks[i], 64) > 0; });
      } else {
        free(blocks[i]);
      }
    }
    step([&] {
      engine_->complete_events(~uint64_t{0});
      return true;
    });
    free(allocate(700, 16));
  }

  void large_blocks() {
    std::vector<uint64_t> blocks;
    for (uint64_t i = 0; i < 12; ++i) blocks.push_back(allocate(20000 + i * 3000, i % 4 * 16));
    for (size_t i = 0; i < 12; i += 3) record(blocks[i], 80);
    for (size_t i = 0; i < 12; i += 2) free(blocks[i]);
    step([&] {
      engine_->complete_events(1);
      return true;
    });
    for (size_t i = 0; i < 12; i += 2) blocks[i] = allocate(25000, 16);
    for (const uint64_t block : blocks) free(block);
    step([&] { return describe_shortage(*engine_, kPage).capacity > 0; });
  }

  void stitched_blocks() {
    drain();
    const uint64_t rest = allocate(48 * kPage);
    std::vector<uint64_t> blocks;
    for (uint64_t i = 0; i < 16; ++i) blocks.push_back(allocate(kPage, i % 2 * 16));
    for (size_t i = 0; i < 16; i += 2) free(blocks[i]);
    for (const uint64_t pages : {4U, 3U, 6U, 4U}) {
      const uint64_t block = allocate(pages * kPage, 0);
      record(block, 16);
      free(block);
    }
    for (size_t i = 1; i < 16; i += 2) free(blocks[i]);
    free(rest);
    EXPECT_GT(engine_->counters().stitched_requests, 0U);
  }

  void capacity() {
    for (const uint64_t pages : {72U, 8U, 68U, 60U}) {
      step([&] {
        engine_->resize(pages * kPage);
        return true;
      });
    }
    free(allocate(3 * kPage, 32));
  }

  Trial& trial_;
  const std::string backend_;
  std::unique_ptr<Engine> engine_;
};

class OutOfHostMemory : public testing::TestWithParam<const char*> {};

TEST_P(OutOfHostMemory, LeavesTheEngineValid) {
  const QuietStderr quiet;
  for (const Shortage shortage : {Shortage::kOnce, Shortage::kLasting}) {
    EXPECT_GT(fail_each(shortage, [](Trial& trial) { EngineTrial(trial, GetParam()).run(); }),
              100U);
  }
}

/// The operations of the C interface, which must never let an exception out.
class InterfaceTrial {
 public:
  InterfaceTrial(Trial& trial, const std::string& backend) : trial_(trial), backend_(backend) {}

  void run() {
    vramkit_pool_config config{};
    config.backend = backend_.c_str();
    config.label = "cpu";
    config.capacity_bytes = 64 * kPage;
    config.page_bytes = kPage;
    config.debug_checks = 1;
    ok([&] { return vramkit_pool_create(&config, &pool_); });
    uint64_t token = 0;
    ok([&] { return vramkit_scope_open(pool_, -1, &token); });
    use_routes();
    ok([&] { return vramkit_scope_close(token); });
    look();
    replay();
    ok([&] { return vramkit_pool_resize(pool_, 80 * kPage); });
    ok([&] { return vramkit_pool_trim(pool_, nullptr); });
    ok([&] { return vramkit_pool_check(pool_); });
    ok([&] { return vramkit_pool_close(pool_); });
  }

 private:
  template <typename Call>
  void ok(Call call) {
    expect(VRAMKIT_OK, call);
  }
  template <typename Call>
  void expect(vramkit_status wanted, Call call) {
    trial_.run(
        [&] {
          const vramkit_status status = call();
          if (status != wanted && !Trial::struck()) ADD_FAILURE() << vramkit_last_error();
          EXPECT_TRUE(status != VRAMKIT_SYSTEM || *vramkit_last_error() != '\0');
          return status == wanted;
        },
        [&] {
          EXPECT_TRUE(pool_ == nullptr || vramkit_pool_check(pool_) != VRAMKIT_SYSTEM)
              << vramkit_last_error();
        });
  }

  void use_routes() {
    std::vector<void*> blocks(8);
    vramkit_pool* overflowed = nullptr;
    for (size_t i = 0; i < 8; ++i) {
      ok([&] { return vramkit_route_alloc(-1, 700 * (i * i + 1), i, 0, &blocks[i], &overflowed); });
      ok([&] { return vramkit_record_stream(pool_, blocks[i], 40); });
    }
    void* none = nullptr;
    expect(VRAMKIT_OUT_OF_MEMORY,
           [&] { return vramkit_route_alloc(-1, 128 * kPage, 0, 0, &none, &overflowed); });
    ok([&] { return vramkit_declare_external_stream(pool_, 3); });
    for (void* block : blocks) ok([&] { return vramkit_route_free(block, nullptr); });
  }

  void look() {
    uint64_t count = 0;
    vramkit_stats stats{};
    vramkit_totals totals{};
    vramkit_size_class rows[VRAMKIT_SIZE_CLASSES];
    ok([&] { return vramkit_snapshot(pool_, nullptr, 0, &count); });
    ok([&] { return vramkit_pool_stats(pool_, &stats); });
    ok([&] { return vramkit_pool_size_classes(pool_, rows); });
    ok([&] { return vramkit_device_totals(-1, &totals); });
    ok([&] { return vramkit_explain(pool_, kPage, nullptr, 0, &count); });
    expect(VRAMKIT_FOREIGN_POINTER, [&] { return vramkit_free(pool_, &count, nullptr); });
  }

  void replay() {
    vramkit_replay* replay = nullptr;
    ok([&] { return vramkit_replay_create(pool_, 2, &replay); });
    const uint8_t op[] = {0, 0, 1, 1};
    const int64_t id[] = {0, 1, 0, 1};
    const int64_t size[] = {600, 90000, 0, 0};
    const int32_t stream[] = {0, 1, 0, 1};
    uint64_t from = 0;
    ok([&] {
      uint64_t done = 0;
      const vramkit_status status = vramkit_replay_run(replay, op + from, id + from, size + from,
                                                       stream + from, 4 - from, &done);
      from += done;
      return status;
    });
    vramkit_replay_destroy(replay);
  }

  Trial& trial_;
  const std::string backend_;
  vramkit_pool* pool_ = nullptr;
};

TEST_P(OutOfHostMemory, ComesOutOfTheInterfaceAsAStatus) {
  const QuietStderr quiet;
  for (const Shortage shortage : {Shortage::kOnce, Shortage::kLasting}) {
    EXPECT_GT(fail_each(shortage, [](Trial& trial) { InterfaceTrial(trial, GetParam()).run(); }),
              50U);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, OutOfHostMemory,
                         testing::Values("null+late_events", "host+late_events",
                                         "memfd+late_events"));

TEST(OutOfHostMemoryText, IsThereWithoutMemoryForIt) {
  vramkit_pool* pool = nullptr;
  Trial trial(1, Shortage::kLasting);
  trial.run(
      [&] {
        EXPECT_EQ(vramkit_pool_create(nullptr, &pool), VRAMKIT_SYSTEM);
        return true;
      },
      [] {});
  EXPECT_STREQ(vramkit_last_error(),
               "this call failed, and the machine has no memory left for the reason");
  EXPECT_EQ(vramkit_pool_create(nullptr, &pool), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_STREQ(vramkit_last_error(), "a pool needs a config with a backend");
}

}  // namespace
}  // namespace vramkit
