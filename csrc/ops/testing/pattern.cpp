#include "ops/testing/pattern.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstring>

namespace vramkit::ops {
namespace {

using torch::stable::Tensor;

// Below this many words a thread costs more than it saves.
constexpr int64_t kWordsPerTask = 1 << 16;

int64_t size_bytes(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(),
                  "vramkit: the pattern covers whole memory blocks, so the tensor must be "
                  "contiguous; call contiguous() on it first");
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

/// The bytes that a word covers: fewer than four for the last one.
std::size_t covered(int64_t word, int64_t total_bytes) {
  const int64_t rest = total_bytes - word * static_cast<int64_t>(kWordBytes);
  return static_cast<std::size_t>(rest < static_cast<int64_t>(kWordBytes) ? rest : kWordBytes);
}

int64_t words_in(int64_t total_bytes) {
  return (total_bytes + static_cast<int64_t>(kWordBytes) - 1) / static_cast<int64_t>(kWordBytes);
}

void fill_pattern(Tensor tensor, int64_t seed) {
  const int64_t total_bytes = size_bytes(tensor);
  auto* const bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr());
  torch::stable::parallel_for(
      0, words_in(total_bytes), kWordsPerTask, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t word = pattern_word(static_cast<uint64_t>(i), static_cast<uint64_t>(seed));
          std::memcpy(bytes + i * static_cast<int64_t>(kWordBytes), &word, covered(i, total_bytes));
        }
      });
}

Tensor count_mismatches(Tensor tensor, int64_t seed) {
  const int64_t total_bytes = size_bytes(tensor);
  const auto* const bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  std::atomic<int64_t> mismatches{0};
  torch::stable::parallel_for(
      0, words_in(total_bytes), kWordsPerTask, [&, bytes](int64_t begin, int64_t end) {
        int64_t found = 0;
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t word = pattern_word(static_cast<uint64_t>(i), static_cast<uint64_t>(seed));
          found += std::memcmp(bytes + i * static_cast<int64_t>(kWordBytes), &word,
                               covered(i, total_bytes)) != 0;
        }
        mismatches.fetch_add(found, std::memory_order_relaxed);
      });
  Tensor result = torch::stable::new_zeros(tensor, {}, torch::headeronly::ScalarType::Long);
  *static_cast<int64_t*>(result.mutable_data_ptr()) = mismatches.load();
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(vramkit, m) {
  m.def("fill_pattern_(Tensor(a!) t, int seed) -> ()");
  m.def("count_mismatches(Tensor t, int seed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("fill_pattern_", TORCH_BOX(&fill_pattern));
  m.impl("count_mismatches", TORCH_BOX(&count_mismatches));
}

}  // namespace vramkit::ops
