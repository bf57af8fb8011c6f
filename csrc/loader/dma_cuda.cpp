#include "loader/dma_cuda.h"

#include <algorithm>
#include <vector>

#include "backend/driver_cuda.h"
#include "base/error.h"
#include "loader/context_cuda.h"

namespace vramkit {
namespace {

using cuda::driver;

// A stream of this handle is the default stream too (CU_STREAM_LEGACY).
constexpr uint64_t kLegacyStream = 1;

bool has_batched_copies(const cuda::Driver& d) {
  return d.copy_batch != nullptr || d.copy_batch_12 != nullptr;
}

/// Copies that are handed to the driver together.
class Batch {
 public:
  Batch(int device, uint64_t stream)
      : device_(device), stream_(reinterpret_cast<cuda::Stream>(stream)) {
    to_.reserve(kMostCopiesABatch);
    from_.reserve(kMostCopiesABatch);
    sizes_.reserve(kMostCopiesABatch);
  }

  void add(uint64_t to, uint64_t from, uint64_t bytes) {
    if (sizes_.size() == kMostCopiesABatch) issue();
    to_.push_back(to);
    from_.push_back(from);
    sizes_.push_back(bytes);
  }

  /// Queues what was added and forgets it.
  void issue() {
    if (sizes_.empty()) return;
    if (const cuda::Result result = call(); result != cuda::kSuccess) {
      throw_error(
          Status::kSystem,
          "cuda:%d: cuMemcpyBatchAsync of %zu copies failed: %s (%d). Each array of the rows must "
          "lie in one range of registered host memory, and each destination on the device",
          device_, sizes_.size(), cuda::name_of(result), result);
    }
    to_.clear();
    from_.clear();
    sizes_.clear();
  }

 private:
  cuda::Result call() {
    const cuda::Driver& d = driver();
    cuda::CopyAttributes attributes{};
    attributes.source_access_order = cuda::kSourceInStreamOrder;
    size_t first_copy = 0;
    if (d.copy_batch != nullptr) {
      return d.copy_batch(to_.data(), from_.data(), sizes_.data(), sizes_.size(), &attributes,
                          &first_copy, 1, stream_);
    }
    size_t failed_copy = 0;
    return d.copy_batch_12(to_.data(), from_.data(), sizes_.data(), sizes_.size(), &attributes,
                           &first_copy, 1, &failed_copy, stream_);
  }

  const int device_;
  const cuda::Stream stream_;
  std::vector<cuda::Address> to_;
  std::vector<cuda::Address> from_;
  std::vector<size_t> sizes_;
};

/// How many of the rows, from the first on, one copy takes. It stays within a segment: a copy may
/// not span two registrations, even if they are neighbours.
uint64_t rows_of_a_copy(const Piece& piece, std::span<const int64_t> indices) {
  if (piece.row_stride_bytes != piece.row_bytes) return 1;
  const int64_t first = indices.front();
  const Segment& held = piece.segment_of(static_cast<uint64_t>(first));
  const uint64_t left = held.first_row + held.rows - static_cast<uint64_t>(first);
  const uint64_t most = std::min<uint64_t>(left, indices.size());
  uint64_t count = 1;
  while (count < most && indices[count] == first + static_cast<int64_t>(count)) ++count;
  return count;
}

void add_rows(const Piece& piece, std::span<const int64_t> indices, uint64_t to, Batch& batch) {
  if (piece.row_bytes == 0) return;  // the driver refuses empty copies
  while (!indices.empty()) {
    const uint64_t rows = rows_of_a_copy(piece, indices);
    const char* const from = piece.row(static_cast<uint64_t>(indices.front()));
    const uint64_t bytes = rows * piece.row_bytes;
    batch.add(to, reinterpret_cast<uint64_t>(from), bytes);
    to += bytes;
    indices = indices.subspan(rows);
  }
}

void check_arguments(const GatherPlan& plan, std::span<const uint64_t> destinations,
                     std::span<const int64_t> indices, uint64_t stream) {
  plan.check_destination_count(destinations.size());
  plan.check_indices(indices);
  for (size_t i = 0; i < destinations.size(); ++i) {
    const uint64_t bytes =
        checked_product(indices.size(), plan.pieces()[i].row_bytes, "destination");
    check_extent(destinations[i], bytes, "destination");
  }
  if (stream <= kLegacyStream) {
    throw_error(Status::kInvalidArgument,
                "batched copies cannot be queued on the default stream; pass another stream");
  }
}

}  // namespace

bool has_batched_copies() noexcept {
  try {
    return has_batched_copies(driver());
  } catch (...) {
    return false;  // no driver, or one that is too old or cannot start
  }
}

void copy_to_device(const GatherPlan& plan, std::span<const uint64_t> destinations,
                    std::span<const int64_t> indices, int device, uint64_t stream) {
  // Not the caller's list, which another thread may change between the check and the copies.
  const std::vector<int64_t> checked(indices.begin(), indices.end());
  check_arguments(plan, destinations, checked, stream);
  if (!has_batched_copies(driver())) {
    throw_error(
        Status::kSystem,
        "the CUDA driver has no batched copies (cuMemcpyBatchAsync), which came with CUDA 12.8; "
        "update the driver, or gather the rows in host memory");
  }
  const PrimaryContext context(device);
  const cuda::Entered entered(context.get());
  Batch batch(device, stream);
  for (size_t i = 0; i < destinations.size(); ++i) {
    add_rows(plan.pieces()[i], checked, destinations[i], batch);
  }
  batch.issue();
}

}  // namespace vramkit
