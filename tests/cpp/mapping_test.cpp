#include "backend/mapping.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <utility>

#include "support.h"

namespace vramkit {
namespace {

TEST(AddressRange, IsAlignedAndOwned) {
  uint64_t base = 0;
  {
    AddressRange first(8 * kMiB, 64 * kMiB);
    EXPECT_EQ(first.base() % (64 * kMiB), 0U);
    base = first.base();
    const AddressRange second = std::move(first);
    EXPECT_EQ(second.base(), base);
    EXPECT_EQ(second.bytes(), 8 * kMiB);
    unsigned char resident = 0;
    EXPECT_EQ(::mincore(pointer(base), 4096, &resident), 0) << "the address is taken";
  }
  unsigned char resident = 0;
  EXPECT_NE(::mincore(pointer(base), 4096, &resident), 0) << "and given back";
}

TEST(AddressRange, SaysWhatCouldNotBeReserved) {
  expect_error(Status::kSystem, "cannot reserve", [] { AddressRange(uint64_t{1} << 56, kMiB); });
}

TEST(MachineMemory, IsWhatALimitLeaves) {
  EXPECT_GT(machine_memory(), 64 * kMiB);
  EXPECT_LE(machine_memory(), uint64_t{1} << 50);
}

}  // namespace
}  // namespace vramkit
