#include "ops/conv/rectify.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

namespace vramkit::ops {
namespace {

// A task takes at least so many elements: below, a thread costs more than it saves.
constexpr int64_t kElementsPerTask = 1 << 15;
// What is added up has just been written: so many elements are still in the L1 or L2 cache.
constexpr int64_t kElementsPerBlock = 1 << 13;
// The rows of a channels-last tensor are added up in so many parts, whatever the number of threads,
// so that a sum has the same rounding on every machine.
constexpr int64_t kParts = 64;
// Elements whose flags are kept at a time, a byte each, between them and the bits of a mask.
constexpr int64_t kFlags = 2048;

template <class Type>
auto* bits_of(const Tensor& tensor) {
  return static_cast<const typename Type::Bits*>(tensor.const_data_ptr());
}

template <class Type>
auto* mutable_bits_of(const Tensor& tensor) {
  return static_cast<typename Type::Bits*>(tensor.mutable_data_ptr());
}

template <class Type>
void rectify(typename Type::Bits* x, int64_t size) {
  for (int64_t i = 0; i < size; ++i) x[i] &= kept<Type>(x[i]);
}

/// Rectifies elements that begin at a multiple of eight, and writes their part of the mask.
template <class Type>
void rectify_and_pack(typename Type::Bits* x, int64_t size, uint8_t* mask) {
  uint8_t flags[kFlags];
  for (int64_t begin = 0; begin < size; begin += kFlags) {
    const int64_t count = std::min(kFlags, size - begin);
    for (int64_t i = 0; i < count; ++i) {
      const auto keep = kept<Type>(x[begin + i]);
      x[begin + i] &= keep;
      flags[i] = static_cast<uint8_t>(keep & 1);
    }
    std::fill(flags + count, flags + 8 * mask_bytes(count), uint8_t{0});
    for (int64_t byte = 0; byte < mask_bytes(count); ++byte) {
      uint64_t word;
      std::memcpy(&word, flags + 8 * byte, sizeof word);
      // Moves the lowest bit of byte i to bit 56 + i.
      mask[begin / 8 + byte] = static_cast<uint8_t>(word * 0x0102040810204080ULL >> 56);
    }
  }
}

/// For each byte of a mask, eight bytes that are all ones or zero.
constexpr std::array<uint64_t, 256> kSpread = [] {
  std::array<uint64_t, 256> table{};
  for (std::size_t byte = 0; byte < table.size(); ++byte) {
    for (std::size_t bit = 0; bit < 8; ++bit) {
      if ((byte >> bit & 1) != 0) table[byte] |= uint64_t{0xff} << (8 * bit);
    }
  }
  return table;
}();

/// Copies the gradient where the output was kept, and writes zeros elsewhere.
template <class Type>
struct FromOutput {
  using Bits = typename Type::Bits;
  const Bits* grad;
  const Bits* output;
  Bits* result;

  void operator()(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      result[i] = static_cast<Bits>(grad[i] & kept<Type>(output[i]));
    }
  }
};

template <class Type>
struct FromMask {
  using Bits = typename Type::Bits;
  const Bits* grad;
  const uint8_t* mask;
  Bits* result;

  void operator()(int64_t begin, int64_t end) const {
    int8_t flags[kFlags];
    while (begin < end) {
      const int64_t first_byte = begin / 8;
      const int64_t block_end = std::min(end, 8 * first_byte + kFlags);
      for (int64_t byte = first_byte; byte < mask_bytes(block_end); ++byte) {
        std::memcpy(flags + 8 * (byte - first_byte), &kSpread[mask[byte]], sizeof(uint64_t));
      }
      const int8_t* const flag = flags + begin % 8;
      const Bits* const from = grad + begin;
      Bits* const to = result + begin;
      for (int64_t i = 0; i < block_end - begin; ++i) {
        to[i] = static_cast<Bits>(from[i] & static_cast<Bits>(flag[i]));
      }
      begin = block_end;
    }
  }
};

template <class Type>
typename Type::Sum sum_of(const typename Type::Bits* values, int64_t size) {
  // Independent sums, which the compiler keeps in a vector.
  constexpr int kLanes = 16;
  using Sum = typename Type::Sum;
  Sum lanes[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += Type::widen(values[i + lane]);
  }
  Sum total = 0;
  for (const Sum lane : lanes) total += lane;
  for (int64_t i = whole; i < size; ++i) total += Type::widen(values[i]);
  return total;
}

template <class Type>
void add_rows(const typename Type::Bits* rows, int64_t count, int64_t channels,
              typename Type::Sum* sums) {
  for (int64_t row = 0; row < count; ++row, rows += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += Type::widen(rows[c]);
    }
  }
}

/// Applies `pass` to the planes of a contiguous tensor; sums[n * channels + c] gets the sum of a
/// plane of its result.
template <class Type, class Pass>
std::vector<double> pass_over_planes(const Layout& layout, const Pass& pass) {
  const int64_t planes = layout.batch * layout.channels;
  std::vector<double> sums(static_cast<std::size_t>(planes));
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, layout.inner));
  torch::stable::parallel_for(0, planes, grain, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t end = (plane + 1) * layout.inner;
      double sum = 0;
      for (int64_t at = end - layout.inner; at < end; at += kElementsPerBlock) {
        const int64_t block_end = std::min(end, at + kElementsPerBlock);
        pass(at, block_end);
        sum += sum_of<Type>(pass.result + at, block_end - at);
      }
      sums[static_cast<std::size_t>(plane)] = sum;
    }
  });
  return sums;
}

/// Applies `pass` to parts of the rows of a channels-last tensor; sums[part * channels + c] gets
/// the sum of channel c in a part of its result.
template <class Type, class Pass>
std::vector<double> pass_over_rows(const Layout& layout, const Pass& pass) {
  using Sum = typename Type::Sum;
  const int64_t channels = layout.channels;
  const int64_t rows = layout.batch * layout.inner;
  const int64_t rows_per_block = std::max<int64_t>(1, kElementsPerBlock / channels);
  std::vector<double> sums(static_cast<std::size_t>(kParts * channels));
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask * kParts / layout.size());
  torch::stable::parallel_for(0, kParts, grain, [&](int64_t first, int64_t last) {
    std::vector<Sum> block(static_cast<std::size_t>(channels));
    for (int64_t part = first; part < last; ++part) {
      const int64_t end = rows * (part + 1) / kParts;
      for (int64_t row = rows * part / kParts; row < end; row += rows_per_block) {
        const int64_t count = std::min(rows_per_block, end - row);
        pass(row * channels, (row + count) * channels);
        std::fill(block.begin(), block.end(), Sum{0});
        add_rows<Type>(pass.result + row * channels, count, channels, block.data());
        for (int64_t c = 0; c < channels; ++c) {
          sums[static_cast<std::size_t>(part * channels + c)] += block[static_cast<std::size_t>(c)];
        }
      }
    }
  });
  return sums;
}

template <class Type, class Pass>
Tensor bias_gradient(const Tensor& grad, const Layout& layout, const Pass& pass) {
  const std::vector<double> sums = layout.channels_last ? pass_over_rows<Type>(layout, pass)
                                                        : pass_over_planes<Type>(layout, pass);
  Tensor result = torch::stable::new_empty(grad, {layout.channels});
  auto* const values = static_cast<typename Type::Value*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < layout.channels; ++c) {
    double total = 0;
    for (auto i = static_cast<std::size_t>(c); i < sums.size();
         i += static_cast<std::size_t>(layout.channels)) {
      total += sums[i];
    }
    values[c] = static_cast<typename Type::Value>(static_cast<typename Type::Sum>(total));
  }
  return result;
}

template <class Type, class Pass>
Tensor run(const Tensor& grad, const Layout& layout, bool want_bias, const Pass& pass) {
  if (want_bias && layout.size() != 0) return bias_gradient<Type>(grad, layout, pass);
  torch::stable::parallel_for(0, layout.size(), kElementsPerTask, pass);
  return torch::stable::new_zeros(grad, {want_bias ? layout.channels : 0});
}

Gradients relu_backward(Tensor grad, Tensor output, bool want_bias) {
  check_output(grad, output);
  Tensor result = torch::stable::empty_like(grad);
  Tensor bias;
  for_type_of(grad, [&]<class Type>(Type) {
    const FromOutput<Type> pass{bits_of<Type>(grad), bits_of<Type>(output),
                                mutable_bits_of<Type>(result)};
    bias = run<Type>(grad, layout_of(grad), want_bias, pass);
  });
  return {result, bias};
}

Gradients relu_mask_backward(Tensor grad, Tensor mask, bool want_bias) {
  const Layout layout = layout_of(grad);
  check_mask(grad, mask);
  Tensor result = torch::stable::empty_like(grad);
  Tensor bias;
  for_type_of(grad, [&]<class Type>(Type) {
    const FromMask<Type> pass{bits_of<Type>(grad),
                              static_cast<const uint8_t*>(mask.const_data_ptr()),
                              mutable_bits_of<Type>(result)};
    bias = run<Type>(grad, layout, want_bias, pass);
  });
  return {result, bias};
}

template <class Type>
void add_bias(const Tensor& x, const Tensor& bias) {
  using Value = typename Type::Value;
  const Layout layout = layout_of(x);
  auto* const values = static_cast<Value*>(x.mutable_data_ptr());
  const auto* const biases = static_cast<const Value*>(bias.const_data_ptr());
  const int64_t step = layout.channels_last ? 1 : layout.inner;
  torch::stable::parallel_for(0, layout.size(), kElementsPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] += biases[i / step % layout.channels];
  });
}

void bias_relu_(Tensor x, Tensor bias) {
  const Layout layout = layout_of(x);
  check_bias(x, bias);
  for_type_of(x, [&]<class Type>(Type) {
    add_bias<Type>(x, bias);
    auto* const bits = mutable_bits_of<Type>(x);
    torch::stable::parallel_for(
        0, layout.size(), kElementsPerTask,
        [=](int64_t begin, int64_t end) { rectify<Type>(bits + begin, end - begin); });
  });
}

Tensor relu_mask_(Tensor x, std::optional<Tensor> bias) {
  const int64_t size = layout_of(x).size();
  if (bias.has_value()) check_bias(x, *bias);
  Tensor mask = new_mask(x);
  auto* const bytes = static_cast<uint8_t*>(mask.mutable_data_ptr());
  for_type_of(x, [&]<class Type>(Type) {
    if (bias.has_value()) add_bias<Type>(x, *bias);
    auto* const bits = mutable_bits_of<Type>(x);
    torch::stable::parallel_for(
        0, mask.numel(), kElementsPerTask / 8, [=](int64_t begin, int64_t end) {
          rectify_and_pack<Type>(bits + 8 * begin, std::min(size, 8 * end) - 8 * begin,
                                 bytes + begin);
        });
  });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def("bias_relu_(Tensor(a!) x, Tensor bias) -> ()");
  m.def("relu_mask_(Tensor(a!) x, Tensor? bias) -> Tensor");
  m.def("relu_backward(Tensor grad, Tensor output, bool bias) -> (Tensor, Tensor)");
  m.def("relu_mask_backward(Tensor grad, Tensor mask, bool bias) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  m.impl("bias_relu_", TORCH_BOX(&bias_relu_));
  m.impl("relu_mask_", TORCH_BOX(&relu_mask_));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
  m.impl("relu_mask_backward", TORCH_BOX(&relu_mask_backward));
}

}  // namespace vramkit::ops
