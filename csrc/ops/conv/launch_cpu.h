// The blocks of a kernel on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace vramkit::ops {

/// Calls f(block) for each of so many blocks, in PyTorch's threads.
template <class F>
void run_blocks(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) f(static_cast<int>(i));
  });
}

}  // namespace vramkit::ops
