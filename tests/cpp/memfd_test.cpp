#include "backend/memfd.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "support.h"

namespace vramkit {
namespace {

constexpr Layout kLayout{64 * kKiB, 16, 16};

TEST(MemfdBackend, GivesMemoryBackToTheMachine) {
  MemfdBackend backend;
  backend.reserve(kLayout);
  backend.map_primary({0, 16});
  auto* base = reinterpret_cast<char*>(backend.base());
  std::memset(base, 1, 16 * kLayout.page_bytes);
  backend.map_alias(backend.base() + 16 * kLayout.page_bytes, {3, 1});
  backend.unmap_and_release({3, 1});
  EXPECT_EQ(base[16 * kLayout.page_bytes], 0) << "the alias shows that the memory is gone";
  unsigned char resident = 1;
  EXPECT_EQ(::mincore(base + 3 * kLayout.page_bytes, 4096, &resident), 0);
  EXPECT_EQ(resident & 1, 0);
}

TEST(MemfdBackendDeathTest, AnUnmappedAddressCannotBeTouched) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  MemfdBackend backend;
  backend.reserve(kLayout);
  backend.map_primary({0, 1});
  const uint64_t alias = backend.base() + 16 * kLayout.page_bytes;
  backend.map_alias(alias, {0, 1});
  *reinterpret_cast<volatile char*>(alias) = 1;
  backend.unmap_alias(alias, {0, 1});
  EXPECT_DEATH(*reinterpret_cast<volatile char*>(alias) = 1, "");
}

}  // namespace
}  // namespace vramkit
