// Sorting, choosing and adding up on a CUDA device, by CUB.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "ops/embedding/memory.h"

namespace vramkit::embedding::device {

/// Where the calls run, and where their intermediate results are.
struct Place {
  cudaStream_t stream;
  const Allocate& allocate;
};

void check_cuda(cudaError_t status, const char* call);

/// Sorts stably by the lowest `bits` bits of the keys.
void sort_pairs(const Place& place, const uint32_t* keys, uint32_t* sorted_keys,
                const uint32_t* values, uint32_t* sorted_values, int64_t count, int bits);
void sort_pairs(const Place& place, const uint64_t* keys, uint64_t* sorted_keys,
                const uint32_t* values, uint32_t* sorted_values, int64_t count, int bits);

/// The same, in storage that the caller has: so many bytes.
uint64_t sort_bytes(int64_t count, int bits);
void sort_pairs_in(cudaStream_t stream, char* storage, uint64_t storage_bytes, const uint32_t* keys,
                   uint32_t* sorted_keys, const uint32_t* values, uint32_t* sorted_values,
                   int64_t count, int bits);

/// The positions of the flags that are not 0, in their order, and their number.
void select_flagged(const Place& place, const uint8_t* flags, int64_t count, uint32_t* chosen,
                    uint32_t* number);

void add_up(const Place& place, const double* values, int64_t count, double* total);

}  // namespace vramkit::embedding::device
