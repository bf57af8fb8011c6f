#include "loader/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vramkit {

#if defined(__x86_64__)
namespace {

// What the stores combine in the write buffers: a line that is written in parts costs a read.
constexpr size_t kLineBytes = 64;
constexpr size_t kStepBytes = 2 * kLineBytes;

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}

__attribute__((target("avx2"))) void stream_avx2(char* to, const char* from, size_t bytes) {
  const size_t head = (kLineBytes - reinterpret_cast<uintptr_t>(to) % kLineBytes) % kLineBytes;
  if (bytes < head + kLineBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  const auto line = [](char* target, const char* source) __attribute__((target("avx2"))) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + 32), high);
  };
  for (; bytes >= kStepBytes; to += kStepBytes, from += kStepBytes, bytes -= kStepBytes) {
    line(to, from);
    line(to + kLineBytes, from + kLineBytes);
  }
  if (bytes >= kLineBytes) {
    line(to, from);
    to += kLineBytes;
    from += kLineBytes;
    bytes -= kLineBytes;
  }
  std::memcpy(to, from, bytes);
}

}  // namespace

void stream_unfenced(void* to, const void* from, size_t bytes) noexcept {
  if (!has_avx2()) {
    std::memcpy(to, from, bytes);
    return;
  }
  stream_avx2(static_cast<char*>(to), static_cast<const char*>(from), bytes);
}

void stream_fence() noexcept { _mm_sfence(); }

#else

void stream_unfenced(void* to, const void* from, size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
}

void stream_fence() noexcept {}

#endif

void stream_copy(void* to, const void* from, size_t bytes) noexcept {
  if (bytes < kStreamMinBytes) {
    // memcpy must not be given null, not even for nothing.
    if (bytes > 0) std::memcpy(to, from, bytes);
    return;
  }
  stream_unfenced(to, from, bytes);
  stream_fence();
}

}  // namespace vramkit
