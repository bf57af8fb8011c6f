// The C interface, called as a C program calls it.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bind/c/vramkit.h"

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class CoreC : public testing::Test {
 protected:
  ~CoreC() override {
    for (vramkit_pool* pool : pools_) vramkit_pool_release(pool);
  }

  vramkit_pool* make(const char* backend, uint64_t capacity, bool overflow = false) {
    vramkit_pool_config config{};
    config.backend = backend;
    config.label = "cpu";
    config.capacity_bytes = capacity;
    config.page_bytes = kMiB / 16;
    config.overflow_native = overflow;
    config.debug_checks = 1;
    vramkit_pool* pool = nullptr;
    EXPECT_EQ(vramkit_pool_create(&config, &pool), VRAMKIT_OK) << vramkit_last_error();
    pools_.push_back(pool);
    return pool;
  }
  void* allocate(vramkit_pool* pool, uint64_t size) {
    void* address = nullptr;
    EXPECT_EQ(vramkit_alloc(pool, size, 0, 0, &address), VRAMKIT_OK) << vramkit_last_error();
    return address;
  }
  vramkit_stats stats(vramkit_pool* pool) {
    vramkit_stats stats{};
    EXPECT_EQ(vramkit_pool_stats(pool, &stats), VRAMKIT_OK);
    return stats;
  }
  static bool told(const char* words) {
    return std::string(vramkit_last_error()).find(words) != std::string::npos;
  }

 private:
  std::vector<vramkit_pool*> pools_;
};

TEST_F(CoreC, RefusesAPoolThatCannotBe) {
  vramkit_pool* pool = nullptr;
  EXPECT_EQ(vramkit_pool_create(nullptr, &pool), VRAMKIT_INVALID_ARGUMENT);
  vramkit_pool_config config{};
  EXPECT_EQ(vramkit_pool_create(&config, &pool), VRAMKIT_INVALID_ARGUMENT);
  config.backend = "null";
  EXPECT_EQ(vramkit_pool_create(&config, &pool), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_TRUE(told("null: a capacity of 0 B is less than one page of 2.0 MiB"));
  EXPECT_EQ(pool, nullptr);
}

TEST_F(CoreC, CountsWhatItDoes) {
  vramkit_pool* pool = make("host", kMiB);
  void* address = allocate(pool, 100000);
  vramkit_stats now = stats(pool);
  EXPECT_EQ(now.capacity_bytes, kMiB);
  EXPECT_EQ(now.live_bytes, 100000U);
  EXPECT_EQ(now.allocated_bytes, 100352U);
  EXPECT_EQ(now.free_bytes, kMiB - 100352);
  EXPECT_EQ(now.largest_free_bytes, kMiB - 100352);
  EXPECT_EQ(now.largest_stitch_bytes, kMiB - 2 * kMiB / 16);
  EXPECT_EQ(now.mapped_bytes, 2 * kMiB / 16);
  EXPECT_GT(now.metadata_bytes, 0U);
  uint64_t size = 0;
  EXPECT_EQ(vramkit_free(pool, address, &size), VRAMKIT_OK);
  EXPECT_EQ(size, 100000U);
  EXPECT_EQ(vramkit_pool_reset_peaks(pool), VRAMKIT_OK);
  now = stats(pool);
  EXPECT_EQ(now.peak_live_bytes, 0U);
  EXPECT_EQ(now.allocations, 1U);
  EXPECT_EQ(now.frees, 1U);
  vramkit_size_class rows[VRAMKIT_SIZE_CLASSES];
  EXPECT_EQ(vramkit_pool_size_classes(pool, rows), VRAMKIT_OK);
  EXPECT_EQ(rows[0].upper_bytes, 512U);
  EXPECT_EQ(rows[8].upper_bytes, 131072U);
  EXPECT_EQ(rows[8].frees, 1U);
}

TEST_F(CoreC, TellsWhyMemoryRanOut) {
  vramkit_pool* pool = make("null", kMiB);
  void* address = &pool;
  EXPECT_EQ(vramkit_alloc(pool, 2 * kMiB, 0, 0, &address), VRAMKIT_OUT_OF_MEMORY);
  EXPECT_EQ(address, nullptr);
  EXPECT_TRUE(told("vramkit pool on cpu is out of memory. Wanted 2.0 MiB"));
  EXPECT_EQ(stats(pool).failures, 1U);
  char text[20];
  uint64_t length = 0;
  EXPECT_EQ(vramkit_explain(pool, 2 * kMiB, text, sizeof(text), &length), VRAMKIT_OK);
  EXPECT_GT(length, sizeof(text));
  EXPECT_STREQ(text, "vramkit pool on cpu");
  EXPECT_EQ(vramkit_explain(pool, 2 * kMiB, nullptr, 0, &length), VRAMKIT_OK);
}

TEST_F(CoreC, NamesWrongUse) {
  vramkit_pool* pool = make("host", kMiB);
  void* address = allocate(pool, 100);
  EXPECT_EQ(vramkit_free(pool, &pool, nullptr), VRAMKIT_FOREIGN_POINTER);
  EXPECT_EQ(vramkit_free(pool, nullptr, nullptr), VRAMKIT_FOREIGN_POINTER);
  EXPECT_EQ(vramkit_free(pool, static_cast<char*>(address) + 64, nullptr), VRAMKIT_DOUBLE_FREE);
  EXPECT_TRUE(told("lies inside the live block of 512 B that starts at"));
  EXPECT_EQ(vramkit_pool_close(pool), VRAMKIT_BUSY);
  EXPECT_EQ(vramkit_free(pool, address, nullptr), VRAMKIT_OK);
  EXPECT_EQ(vramkit_free(pool, address, nullptr), VRAMKIT_DOUBLE_FREE);
  vramkit_block block{};
  EXPECT_EQ(vramkit_find_block(pool, address, &block), VRAMKIT_FOREIGN_POINTER);
  EXPECT_EQ(vramkit_alloc(pool, 0, 0, 0, &address), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_EQ(vramkit_scope_close(~uint64_t{0}), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_EQ(vramkit_fault(pool, "map_primary", 1), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_EQ(vramkit_complete_events(pool, 1), VRAMKIT_INVALID_ARGUMENT);
}

TEST_F(CoreC, FreesOnAStreamThatComesAfterTheBlock) {
  vramkit_pool* pool = make("null+late_events", kMiB);
  void* address = nullptr;
  uint64_t size = 0;
  EXPECT_EQ(vramkit_free_on(pool, &pool, 6, nullptr), VRAMKIT_FOREIGN_POINTER);
  EXPECT_EQ(vramkit_declare_external_stream(pool, 6), VRAMKIT_OK);
  EXPECT_EQ(vramkit_alloc(pool, kMiB, 5, 0, &address), VRAMKIT_OK);
  EXPECT_EQ(vramkit_free_on(pool, address, 6, &size), VRAMKIT_OK);
  EXPECT_EQ(size, kMiB);
  EXPECT_EQ(vramkit_alloc(pool, kMiB, 6, 0, &address), VRAMKIT_OK);
  EXPECT_EQ(stats(pool).cross_stream_waits, 0U);
  EXPECT_EQ(vramkit_free_on(pool, address, 6, nullptr), VRAMKIT_OK);
  EXPECT_EQ(vramkit_alloc(pool, kMiB, 5, 0, &address), VRAMKIT_OK);
  EXPECT_EQ(stats(pool).cross_stream_waits, 1U);
  EXPECT_EQ(vramkit_free(pool, address, nullptr), VRAMKIT_OK);
}

TEST_F(CoreC, ErrorTextsBelongToTheirThread) {
  vramkit_pool* pool = make("null", kMiB);
  EXPECT_EQ(vramkit_free(pool, &pool, nullptr), VRAMKIT_FOREIGN_POINTER);
  std::thread([] { EXPECT_STREQ(vramkit_last_error(), ""); }).join();
  EXPECT_TRUE(told("was not allocated by this pool"));
}

TEST_F(CoreC, ListsItsBlocks) {
  vramkit_pool* pool = make("null+late_events", kMiB);
  void* large = nullptr;
  EXPECT_EQ(vramkit_alloc(pool, 200000, 5, 9, &large), VRAMKIT_OK);
  EXPECT_EQ(vramkit_record_stream(pool, large, 6), VRAMKIT_OK);
  uint64_t count = 0;
  EXPECT_EQ(vramkit_snapshot(pool, nullptr, 0, &count), VRAMKIT_OK);
  std::vector<vramkit_block> blocks(count);
  EXPECT_EQ(vramkit_snapshot(pool, blocks.data(), count, &count), VRAMKIT_OK);
  EXPECT_EQ(blocks[0].state, VRAMKIT_BLOCK_LIVE);
  EXPECT_EQ(blocks[0].kind, VRAMKIT_BLOCK_LARGE);
  EXPECT_EQ(blocks[0].stream, 5U);
  EXPECT_EQ(blocks[0].stack_id, 9U);
  EXPECT_EQ(blocks[1].state, VRAMKIT_BLOCK_FREE);
  EXPECT_EQ(vramkit_free(pool, large, nullptr), VRAMKIT_OK);
  EXPECT_EQ(vramkit_snapshot(pool, blocks.data(), 1, &count), VRAMKIT_OK);
  EXPECT_EQ(blocks[0].state, VRAMKIT_BLOCK_PENDING);
  EXPECT_EQ(stats(pool).pending_bytes, 200192U);
  EXPECT_EQ(vramkit_complete_events(pool, 1), VRAMKIT_OK);
  EXPECT_EQ(vramkit_alloc(pool, kMiB, 5, 0, &large), VRAMKIT_OK);
  EXPECT_EQ(stats(pool).pending_bytes, 0U);
  EXPECT_EQ(vramkit_free(pool, large, nullptr), VRAMKIT_OK);
}

uint32_t stack_of_three() { return 3; }
const char* text_of_three(uint32_t) { return "    loop.py:3"; }

TEST_F(CoreC, RoutesToTheOpenScope) {
  vramkit_pool* pool = make("host", kMiB);
  vramkit_pool* overflowed = pool;
  void* address = nullptr;
  EXPECT_EQ(vramkit_route_alloc(-1, 100, 0, 0, &address, &overflowed), VRAMKIT_NOT_ROUTED);
  EXPECT_EQ(overflowed, nullptr);
  uint64_t token = 0;
  EXPECT_EQ(vramkit_scope_open(pool, -2, &token), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_EQ(vramkit_scope_open(pool, 64, &token), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_EQ(vramkit_scope_open(pool, -1, &token), VRAMKIT_OK);
  EXPECT_EQ(vramkit_active_pool(-1), pool);
  EXPECT_EQ(vramkit_active_pool(-2), nullptr);
  EXPECT_EQ(vramkit_active_pool(64), nullptr);
  EXPECT_EQ(vramkit_pool_set_stack_hooks(pool, stack_of_three, text_of_three), VRAMKIT_OK);
  EXPECT_EQ(vramkit_route_alloc(-1, 100, 0, 0, &address, &overflowed), VRAMKIT_OK);
  EXPECT_EQ(vramkit_owner(address), pool);
  vramkit_block block{};
  EXPECT_EQ(vramkit_find_block(pool, static_cast<char*>(address) + 99, &block), VRAMKIT_OK);
  EXPECT_EQ(block.stack_id, 3U);
  void* more = nullptr;
  EXPECT_EQ(vramkit_route_alloc(-1, kMiB, 0, 0, &more, &overflowed), VRAMKIT_OUT_OF_MEMORY);
  EXPECT_TRUE(told("loop.py:3"));
  EXPECT_EQ(vramkit_scope_close(token), VRAMKIT_OK);
  uint64_t size = 0;
  EXPECT_EQ(vramkit_route_free(address, &size), VRAMKIT_OK);
  EXPECT_EQ(size, 100U);
  EXPECT_EQ(vramkit_route_free(&size, &size), VRAMKIT_NOT_ROUTED);
}

TEST_F(CoreC, AnOverflowGoesToTheNativeAllocator) {
  vramkit_pool* pool = make("host", kMiB, true);
  uint64_t token = 0;
  EXPECT_EQ(vramkit_scope_open(pool, 7, &token), VRAMKIT_OK);
  for (int i = 0; i < 2; ++i) {
    void* address = nullptr;
    vramkit_pool* overflowed = nullptr;
    EXPECT_EQ(vramkit_route_alloc(7, 2 * kMiB, 0, 0, &address, &overflowed), VRAMKIT_NOT_ROUTED);
    EXPECT_EQ(overflowed, i == 0 ? pool : nullptr);
  }
  EXPECT_EQ(stats(pool).overflow_allocations, 2U);
  EXPECT_EQ(stats(pool).overflow_bytes, 4 * kMiB);
  EXPECT_EQ(vramkit_scope_close(token), VRAMKIT_OK);
}

TEST_F(CoreC, AClosedPoolRoutesNothing) {
  vramkit_pool* pool = make("host", kMiB);
  uint64_t token = 0;
  EXPECT_EQ(vramkit_scope_open(pool, -1, &token), VRAMKIT_OK);
  EXPECT_EQ(vramkit_pool_close(pool), VRAMKIT_OK);
  void* address = nullptr;
  vramkit_pool* overflowed = nullptr;
  EXPECT_EQ(vramkit_route_alloc(-1, 100, 0, 0, &address, &overflowed), VRAMKIT_NOT_ROUTED);
  EXPECT_EQ(vramkit_alloc(pool, 100, 0, 0, &address), VRAMKIT_CLOSED);
  EXPECT_TRUE(told("closed"));
  EXPECT_EQ(vramkit_scope_close(token), VRAMKIT_OK);
  EXPECT_EQ(vramkit_scope_open(pool, -1, &token), VRAMKIT_CLOSED);
}

TEST_F(CoreC, GrowsShrinksAndTrims) {
  vramkit_pool* pool = make("memfd+faults", kMiB);
  EXPECT_EQ(vramkit_free(pool, allocate(pool, kMiB), nullptr), VRAMKIT_OK);
  uint64_t released = 0;
  EXPECT_EQ(vramkit_fault(pool, "unmap_alias", 1), VRAMKIT_OK);
  EXPECT_EQ(vramkit_pool_trim(pool, &released), VRAMKIT_OK);
  EXPECT_EQ(released, kMiB);
  EXPECT_EQ(vramkit_pool_resize(pool, 2 * kMiB), VRAMKIT_OK);
  EXPECT_EQ(vramkit_pool_check(pool), VRAMKIT_OK);
  EXPECT_EQ(vramkit_pool_resize(pool, 0), VRAMKIT_INVALID_ARGUMENT);
}

TEST_F(CoreC, TellsHowFarAReplayCame) {
  vramkit_pool* pool = make("null", kMiB);
  vramkit_replay* replay = nullptr;
  ASSERT_EQ(vramkit_replay_create(pool, 2, &replay), VRAMKIT_OK);
  const uint8_t op[] = {0, 0, 1, 0};
  const int64_t id[] = {0, 1, 0, 0};
  const int64_t size[] = {600000, 300000, 0, 800000};
  const int32_t stream[] = {0, 1, 0, 0};
  uint64_t done = 0;
  EXPECT_EQ(vramkit_replay_run(replay, op, id, size, stream, 4, &done), VRAMKIT_OUT_OF_MEMORY);
  EXPECT_EQ(done, 3U);
  EXPECT_EQ(stats(pool).live_bytes, 300000U);
  const uint8_t free_op = 1;
  EXPECT_EQ(vramkit_replay_run(replay, &free_op, &id[1], size, stream, 1, &done), VRAMKIT_OK);
  vramkit_replay_destroy(replay);
  const vramkit_core_api* api = vramkit_core();
  EXPECT_EQ(api->abi_version, VRAMKIT_ABI_VERSION);
  EXPECT_EQ(api->struct_bytes, sizeof(vramkit_core_api));
  EXPECT_EQ(api->active_pool(-1), nullptr);
  EXPECT_EQ(api->declare_external_stream, vramkit_declare_external_stream);
}

void expect_refused(const std::vector<vramkit_status>& answers) {
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i], VRAMKIT_INVALID_ARGUMENT) << "call " << i;
  }
}

TEST_F(CoreC, RefusesNullPools) {
  void* address = nullptr;
  uint64_t number = 0;
  char text[8];
  vramkit_block block{};
  vramkit_stats stats{};
  vramkit_replay* replay = nullptr;
  expect_refused({
      vramkit_pool_close(nullptr),
      vramkit_pool_release(nullptr),
      vramkit_pool_resize(nullptr, kMiB),
      vramkit_pool_trim(nullptr, &number),
      vramkit_pool_check(nullptr),
      vramkit_alloc(nullptr, 1, 0, 0, &address),
      vramkit_free(nullptr, &number, &number),
      vramkit_free_on(nullptr, &number, 0, &number),
      vramkit_record_stream(nullptr, &number, 0),
      vramkit_declare_external_stream(nullptr, 0),
      vramkit_find_block(nullptr, &number, &block),
      vramkit_snapshot(nullptr, &block, 1, &number),
      vramkit_pool_stats(nullptr, &stats),
      vramkit_pool_reset_peaks(nullptr),
      vramkit_pool_size_classes(nullptr, nullptr),
      vramkit_explain(nullptr, 1, text, 8, &number),
      vramkit_pool_set_stack_hooks(nullptr, nullptr, nullptr),
      vramkit_replay_create(nullptr, 1, &replay),
      vramkit_replay_run(nullptr, nullptr, nullptr, nullptr, nullptr, 0, &number),
      vramkit_fault(nullptr, "map_primary", 1),
      vramkit_complete_events(nullptr, 1),
  });
  EXPECT_TRUE(told("the argument pool is a null pointer"));
}

TEST_F(CoreC, RefusesNullPointers) {
  vramkit_pool* pool = make("null", kMiB);
  vramkit_pool_config config{};
  config.backend = "null";
  vramkit_replay* replay = nullptr;
  ASSERT_EQ(vramkit_replay_create(pool, 1, &replay), VRAMKIT_OK);
  void* address = nullptr;
  uint64_t number = 0;
  char text[8];
  vramkit_block block{};
  expect_refused({
      vramkit_pool_create(&config, nullptr),
      vramkit_alloc(pool, 1, 0, 0, nullptr),
      vramkit_find_block(pool, &number, nullptr),
      vramkit_snapshot(pool, nullptr, 1, &number),
      vramkit_snapshot(pool, &block, 1, nullptr),
      vramkit_pool_stats(pool, nullptr),
      vramkit_pool_size_classes(pool, nullptr),
      vramkit_explain(pool, 1, nullptr, 8, &number),
      vramkit_explain(pool, 1, text, 8, nullptr),
      vramkit_scope_open(pool, -1, nullptr),
      vramkit_route_alloc(-1, 1, 0, 0, nullptr, &pool),
      vramkit_route_alloc(-1, 1, 0, 0, &address, nullptr),
      vramkit_device_pools(0, nullptr, 1, &number),
      vramkit_device_pools(0, nullptr, 0, nullptr),
      vramkit_device_totals(0, nullptr),
      vramkit_replay_create(pool, 1, nullptr),
      vramkit_replay_run(replay, nullptr, nullptr, nullptr, nullptr, 0, nullptr),
      vramkit_replay_run(replay, nullptr, nullptr, nullptr, nullptr, 1, &number),
      vramkit_fault(pool, nullptr, 1),
  });
  EXPECT_EQ(vramkit_fault(pool, nullptr, 1), VRAMKIT_INVALID_ARGUMENT);
  EXPECT_TRUE(told("the argument call is a null pointer"));
  EXPECT_EQ(vramkit_free(pool, nullptr, nullptr), VRAMKIT_FOREIGN_POINTER);
  EXPECT_EQ(vramkit_route_free(nullptr, nullptr), VRAMKIT_NOT_ROUTED);
  EXPECT_EQ(vramkit_owner(nullptr), nullptr);
  EXPECT_EQ(vramkit_device_pools(0, nullptr, 0, &number), VRAMKIT_OK);
  EXPECT_EQ(vramkit_replay_run(replay, nullptr, nullptr, nullptr, nullptr, 0, &number), VRAMKIT_OK);
  vramkit_replay_destroy(nullptr);
  vramkit_replay_destroy(replay);
}

TEST_F(CoreC, NoDeviceNumberIsTooLarge) {
  vramkit_pool* overflowed = nullptr;
  void* address = nullptr;
  for (const int32_t device : {-2, 64, 65, 1 << 30, -(1 << 30)}) {
    EXPECT_EQ(vramkit_route_alloc(device, 100, 0, 0, &address, &overflowed), VRAMKIT_NOT_ROUTED);
    uint64_t count = 9;
    EXPECT_EQ(vramkit_device_pools(device, nullptr, 0, &count), VRAMKIT_OK);
    EXPECT_EQ(count, 0U);
    vramkit_totals totals{};
    EXPECT_EQ(vramkit_device_totals(device, &totals), VRAMKIT_OK);
    EXPECT_EQ(vramkit_capture_begin(device, 5), VRAMKIT_INVALID_ARGUMENT);
    EXPECT_EQ(vramkit_capture_end(device, 5), VRAMKIT_INVALID_ARGUMENT);
    EXPECT_TRUE(told("is not between 0 and 63"));
  }
}

TEST_F(CoreC, AReplaySaysWhyItEnds) {
  vramkit_pool* pool = make("null", kMiB);
  vramkit_replay* replay = nullptr;
  ASSERT_EQ(vramkit_replay_create(pool, 1, &replay), VRAMKIT_OK);
  const uint8_t op[] = {0, 1, 2};
  const int64_t id = 0;
  const int64_t size = 2 << 20;
  const int32_t stream = 0;
  uint64_t done = 9;
  EXPECT_EQ(vramkit_replay_run(replay, &op[2], &id, &size, &stream, 1, &done),
            VRAMKIT_INVALID_ARGUMENT);
  EXPECT_TRUE(told("block 0: the operation 2 is unknown; 0 allocates and 1 frees"));
  EXPECT_EQ(done, 0U);
  EXPECT_EQ(vramkit_replay_run(replay, op, &id, &size, &stream, 1, &done), VRAMKIT_OUT_OF_MEMORY);
  EXPECT_TRUE(told("is out of memory. Wanted 2.0 MiB"));
  EXPECT_EQ(vramkit_pool_close(pool), VRAMKIT_OK);
  EXPECT_EQ(vramkit_replay_run(replay, op, &id, &size, &stream, 1, &done), VRAMKIT_CLOSED);
  EXPECT_TRUE(told("the pool is closed; make a new one"));
  vramkit_replay_destroy(replay);
}

const char* no_text(uint32_t) { return nullptr; }

TEST_F(CoreC, AStackWithoutATextIsLeftOut) {
  vramkit_pool* pool = make("host", kMiB);
  EXPECT_EQ(vramkit_pool_set_stack_hooks(pool, stack_of_three, no_text), VRAMKIT_OK);
  void* address = nullptr;
  ASSERT_EQ(vramkit_alloc(pool, 100, 0, 3, &address), VRAMKIT_OK);
  void* more = nullptr;
  EXPECT_EQ(vramkit_alloc(pool, 2 * kMiB, 0, 0, &more), VRAMKIT_OUT_OF_MEMORY);
  EXPECT_TRUE(told("The largest live block:"));
  EXPECT_EQ(vramkit_free(pool, address, nullptr), VRAMKIT_OK);
}

}  // namespace
