#include "pool/registry.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

Pool* make_pool(const std::string& backend = "host", uint64_t capacity = 4 * kMiB) {
  return Registry::instance().create({config_of(backend, capacity), false, false});
}

TEST(Registry, KnowsWhoseAnAddressIs) {
  Pool* first = make_pool();
  Pool* second = make_pool();
  uint64_t address = 0;
  ASSERT_EQ(second->allocate(100, 0, 0, &address), Status::kOk);
  EXPECT_EQ(Registry::instance().owner(address), second);
  EXPECT_EQ(Registry::instance().owner(address + 99), second);
  EXPECT_EQ(Registry::instance().owner(reinterpret_cast<uint64_t>(&address)), nullptr);
  EXPECT_EQ(Registry::instance().owner(0), nullptr);
  second->release_block(address);
  second->close();
  EXPECT_EQ(Registry::instance().owner(address), nullptr);
  first->close();
}

TEST(Registry, TheLatestScopeStillOpenWins) {
  Registry& registry = Registry::instance();
  Pool* a = make_pool("null");
  Pool* b = make_pool("null");
  EXPECT_EQ(registry.active(-1), nullptr);
  const uint64_t outer = registry.open_scope(a, -1);
  const uint64_t inner = registry.open_scope(b, -1);
  EXPECT_EQ(registry.active(-1), b);
  EXPECT_EQ(registry.active(0), nullptr);
  registry.close_scope(outer);
  EXPECT_EQ(registry.active(-1), b);
  const uint64_t again = registry.open_scope(a, -1);
  EXPECT_EQ(registry.active(-1), a);
  registry.close_scope(again);
  EXPECT_EQ(registry.active(-1), b);
  registry.close_scope(inner);
  EXPECT_EQ(registry.active(-1), nullptr);
  expect_error(Status::kInvalidArgument, "no scope with token",
               [&] { registry.close_scope(inner); });
  a->close();
  b->close();
}

TEST(Registry, AnOwnerEndsTheScopeOfItsOwnTaskFirst) {
  Registry& registry = Registry::instance();
  Pool* a = make_pool("null");
  Pool* b = make_pool("null");
  const uint64_t first = registry.open_scope(a, -1, 1);
  const uint64_t other = registry.open_scope(b, -1, 2);
  const uint64_t second = registry.open_scope(a, -1, 1);
  EXPECT_EQ(registry.open_scopes_of(1), 2U);
  std::vector<uint64_t> mine = {first, other};
  EXPECT_EQ(registry.close_latest(1, mine), first);
  registry.keep_open(mine);
  EXPECT_EQ(mine, std::vector<uint64_t>{other});
  EXPECT_EQ(registry.active(-1), a);
  EXPECT_EQ(registry.close_latest(1, mine), second);
  EXPECT_EQ(registry.close_latest(1, mine), 0U);
  EXPECT_EQ(registry.active(-1), b);
  EXPECT_EQ(registry.close_latest(2, {}), other);
  EXPECT_EQ(registry.active(-1), nullptr);
  a->close();
  b->close();
}

TEST(Registry, TheLatestOfATask) {
  Registry& registry = Registry::instance();
  const uint64_t first = registry.open_scope(nullptr, -1, 1);
  const uint64_t second = registry.open_scope(nullptr, -1, 1);
  const uint64_t third = registry.open_scope(nullptr, -1, 1);
  EXPECT_EQ(registry.close_latest(1, {first, second}), second);
  EXPECT_EQ(registry.close_latest(1, {}), third);
  EXPECT_EQ(registry.close_latest(1, {first}), first);
}

TEST(Registry, AllScopesOfAnOwnerEnd) {
  Registry& registry = Registry::instance();
  Pool* pool = make_pool("null");
  for (int device = -1; device < 3; ++device) registry.open_scope(pool, device, 1);
  const uint64_t other = registry.open_scope(pool, 1, 2);
  registry.open_scope(pool, 1, 1);
  EXPECT_EQ(registry.close_all_of(1), 5U);
  EXPECT_EQ(registry.close_all_of(1), 0U);
  EXPECT_EQ(registry.active(-1), nullptr);
  EXPECT_EQ(registry.active(1), pool);
  registry.close_scope(other);
  pool->close();
}

TEST(Registry, ScopesOfDevicesDoNotMeet) {
  Registry& registry = Registry::instance();
  Pool* pool = make_pool("null");
  std::vector<uint64_t> tokens;
  for (int device = -1; device < Registry::kMaxDevices; ++device) {
    tokens.push_back(registry.open_scope(pool, device));
  }
  registry.close_scope(tokens[3]);
  EXPECT_EQ(registry.active(2), nullptr);
  EXPECT_EQ(registry.active(Registry::kMaxDevices - 1), pool);
  tokens.erase(tokens.begin() + 3);
  for (const uint64_t token : tokens) registry.close_scope(token);
  pool->close();
}

TEST(Registry, TotalsDoNotFallWhenAPoolCloses) {
  Registry& registry = Registry::instance();
  const Totals before = registry.totals(-1);
  Pool* pool = make_pool("null");
  uint64_t kept = 0;
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(1000, 0, 0, &kept), Status::kOk);
  ASSERT_EQ(pool->allocate(1000, 0, 0, &address), Status::kOk);
  pool->release_block(address);
  ASSERT_EQ(pool->allocate(8 * kMiB, 0, 0, &address), Status::kOutOfMemory);
  const Totals open = registry.totals(-1);
  EXPECT_EQ(open.allocations - before.allocations, 2U);
  EXPECT_EQ(open.frees - before.frees, 1U);
  EXPECT_EQ(open.requested_bytes - before.requested_bytes, 2000U);
  EXPECT_EQ(open.freed_requested_bytes - before.freed_requested_bytes, 1000U);
  EXPECT_EQ(open.allocated_bytes - before.allocated_bytes, 2048U);
  EXPECT_EQ(open.freed_allocated_bytes - before.freed_allocated_bytes, 1024U);
  EXPECT_EQ(open.shortages - before.shortages, 1U);
  EXPECT_EQ(registry.totals(63).allocations, 0U);
  pool->release_block(kept);
  pool->close();
  const Totals closed = registry.totals(-1);
  EXPECT_EQ(closed.requested_bytes, open.requested_bytes);
  EXPECT_EQ(closed.freed_requested_bytes, closed.requested_bytes);
  EXPECT_EQ(closed.freed_allocated_bytes, closed.allocated_bytes);
}

TEST(Registry, AThousandPoolsComeAndGo) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer leaves too few addresses";
#endif
  std::vector<Pool*> pools;
  try {
    while (true) pools.push_back(make_pool("null"));
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), Status::kInvalidArgument) << error.what();
    EXPECT_NE(std::string(error.what()).find("1024 pools are open"), std::string::npos);
  }
  EXPECT_EQ(pools.size(), Registry::kMaxPools);
  for (Pool* pool : pools) pool->close();
  make_pool()->close();
}

TEST(Registry, ManyPoolsKeepTheirBlocksApart) {
  std::vector<Pool*> pools;
  std::vector<uint64_t> addresses(12);
  for (uint64_t& address : addresses) {
    pools.push_back(make_pool(pools.size() % 2 == 0 ? "host" : "memfd"));
    EXPECT_EQ(pools.back()->allocate(600, 0, 0, &address), Status::kOk);
  }
  for (size_t i = 0; i < pools.size(); ++i) {
    EXPECT_EQ(Registry::instance().owner(addresses[i]), pools[i]);
    expect_error(Status::kForeignPointer, "was not allocated by this pool",
                 [&] { pools[i]->release_block(addresses[(i + 1) % pools.size()]); });
    pools[i]->release_block(addresses[i]);
    pools[i]->close();
  }
}

// ---- fork

int status_of(pid_t child) {
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

/// A child that hangs is ended by its alarm.
template <typename Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);
    ::_exit(body() ? 0 : 1);
  }
  return status_of(child);
}

TEST(Fork, TheChildLeavesTheParentsPoolAlone) {
  Pool* pool = make_pool();
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(100000, 0, 0, &address), Status::kOk);
  std::memset(reinterpret_cast<void*>(address), 5, 100000);
  EXPECT_EQ(in_child([&] {
              uint64_t other = 0;
              bool good = pool->allocate(100, 0, 0, &other) == Status::kForked;
              good &= pool->find(address)->requested == 100000;
              good &= Registry::instance().owner(address) == pool;
              good &= reinterpret_cast<char*>(address)[99999] == 5;
              std::memset(reinterpret_cast<void*>(address), 6, 100000);
              good &= pool->release_block(address) == 0;
              good &= pool->release_block(12345) == 0;
              pool->orphan();
              try {
                pool->trim();
                return false;
              } catch (const Error& error) {
                return good && error.status() == Status::kForked;
              }
            }),
            0);
  EXPECT_EQ(reinterpret_cast<char*>(address)[0], 5);
  EXPECT_EQ(pool->release_block(address), 100000U);
  pool->close();
}

TEST(Fork, TheChildMakesPoolsOfItsOwn) {
  Pool* pool = make_pool();
  const uint64_t token = Registry::instance().open_scope(pool, -1);
  EXPECT_EQ(in_child([&] {
              Pool* own = make_pool();
              uint64_t address = 0;
              if (own->allocate(1000, 0, 0, &address) != Status::kOk) return false;
              own->release_block(address);
              own->close();
              // And its children leave both alone.
              return in_child([&] {
                       uint64_t none = 0;
                       return pool->allocate(1, 0, 0, &none) == Status::kForked;
                     }) == 0;
            }),
            0);
  Registry::instance().close_scope(token);
  pool->close();
}

TEST(Fork, WhileMemoryIsMappedInTheBackground) {
  Pool* pool = make_pool("memfd+slow_maps", 2000 * 64 * kKiB);
  EXPECT_EQ(in_child([&] {
              uint64_t none = 0;
              return pool->allocate(100, 0, 0, &none) == Status::kForked;
            }),
            0);
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(100000, 0, 0, &address), Status::kOk);
  pool->release_block(address);
  pool->close();
}

TEST(Fork, FreeMemoryIsNotCopied) {
  Pool* pool = make_pool();
  uint64_t live = 0;
  uint64_t freed = 0;
  ASSERT_EQ(pool->allocate(kMiB, 0, 0, &live), Status::kOk);
  ASSERT_EQ(pool->allocate(kMiB, 0, 0, &freed), Status::kOk);
  std::memset(reinterpret_cast<void*>(live), 5, kMiB);
  std::memset(reinterpret_cast<void*>(freed), 5, kMiB);
  pool->release_block(freed);
  EXPECT_EQ(in_child([&] {
              return reinterpret_cast<char*>(live)[kMiB - 1] == 5 &&
                     reinterpret_cast<char*>(freed)[0] == 0;
            }),
            0);
  pool->release_block(live);
  pool->close();
}

TEST(Fork, AStitchedBlockIsCopied) {
  Pool* pool = make_pool("host", 8 * 64 * kKiB);
  std::vector<uint64_t> blocks(8);
  for (uint64_t& block : blocks) {
    ASSERT_EQ(pool->allocate(64 * kKiB, 0, 0, &block), Status::kOk);
  }
  for (size_t i = 0; i < 8; i += 2) pool->release_block(blocks[i]);
  for (const uint64_t pages : {4, 2}) {
    uint64_t stitched = 0;
    const uint64_t bytes = pages * 64 * kKiB;
    ASSERT_EQ(pool->allocate(bytes, 0, 0, &stitched), Status::kOk);
    ASSERT_EQ(pool->find(stitched)->kind, BlockKind::kStitched);
    auto* data = reinterpret_cast<char*>(stitched);
    std::memset(data, 5, bytes);
    EXPECT_EQ(in_child([&] {
                const bool inherited = data[0] == 5 && data[bytes - 1] == 5;
                std::memset(data, 6, bytes);
                return inherited;
              }),
              0);
    EXPECT_EQ(data[0], 5);
    EXPECT_EQ(data[bytes - 1], 5);
    pool->release_block(stitched);
  }
  for (size_t i = 1; i < 8; i += 2) pool->release_block(blocks[i]);
  pool->close();
}

TEST(Fork, FreePagesThatStandAtAnAliasAreNotCopied) {
  Pool* pool = make_pool("host", 4 * 64 * kKiB);
  std::vector<uint64_t> blocks(4);
  for (uint64_t& block : blocks) {
    ASSERT_EQ(pool->allocate(64 * kKiB, 0, 0, &block), Status::kOk);
  }
  pool->release_block(blocks[0]);
  pool->release_block(blocks[2]);
  uint64_t stitched = 0;
  ASSERT_EQ(pool->allocate(128 * kKiB, 0, 0, &stitched), Status::kOk);
  auto* data = reinterpret_cast<volatile char*>(stitched);
  data[0] = 5;
  data[128 * kKiB - 1] = 5;
  pool->release_block(stitched);
  EXPECT_EQ(in_child([&] { return data[0] == 0 && data[128 * kKiB - 1] == 0; }), 0);
  pool->release_block(blocks[1]);
  pool->release_block(blocks[3]);
  pool->close();
}

/// AddressSanitizer's heap may be locked for good in a child that is forked under other threads.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kChildHasHeap = false;
#else
constexpr bool kChildHasHeap = true;
#endif

TEST(Fork, NeverDeadlocksUnderAllocatingThreads) {
  Pool* pool = make_pool();
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      while (!stop) {
        uint64_t address = 0;
        if (pool->allocate(100 + i * 100000, i, 0, &address) != Status::kOk) continue;
        pool->release_block(address);
        if (i == 2) make_pool("null")->close();
      }
    });
  }
  int failed = 0;
  for (int i = 0; i < 100; ++i) {
    failed += in_child([&] {
                uint64_t address = 0;
                if (pool->allocate(100, 0, 0, &address) != Status::kForked) return false;
                if (!kChildHasHeap) return true;
                return make_pool("null")->allocate(100, 0, 0, &address) == Status::kOk;
              }) != 0;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  pool->close();
}

/// What a child may do with a pool that the parent opens, uses and closes meanwhile.
bool child_uses(Pool& pool) {
  uint64_t address = 0;
  const Status status = pool.allocate(100, 0, 0, &address);
  if (status != Status::kForked && status != Status::kClosed) return false;
  pool.totals();
  pool.orphan();
  pool.close_if_orphaned();
  if (!kChildHasHeap) return true;
  Registry::instance().totals(-1);
  Pool* const own = make_pool("host", 64 * kKiB);
  const bool good = own->allocate(100, 0, 0, &address) == Status::kOk;
  own->release_block(address);
  own->close();
  return good;
}

/// VRAMKIT_TEST_FORK_S=600 goes on for so many seconds.
std::chrono::steady_clock::time_point forks_end() {
  const char* const text = std::getenv("VRAMKIT_TEST_FORK_S");
  return std::chrono::steady_clock::now() +
         std::chrono::seconds(text != nullptr ? std::strtoull(text, nullptr, 10) : 1);
}

TEST(Fork, NeverDeadlocksWhilePoolsOpenAndClose) {
  std::atomic<Pool*> latest = make_pool();
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> pools = 0;
  std::vector<std::thread> threads;
  for (const char* backend : {"host", "memfd+slow_maps", "null+slow_maps"}) {
    threads.emplace_back([&, backend] {
      while (!stop) {
        Pool* const pool = make_pool(backend, 64 * 64 * kKiB);
        latest = pool;
        uint64_t address = 0;
        if (pool->allocate(8 * 64 * kKiB, 0, 0, &address) == Status::kOk) {
          pool->release_block(address);
        }
        Registry::instance().totals(-1);
        pool->close();
        ++pools;
      }
    });
  }
  int forks = 0;
  int failed = 0;
  for (const auto end = forks_end(); std::chrono::steady_clock::now() < end; ++forks) {
    Pool* const pool = latest;
    failed += in_child([pool] { return child_uses(*pool); }) != 0;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0) << "of " << forks << " children beside " << pools << " pools";
  EXPECT_GT(forks, 0);
  RecordProperty("forks", forks);
  if (std::getenv("VRAMKIT_TEST_FORK_S") != nullptr) {
    std::printf("%d forks beside %llu pools\n", forks,
                static_cast<unsigned long long>(pools.load()));
  }
}

TEST(Fork, TheChildMayUseAClosedPool) {
  Pool* pool = make_pool();
  pool->close();
  EXPECT_TRUE(pool->closed());
  std::atomic<bool> stop = false;
  std::thread busy([&] {
    while (!stop) pool->totals();
  });
  int failed = 0;
  for (int i = 0; i < 50; ++i) failed += in_child([&] { return child_uses(*pool); }) != 0;
  stop = true;
  busy.join();
  EXPECT_EQ(failed, 0);
}

}  // namespace
}  // namespace vramkit
