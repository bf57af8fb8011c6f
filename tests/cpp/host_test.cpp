#include "backend/host.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

constexpr Layout kLayout{2 * kMiB, 16, 16};

class HostTest : public testing::Test {
 protected:
  HostTest() {
    backend_.reserve(kLayout);
    backend_.create_physical({0, kLayout.primary_pages});
  }
  char* primary_address(uint64_t page) const {
    return reinterpret_cast<char*>(backend_.base() + page * kLayout.page_bytes);
  }
  char* alias(uint64_t page) const { return primary_address(kLayout.primary_pages + page); }
  uint64_t number(const char* address) const { return reinterpret_cast<uint64_t>(address); }

  HostBackend backend_;
};

uint64_t areas() {
  std::ifstream maps("/proc/self/maps");
  uint64_t count = 0;
  for (std::string line; std::getline(maps, line);) ++count;
  return count;
}

TEST_F(HostTest, AMoveCarriesTheMemory) {
  std::memset(primary_address(3), 5, kLayout.page_bytes);
  backend_.map_alias(number(alias(0)), {3, 1});
  EXPECT_EQ(alias(0)[kLayout.page_bytes - 1], 5);
  EXPECT_EQ(primary_address(3)[0], 0) << "what is left behind is fresh";
  backend_.unmap_alias(number(alias(0)), {3, 1});
  EXPECT_EQ(primary_address(3)[0], 5);
}

TEST_F(HostTest, NobodyElsesMemoryLandsWhereAPageWas) {
  for (uint64_t page = 0; page < 16; page += 2) backend_.map_alias(number(alias(page)), {page, 1});
  std::vector<char*> others;
  for (int i = 0; i < 64; ++i) {
    void* got =
        ::mmap(nullptr, 2 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(got, MAP_FAILED);
    others.push_back(static_cast<char*>(got));
    std::memset(got, 7, 4096);
    EXPECT_TRUE(number(others.back()) < backend_.base() || others.back() >= alias(16));
  }
  for (uint64_t page = 0; page < 16; page += 2)
    backend_.unmap_alias(number(alias(page)), {page, 1});
  for (char* other : others) {
    EXPECT_EQ(other[0], 7);
    ::munmap(other, 2 * kMiB);
  }
}

TEST_F(HostTest, AreasMergeWhenPagesAreHomeAgain) {
  std::memset(primary_address(0), 1, 16 * kLayout.page_bytes);
  const uint64_t before = areas();
  for (int round = 0; round < 20; ++round) {
    for (uint64_t page = 0; page < 16; page += 2)
      backend_.map_alias(number(alias(page)), {page, 1});
    for (uint64_t page = 0; page < 16; page += 2)
      backend_.unmap_alias(number(alias(page)), {page, 1});
  }
  EXPECT_LE(areas(), before + 16);
}

/// Cuts a range into areas until the kernel allows no more. False if it never refuses.
bool use_up_areas() {
  constexpr uint64_t kOsPage = 4096;
  constexpr uint64_t kPages = 400000;
  void* got = ::mmap(nullptr, kPages * kOsPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (uint64_t page = 1; page < kPages; page += 2) {
    if (::mprotect(static_cast<char*>(got) + page * kOsPage, kOsPage, PROT_READ) != 0) return true;
  }
  return false;
}

TEST_F(HostTest, PagesComeHomeAtTheLimitOfMappings) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer needs mappings itself, and ends the process without them";
#endif
  for (uint64_t page = 0; page < 16; page += 2) backend_.map_alias(number(alias(page)), {page, 1});
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);  // the aliases cannot be closed then, which is reported
    bool clean = use_up_areas();
    for (uint64_t page = 0; page < 16; page += 2)
      backend_.unmap_alias(number(alias(page)), {page, 1});
    std::memset(primary_address(0), 1, 16 * kLayout.page_bytes);
    try {
      backend_.map_alias(number(alias(0)), {3, 1});
      std::memset(alias(0), 2, kLayout.page_bytes);
    } catch (const Error& error) {
      clean &= error.status() == Status::kOutOfMemory;
      clean &= std::string(error.what()).find("vm.max_map_count") != std::string::npos;
      std::memset(primary_address(3), 2, kLayout.page_bytes);
    }
    ::_exit(clean ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(HostTest, AChildWritesToItsOwnCopy) {
  backend_.map_alias(number(alias(0)), {3, 1});
  std::memset(primary_address(1), 1, 4096);
  std::memset(alias(0), 2, 4096);
  const pid_t child = ::fork();
  if (child == 0) {
    const bool inherited = primary_address(1)[0] == 1 && alias(0)[0] == 2;
    std::memset(primary_address(1), 8, 4096);
    std::memset(alias(0), 9, 4096);
    ::_exit(inherited ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(primary_address(1)[0], 1);
  EXPECT_EQ(alias(0)[0], 2);
}

TEST_F(HostTest, WhatAChildDiscardsStaysWithTheParent) {
  std::memset(primary_address(0), 3, kLayout.page_bytes);
  const pid_t child = ::fork();
  if (child == 0) {
    backend_.discard_in_child(number(primary_address(0)), kLayout.page_bytes);
    ::_exit(primary_address(0)[0] == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(primary_address(0)[0], 3);
}

TEST_F(HostTest, LeavesMostMappingsToTheProgram) {
  EXPECT_LT(backend_.max_alias_pages(), uint64_t{1} << 28);
  EXPECT_GE(backend_.max_alias_pages(), 16U);
}

/// Bytes of the range that are in memory.
uint64_t resident(uint64_t from, uint64_t bytes) {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in(bytes / page);
  EXPECT_EQ(::mincore(reinterpret_cast<void*>(from), bytes, in.data()), 0);
  return static_cast<uint64_t>(
             std::count_if(in.begin(), in.end(), [](unsigned char each) { return each & 1; })) *
         page;
}

TEST_F(HostTest, AnUntouchedPoolTakesAPage) {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  EXPECT_EQ(resident(backend_.base() - page, page + 16 * kLayout.page_bytes), page);
}

TEST_F(HostTest, WhatIsNotCommittedIsNotAccessible) {
  HostBackend backend;
  backend.reserve(kLayout);
  backend.create_physical({0, 3});
  std::memset(reinterpret_cast<void*>(backend.base()), 1, 3 * kLayout.page_bytes);
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  EXPECT_EQ(::write(pipes[1], reinterpret_cast<void*>(backend.base() + 3 * kLayout.page_bytes), 1),
            -1);
  backend.create_physical({3, 1});
  EXPECT_EQ(::write(pipes[1], reinterpret_cast<void*>(backend.base() + 3 * kLayout.page_bytes), 1),
            1);
  ::close(pipes[0]);
  ::close(pipes[1]);
}

}  // namespace
}  // namespace vramkit
