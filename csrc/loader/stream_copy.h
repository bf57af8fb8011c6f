// Copies that go past the caches: for destinations that another device or process reads next.
#pragma once

#include <cstddef>

namespace vramkit {

/// Below this size `stream_copy` is memcpy: a short copy fits into the caches, and the fence costs
/// more than the stores save.
inline constexpr size_t kStreamMinBytes = 8 * 1024;

/// memcpy whose stores bypass the caches where the CPU has AVX2 and the copy is large. Any
/// alignment; the ranges must not overlap. The stores are complete for every other thread and
/// device that learns of the copy after it has returned. Thread-safe.
void stream_copy(void* to, const void* from, size_t bytes) noexcept;

/// The same for one of many copies: of any size, and the stores are complete only after
/// `stream_fence` in the same thread.
void stream_unfenced(void* to, const void* from, size_t bytes) noexcept;
void stream_fence() noexcept;

}  // namespace vramkit
