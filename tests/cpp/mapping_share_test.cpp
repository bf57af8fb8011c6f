#include "backend/mapping_share.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "pool/registry.h"
#include "support.h"

namespace vramkit {
namespace {

TEST(MappingShare, CountsWhatIsThere) {
  EXPECT_GE(mapping_limit(), 1024U);
  const uint64_t before = count_mappings();
  EXPECT_GT(before, 10U);
  void* got = ::mmap(nullptr, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(got, MAP_FAILED);
  ASSERT_EQ(::mprotect(static_cast<char*>(got) + 4096, 4096, PROT_READ), 0);
  EXPECT_GE(count_mappings(), before + 2);
  ::munmap(got, 3 * 4096);
}

TEST(MappingShare, AllTogetherTakeHalfOfTheLimit) {
  const uint64_t quarter = mapping_limit() / 4;
  MappingShare first;
  EXPECT_FALSE(first.take(quarter + 1));
  EXPECT_TRUE(first.take(quarter));
  EXPECT_EQ(first.most(), quarter);
  auto second = std::make_unique<MappingShare>();
  EXPECT_TRUE(second->take(quarter));
  MappingShare third;
  EXPECT_EQ(third.most(), mapping_limit() / 2 - 2 * quarter);
  EXPECT_FALSE(third.take(2));
  EXPECT_NE(third.describe().find("mappings (vm.max_map_count)"), std::string::npos);
  second->give_back(10);
  EXPECT_TRUE(third.take(10));
  second.reset();
  EXPECT_TRUE(third.take(quarter - 10)) << "a share comes back when its owner goes";
}

TEST(MappingShare, ThreadsNeverTakeMoreThanThereIs) {
  const uint64_t quarter = mapping_limit() / 4;
  MappingShare rest;
  ASSERT_TRUE(rest.take(quarter));
  std::atomic<uint64_t> taken = 0;
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<MappingShare>> shares;
  for (int i = 0; i < 4; ++i) shares.push_back(std::make_unique<MappingShare>());
  for (const auto& share : shares) {
    threads.emplace_back([&] {
      while (share->take(7)) taken += 7;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(taken, mapping_limit() / 2 - quarter);
  EXPECT_GT(taken, mapping_limit() / 2 - quarter - 8);
}

TEST(MappingShare, LeavesRoomBesideTheMappingsOfOthers) {
  // Every second page readable: two mappings each, up to seven eighths of the limit.
  const uint64_t areas = mapping_limit() / 8 * 7 - count_mappings();
  const uint64_t bytes = (areas + 1) * 4096;
  void* got = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(got, MAP_FAILED);
  for (uint64_t page = 1; page < areas; page += 2) {
    ASSERT_EQ(::mprotect(static_cast<char*>(got) + page * 4096, 4096, PROT_READ), 0);
  }
  {
    MappingShare share;
    EXPECT_FALSE(share.take(2000));
    EXPECT_LT(share.most(), 2000U);
  }
  ::munmap(got, bytes);
  MappingShare share;
  EXPECT_TRUE(share.take(2000)) << "others are counted again";
}

TEST(MappingShare, AForkedChildStartsAnew) {
  MappingShare all;
  ASSERT_TRUE(all.take(mapping_limit() / 4));
  MappingShare more;
  ASSERT_TRUE(more.take(mapping_limit() / 4));
  Registry::instance();
  const pid_t child = ::fork();
  if (child == 0) {
    MappingShare own;
    ::_exit(own.take(mapping_limit() / 4) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

/// Stitches every second page of a fresh pool, 64 at a time. False when the pool refuses.
bool stitch_all(Engine& engine, uint64_t pages, std::vector<uint64_t>& blocks) {
  constexpr uint64_t kPage = 64 * kKiB;
  std::vector<uint64_t> homes(pages);
  for (uint64_t& home : homes) home = engine.allocate(kPage, 0, 0);
  for (uint64_t i = 0; i < pages; i += 2) engine.release(homes[i]);
  const uint64_t together = std::min<uint64_t>(pages / 2, 64);
  for (uint64_t left = pages / 2; left >= together; left -= together) {
    const uint64_t block = engine.allocate(together * kPage, 0, 0);
    if (block == 0) return false;
    blocks.push_back(block);
  }
  return true;
}

TEST(MappingShare, SixPoolsLeaveTheProcessItsMappings) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer leaves too few addresses";
#endif
  const uint64_t pages = mapping_limit() / 2;
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<uint64_t> blocks;
  int refused = 0;
  for (int i = 0; i < 6; ++i) {
    engines.push_back(std::make_unique<Engine>(config_of("host", pages * 64 * kKiB)));
    if (stitch_all(*engines.back(), pages, blocks)) continue;
    ++refused;
    const std::string text = engines.back()->alias_limit(64 * 64 * kKiB);
    EXPECT_NE(text.find("vm.max_map_count"), std::string::npos) << text;
  }
  EXPECT_GT(refused, 0);
  EXPECT_LE(count_mappings(), mapping_limit() / 4 * 3);
  void* const still = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_NE(still, MAP_FAILED);
  ::munmap(still, 4096);
  engines.clear();
  Engine fresh(config_of("host", 16 * 64 * kKiB));
  EXPECT_TRUE(stitch_all(fresh, 16, blocks)) << "closed pools have given their share back";
}

}  // namespace
}  // namespace vramkit
