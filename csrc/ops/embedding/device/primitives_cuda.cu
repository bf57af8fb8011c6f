#include <thrust/iterator/counting_iterator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_select.cuh>
#include <stdexcept>
#include <string>

#include "ops/embedding/device/primitives_cuda.h"

namespace vramkit::embedding::device {
namespace {

/// Calls `f(storage, bytes)` twice, as CUB wants it: for the bytes that it needs, and to run.
template <class F>
void with_storage(const Place& place, const char* call, const F& f) {
  size_t bytes = 0;
  check_cuda(f(nullptr, bytes), call);
  const std::unique_ptr<Memory> storage = place.allocate(bytes == 0 ? 1 : bytes);
  check_cuda(f(storage->data(), bytes), call);
}

template <class Key>
void sort(const Place& place, const Key* keys, Key* sorted_keys, const uint32_t* values,
          uint32_t* sorted_values, int64_t count, int bits) {
  with_storage(place, "cub::DeviceRadixSort", [&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, keys, sorted_keys, values, sorted_values,
                                           count, 0, bits, place.stream);
  });
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("vramkit: ") + call +
                           " failed: " + cudaGetErrorString(status));
}

void sort_pairs(const Place& place, const uint32_t* keys, uint32_t* sorted_keys,
                const uint32_t* values, uint32_t* sorted_values, int64_t count, int bits) {
  sort(place, keys, sorted_keys, values, sorted_values, count, bits);
}

void sort_pairs(const Place& place, const uint64_t* keys, uint64_t* sorted_keys,
                const uint32_t* values, uint32_t* sorted_values, int64_t count, int bits) {
  sort(place, keys, sorted_keys, values, sorted_values, count, bits);
}

uint64_t sort_bytes(int64_t count, int bits) {
  size_t bytes = 0;
  const uint32_t* const in = nullptr;
  uint32_t* const out = nullptr;
  check_cuda(
      cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, count, 0, bits, nullptr),
      "cub::DeviceRadixSort");
  return bytes;
}

void sort_pairs_in(cudaStream_t stream, char* storage, uint64_t storage_bytes, const uint32_t* keys,
                   uint32_t* sorted_keys, const uint32_t* values, uint32_t* sorted_values,
                   int64_t count, int bits) {
  size_t bytes = storage_bytes;
  check_cuda(cub::DeviceRadixSort::SortPairs(storage, bytes, keys, sorted_keys, values,
                                             sorted_values, count, 0, bits, stream),
             "cub::DeviceRadixSort");
}

void select_flagged(const Place& place, const uint8_t* flags, int64_t count, uint32_t* chosen,
                    uint32_t* number) {
  with_storage(place, "cub::DeviceSelect", [&](void* storage, size_t& bytes) {
    return cub::DeviceSelect::Flagged(storage, bytes, thrust::counting_iterator<uint32_t>(0), flags,
                                      chosen, number, count, place.stream);
  });
}

void add_up(const Place& place, const double* values, int64_t count, double* total) {
  with_storage(place, "cub::DeviceReduce", [&](void* storage, size_t& bytes) {
    return cub::DeviceReduce::Sum(storage, bytes, values, total, count, place.stream);
  });
}

}  // namespace vramkit::embedding::device
