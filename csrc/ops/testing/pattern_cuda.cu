#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "ops/testing/pattern.h"

namespace vramkit::ops {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr uint64_t kWordsPerVector = sizeof(uint4) / kWordBytes;

/// A tensor's bytes: whole 16-byte vectors first, then single bytes. An address that is not
/// 16-byte aligned has single bytes only.
struct Extent {
  unsigned char* bytes;
  uint64_t vectors;
  uint64_t total_bytes;
};

__device__ unsigned char pattern_byte(uint64_t offset, uint64_t seed) {
  const uint32_t word = pattern_word(offset / kWordBytes, seed);
  return static_cast<unsigned char>(word >> (8 * (offset % kWordBytes)));
}

__device__ uint4 pattern_vector(uint64_t vector, uint64_t seed) {
  const uint64_t word = vector * kWordsPerVector;
  return {pattern_word(word, seed), pattern_word(word + 1, seed), pattern_word(word + 2, seed),
          pattern_word(word + 3, seed)};
}

__device__ bool word_differs(const Extent& extent, uint64_t word, uint64_t seed) {
  const uint64_t begin = word * kWordBytes;
  const uint64_t end = min(begin + kWordBytes, extent.total_bytes);
  bool differs = false;
  for (uint64_t i = begin; i < end; ++i) differs |= extent.bytes[i] != pattern_byte(i, seed);
  return differs;
}

__global__ void fill_kernel(Extent extent, uint64_t seed) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  const uint64_t first = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  auto* const vectors = reinterpret_cast<uint4*>(extent.bytes);
  for (uint64_t i = first; i < extent.vectors; i += stride) vectors[i] = pattern_vector(i, seed);
  for (uint64_t i = extent.vectors * sizeof(uint4) + first; i < extent.total_bytes; i += stride) {
    extent.bytes[i] = pattern_byte(i, seed);
  }
}

__global__ void count_kernel(Extent extent, uint64_t seed, unsigned long long* total) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  const uint64_t first = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const auto* const vectors = reinterpret_cast<const uint4*>(extent.bytes);
  unsigned long long found = 0;
  for (uint64_t i = first; i < extent.vectors; i += stride) {
    const uint4 is = vectors[i];
    const uint4 wanted = pattern_vector(i, seed);
    found += (is.x != wanted.x) + (is.y != wanted.y) + (is.z != wanted.z) + (is.w != wanted.w);
  }
  const uint64_t words = (extent.total_bytes + kWordBytes - 1) / kWordBytes;
  for (uint64_t i = extent.vectors * kWordsPerVector + first; i < words; i += stride) {
    found += word_differs(extent, i, seed);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    found += __shfl_down_sync(0xffffffffU, found, offset);
  }
  if (threadIdx.x % kWarp == 0 && found != 0) atomicAdd(total, found);
}

void check_cuda(cudaError_t status, const char* call) {
  STD_TORCH_CHECK(status == cudaSuccess, "vramkit: ", call,
                  " failed: ", cudaGetErrorString(status));
}

Extent extent_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(),
                  "vramkit: the pattern covers whole memory blocks, so the tensor must be "
                  "contiguous; call contiguous() on it first");
  auto* const bytes = static_cast<unsigned char*>(tensor.data_ptr());
  const uint64_t total_bytes = static_cast<uint64_t>(tensor.numel()) * tensor.element_size();
  const bool aligned = reinterpret_cast<uintptr_t>(bytes) % sizeof(uint4) == 0;
  return {bytes, aligned ? total_bytes / sizeof(uint4) : 0, total_bytes};
}

unsigned int grid_for(const Extent& extent, int device) {
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  const uint64_t items = extent.vectors != 0 ? extent.vectors : extent.total_bytes;
  const uint64_t blocks = (items + kThreads - 1) / kThreads;
  const auto most = static_cast<uint64_t>(multiprocessors) * kBlocksPerMultiprocessor;
  return static_cast<unsigned int>(std::clamp<uint64_t>(blocks, 1, most));
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  // The header's own macro for this has another name in torch 2.11.
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "torch does not tell the current stream of cuda:", device);
  return static_cast<cudaStream_t>(stream);
}

void fill_pattern(Tensor tensor, int64_t seed) {
  const Extent extent = extent_of(tensor);
  if (extent.total_bytes == 0) return;
  const int device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  fill_kernel<<<grid_for(extent, device), kThreads, 0, current_stream(device)>>>(
      extent, static_cast<uint64_t>(seed));
  check_cuda(cudaGetLastError(), "fill_pattern_");
}

Tensor count_mismatches(Tensor tensor, int64_t seed) {
  const Extent extent = extent_of(tensor);
  const int device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor result = torch::stable::new_zeros(tensor, {}, torch::headeronly::ScalarType::Long);
  if (extent.total_bytes == 0) return result;
  auto* const total = static_cast<unsigned long long*>(result.mutable_data_ptr());
  count_kernel<<<grid_for(extent, device), kThreads, 0, current_stream(device)>>>(
      extent, static_cast<uint64_t>(seed), total);
  check_cuda(cudaGetLastError(), "count_mismatches");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  m.impl("fill_pattern_", TORCH_BOX(&fill_pattern));
  m.impl("count_mismatches", TORCH_BOX(&count_mismatches));
}

}  // namespace vramkit::ops
