#include "loader/dma_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fake_driver.h"
#include "gather_task.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kStream = 77;
constexpr uint64_t kRowBytes = 16;

/// A driver that lacks functions, until the scope ends.
class LesserDriver {
 public:
  LesserDriver() : before_(FakeGpu::table()) {}
  LesserDriver(const LesserDriver&) = delete;
  LesserDriver& operator=(const LesserDriver&) = delete;
  ~LesserDriver() {
    FakeGpu::table().copy_batch = before_.copy_batch;
    FakeGpu::table().copy_batch_12 = before_.copy_batch_12;
  }

 private:
  const cuda::Driver before_;
};

/// An array in one or two segments that are neighbours in memory, and where its rows go.
struct Rows {
  explicit Rows(uint64_t count, uint64_t stride = kRowBytes, uint64_t first_segment = 0)
      : memory(count * stride), copied(count * kRowBytes, kUntouched) {
    for (size_t at = 0; at < memory.size(); ++at) memory[at] = static_cast<unsigned char>(at * 7);
    const uint64_t base = address_of(memory.data());
    const Segment segments[] = {
        {base, 0, first_segment},
        {base + first_segment * stride, first_segment, count - first_segment}};
    const PieceSpec spec = {segments, kRowBytes, stride};
    plan = std::make_unique<const GatherPlan>(std::span(&spec, 1));
  }

  void copy(const Indices& indices, int device = 0, uint64_t stream = kStream) const {
    const uint64_t destination = address_of(copied.data());
    copy_to_device(*plan, {&destination, 1}, indices, device, stream);
  }
  void expect_untouched() const { EXPECT_EQ(copied, Bytes(copied.size(), kUntouched)); }

  Bytes memory;
  Bytes copied;
  std::unique_ptr<const GatherPlan> plan;
};

Indices counted(int64_t first, size_t count) {
  Indices made(count);
  std::iota(made.begin(), made.end(), first);
  return made;
}

std::vector<uint64_t> sizes_of(const FakeGpu::Batch& batch) {
  std::vector<uint64_t> sizes;
  for (const FakeGpu::Copy& copy : batch.copies) sizes.push_back(copy.bytes);
  return sizes;
}

void expect_a_plain_loop(uint32_t first_seed) {
  FakeGpu& gpu = FakeGpu::fresh();
  for (uint32_t seed = first_seed; seed < first_seed + 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Task task(random, seed % 10 == 0 ? 300 * kKiB : 8 * kKiB);
    copy_to_device(*task.plan(), task.destinations(), task.indices(), 1, kStream);
    task.expect_untouched();
    gpu.run_batches();
    task.expect_copied();
  }
  EXPECT_EQ(gpu.contexts, 0);
  EXPECT_EQ(FakeGpu::entered(), 0);
}

TEST(DmaCuda, EqualsAPlainLoop) { expect_a_plain_loop(0); }

TEST(DmaCuda, EqualsAPlainLoopWithADriverOfCuda12) {
  const LesserDriver lesser;
  FakeGpu::table().copy_batch = nullptr;
  EXPECT_TRUE(has_batched_copies());
  expect_a_plain_loop(1000);
}

TEST(DmaCuda, TheNewerFunctionIsPreferred) {
  FakeGpu& gpu = FakeGpu::fresh();
  const LesserDriver lesser;
  FakeGpu::table().copy_batch_12 = nullptr;
  EXPECT_TRUE(has_batched_copies());
  Rows(4).copy({1});
  EXPECT_EQ(gpu.batches.size(), 1U);
}

TEST(DmaCuda, ConsecutiveRowsAreOneCopy) {
  FakeGpu& gpu = FakeGpu::fresh();
  const Rows rows(10);
  rows.copy({2, 3, 4, 4, 9, 0, 1, 0});
  ASSERT_EQ(gpu.batches.size(), 1U);
  EXPECT_EQ(gpu.batches[0].stream, kStream);
  EXPECT_EQ(sizes_of(gpu.batches[0]),
            (std::vector<uint64_t>{3 * kRowBytes, kRowBytes, kRowBytes, 2 * kRowBytes, kRowBytes}));
  EXPECT_EQ(gpu.batches[0].copies[0].from, address_of(rows.memory.data()) + 2 * kRowBytes);
}

TEST(DmaCuda, ACopyStaysInItsSegment) {
  FakeGpu& gpu = FakeGpu::fresh();
  const Rows rows(10, kRowBytes, 4);
  rows.copy(counted(0, 10));
  ASSERT_EQ(gpu.batches.size(), 1U);
  EXPECT_EQ(sizes_of(gpu.batches[0]), (std::vector<uint64_t>{4 * kRowBytes, 6 * kRowBytes}));
}

TEST(DmaCuda, RowsThatLieApartAreCopiedOneByOne) {
  FakeGpu& gpu = FakeGpu::fresh();
  const Rows rows(10, kRowBytes + 8);
  rows.copy(counted(0, 10));
  ASSERT_EQ(gpu.batches.size(), 1U);
  EXPECT_EQ(sizes_of(gpu.batches[0]), std::vector<uint64_t>(10, kRowBytes));
}

TEST(DmaCuda, ALongListTakesSeveralCalls) {
  FakeGpu& gpu = FakeGpu::fresh();
  const size_t count = 2 * kMostCopiesABatch + 1;
  const Rows rows(count);
  Indices indices = counted(0, count);
  std::reverse(indices.begin(), indices.end());
  rows.copy(indices);
  ASSERT_EQ(gpu.batches.size(), 3U);
  EXPECT_EQ(gpu.batches[0].copies.size(), kMostCopiesABatch);
  EXPECT_EQ(gpu.batches[2].copies.size(), 1U);
  gpu.run_batches();
  for (size_t k = 0; k < count; ++k) {
    ASSERT_EQ(std::memcmp(rows.copied.data() + k * kRowBytes,
                          rows.memory.data() + (count - 1 - k) * kRowBytes, kRowBytes),
              0);
  }
}

TEST(DmaCuda, NothingIsNoCall) {
  FakeGpu& gpu = FakeGpu::fresh();
  Rows(4).copy({});
  copy_to_device(GatherPlan({}), {}, Indices{5}, 0, kStream);
  EXPECT_TRUE(gpu.batches.empty());
  EXPECT_EQ(gpu.contexts, 0);
}

TEST(DmaCuda, BadIndicesAreNamedAndNothingIsQueued) {
  FakeGpu& gpu = FakeGpu::fresh();
  const size_t count = kMostCopiesABatch + 10;
  const Rows rows(count);
  for (const size_t position : {size_t{0}, count / 2, count - 1}) {
    for (const int64_t index : {int64_t{-1}, static_cast<int64_t>(count), INT64_MIN, INT64_MAX}) {
      Indices indices = counted(0, count);
      indices[position] = index;
      expect_error(Status::kInvalidArgument,
                   format("index %lld at position %zu is out of range: piece 0 has %zu rows",
                          static_cast<long long>(index), position, count),
                   [&] { rows.copy(indices); });
    }
  }
  EXPECT_TRUE(gpu.batches.empty());
  EXPECT_EQ(gpu.contexts, 0);
  rows.expect_untouched();
}

TEST(DmaCuda, RefusesWhatCannotBe) {
  FakeGpu& gpu = FakeGpu::fresh();
  const Rows rows(4);
  const Indices indices = counted(0, 4);
  for (const uint64_t stream : {uint64_t{0}, uint64_t{1}}) {
    expect_error(Status::kInvalidArgument, "cannot be queued on the default stream",
                 [&] { rows.copy(indices, 0, stream); });
  }
  for (const int device : {-1, 5}) {
    expect_error(Status::kInvalidArgument,
                 "there is no CUDA device " + std::to_string(device) + ": the driver counts 5",
                 [&] { rows.copy(indices, device); });
  }
  for (const uint64_t destination : {uint64_t{0}, UINT64_MAX - 8}) {
    expect_error(Status::kInvalidArgument, "a destination of 64 bytes cannot begin at address",
                 [&] {
                   copy_to_device(*rows.plan, {&destination, 1}, indices, 0, kStream);
                 });
  }
  expect_error(Status::kInvalidArgument, "the plan has 1 pieces, got 0 destinations",
               [&] { copy_to_device(*rows.plan, {}, indices, 0, kStream); });
  EXPECT_TRUE(gpu.batches.empty());
  EXPECT_EQ(gpu.contexts, 0);
}

TEST(DmaCuda, TheDriversErrorIsNamed) {
  FakeGpu& gpu = FakeGpu::fresh();
  const Rows rows(4);
  for (const cuda::Result result : {cuda::kOutOfMemory, FakeGpu::kInvalidValue}) {
    gpu.copying = result;
    expect_error(Status::kSystem,
                 format("cuda:2: cuMemcpyBatchAsync of 2 copies failed: FAKE_ERROR (%d)", result),
                 [&] {
                   rows.copy({3, 0}, 2);
                 });
  }
  gpu.copying = cuda::kSuccess;
  gpu.capturing.insert(kStream);
  expect_error(Status::kSystem, "FAKE_ERROR (900)", [&] { rows.copy({3, 0}); });
  gpu.capturing.clear();
  gpu.context_gone = true;
  expect_error(Status::kSystem, "cuCtxPushCurrent failed: FAKE_ERROR (201)", [&] {
    rows.copy({3, 0});
  });
  EXPECT_EQ(gpu.contexts, 0);
  EXPECT_EQ(FakeGpu::entered(), 0);
}

TEST(DmaCuda, ADriverWithoutBatchedCopiesSaysSo) {
  FakeGpu& gpu = FakeGpu::fresh();
  EXPECT_TRUE(has_batched_copies());
  const LesserDriver lesser;
  FakeGpu::table().copy_batch = nullptr;
  FakeGpu::table().copy_batch_12 = nullptr;
  EXPECT_FALSE(has_batched_copies());
  expect_error(Status::kSystem, "the CUDA driver has no batched copies (cuMemcpyBatchAsync)",
               [] { Rows(4).copy({1}); });
  EXPECT_EQ(gpu.contexts, 0);
}

}  // namespace
}  // namespace vramkit
