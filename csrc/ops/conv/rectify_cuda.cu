#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "ops/conv/launch_cuda.h"
#include "ops/conv/rectify.h"

namespace vramkit::ops {
namespace {

constexpr int kWarp = 32;
// A thread takes so many elements at a time: a byte of the mask, and whole 16-byte vectors.
constexpr int kGroup = 8;
// A warp adds up at most so many elements of a plane.
constexpr int64_t kPlanePart = 1 << 13;
// A thread has so many groups on their way from memory at a time.
constexpr int kAhead = 4;
// A thread adds up at least so many rows of a channels-last tensor.
constexpr int64_t kRowsPerThread = 16;

template <class Type>
struct alignas(16) Group {
  typename Type::Bits bits[kGroup];
};

template <class Type>
__device__ Group<Type> load(const typename Type::Bits* from) {
  return *reinterpret_cast<const Group<Type>*>(from);
}

template <class Type>
__device__ void store(typename Type::Bits* to, const Group<Type>& group) {
  *reinterpret_cast<Group<Type>*>(to) = group;
}

bool vectors_fit(const void* a, const void* b = nullptr, const void* c = nullptr) {
  const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                    reinterpret_cast<uintptr_t>(c);
  return bits % 16 == 0;
}

/// Finds the bias of consecutive elements. Index is 32 bits wide where the tensor allows, as
/// divisions of 64 bits take longer than the memory.
template <class Type, class Index>
class Biases {
 public:
  using Bits = typename Type::Bits;
  using Value = typename Type::Value;

  Biases(const Value* values, const Layout& layout)
      : values_(values),
        channels_(static_cast<Index>(layout.channels)),
        run_(static_cast<Index>(layout.channels_last ? 1 : layout.inner)),
        rows_of_groups_(run_ == 1 && channels_ % kGroup == 0 && vectors_fit(values)),
        runs_of_groups_(run_ % kGroup == 0) {}

  /// Adds the biases of the elements from `first` on.
  __device__ void add_to(Bits* bits, Index first, int count) const {
    Index channel = first / run_ % channels_;
    Index rest = run_ - first % run_;
    for (int i = 0; i < count; ++i) {
      bits[i] = sum(bits[i], values_[channel]);
      if (--rest == 0) {
        rest = run_;
        channel = channel + 1 == channels_ ? 0 : channel + 1;
      }
    }
  }

  /// Adds the biases of a group that begins at a multiple of its size.
  __device__ void add_to(Group<Type>& group, Index first) const {
    if (rows_of_groups_) {
      const auto biases = load<Type>(reinterpret_cast<const Bits*>(values_) + first % channels_);
      for (int i = 0; i < kGroup; ++i) {
        group.bits[i] = sum(group.bits[i], bits_as<Value>(biases.bits[i]));
      }
    } else if (runs_of_groups_) {
      const Value bias = values_[first / run_ % channels_];
      for (auto& bits : group.bits) bits = sum(bits, bias);
    } else {
      add_to(group.bits, first, kGroup);
    }
  }

 private:
  __device__ static Bits sum(Bits bits, Value bias) {
    const auto total = Type::widen(bits) + static_cast<typename Type::Sum>(bias);
    return bits_as<Bits>(static_cast<Value>(total));
  }

  const Value* values_;
  Index channels_;
  Index run_;
  bool rows_of_groups_;  // a group lies in the channels of one pixel, and its biases are a vector
  bool runs_of_groups_;  // a group lies in one channel
};

/// Sets to zero what ReLU does not keep; returns a bit for each element that it keeps.
template <class Type>
__device__ uint8_t rectify_bits(typename Type::Bits (&bits)[kGroup]) {
  unsigned int packed = 0;
  for (int i = 0; i < kGroup; ++i) {
    const auto keep = kept<Type>(bits[i]);
    bits[i] &= keep;
    packed |= static_cast<unsigned int>(keep & 1) << i;
  }
  return static_cast<uint8_t>(packed);
}

/// Adds the bias if there is one, rectifies, and writes the mask if one is wanted.
template <class Type, class Index, bool kBias, bool kMask>
__global__ void rectify_kernel(typename Type::Bits* x, Index size, bool vectors,
                               Biases<Type, Index> biases, uint8_t* mask) {
  const Index whole = vectors ? size / kGroup : 0;
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  const Index own = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (Index g = own; g < whole; g += kAhead * stride) {
    Group<Type> groups[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const Index at = g + i * stride;
      if (at < whole) groups[i] = load<Type>(x + at * kGroup);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const Index at = g + i * stride;
      if (at >= whole) continue;
      if constexpr (kBias) biases.add_to(groups[i], at * kGroup);
      const uint8_t packed = rectify_bits<Type>(groups[i].bits);
      store<Type>(x + at * kGroup, groups[i]);
      if constexpr (kMask) mask[at] = packed;
    }
  }
  for (Index g = whole + own; g < (size + kGroup - 1) / kGroup; g += stride) {
    const Index first = g * kGroup;
    const int count = static_cast<int>(min(Index{kGroup}, size - first));
    typename Type::Bits bits[kGroup] = {};
    for (int i = 0; i < count; ++i) bits[i] = x[first + i];
    if constexpr (kBias) biases.add_to(bits, first, count);
    const uint8_t packed = rectify_bits<Type>(bits);
    for (int i = 0; i < count; ++i) x[first + i] = bits[i];
    if constexpr (kMask) mask[g] = packed;
  }
}

template <class Type>
struct FromOutput {
  using Bits = typename Type::Bits;
  const Bits* output;

  __device__ Bits keep(int64_t i) const { return kept<Type>(output[i]); }
  __device__ Group<Type> keep_group(int64_t first) const {
    Group<Type> group = load<Type>(output + first);
    for (auto& bits : group.bits) bits = kept<Type>(bits);
    return group;
  }
};

template <class Type>
struct FromMask {
  using Bits = typename Type::Bits;
  const uint8_t* mask;

  __device__ Bits keep(int64_t i) const {
    return static_cast<Bits>(-static_cast<int>(mask[i / 8] >> (i % 8) & 1));
  }
  __device__ Group<Type> keep_group(int64_t first) const {
    const int byte = mask[first / 8];
    Group<Type> group;
    for (int i = 0; i < kGroup; ++i) group.bits[i] = static_cast<Bits>(-(byte >> i & 1));
    return group;
  }
};

/// The gradient where the output was kept; zeros elsewhere.
template <class Type, class Source>
struct Pass {
  using Bits = typename Type::Bits;
  const Bits* grad;
  Source source;
  Bits* result;
  bool vectors;

  __device__ Bits one(int64_t i) const {
    const auto bits = static_cast<Bits>(grad[i] & source.keep(i));
    result[i] = bits;
    return bits;
  }
  __device__ Group<Type> group(int64_t first) const {
    Group<Type> group = load<Type>(grad + first);
    const Group<Type> keep = source.keep_group(first);
    for (int i = 0; i < kGroup; ++i) group.bits[i] &= keep.bits[i];
    store<Type>(result + first, group);
    return group;
  }
};

template <class P>
__global__ void plain_kernel(P pass, int64_t size) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t groups = pass.vectors ? size / kGroup : 0;
  for (int64_t g = first; g < groups; g += stride) pass.group(g * kGroup);
  for (int64_t i = groups * kGroup + first; i < size; i += stride) pass.one(i);
}

/// A warp takes a part of a plane; sums[plane * parts + part] gets its sum.
template <class Type, class P>
__global__ void plane_kernel(P pass, int64_t planes, int64_t inner, int64_t parts,
                             typename Type::Sum* sums) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / kWarp);
  int64_t item = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  for (; item < planes * parts; item += stride) {
    const int64_t begin = item % parts * kPlanePart;
    const int64_t end = min(begin + kPlanePart, inner);
    const int64_t base = item / parts * inner;
    typename Type::Sum sum = 0;
    // Planes of whole groups: every group lies in one plane and is aligned.
    if (pass.vectors && inner % kGroup == 0) {
      for (int64_t i = begin + lane * kGroup; i < end; i += kWarp * kGroup) {
        const Group<Type> group = pass.group(base + i);
        for (const auto bits : group.bits) sum += Type::widen(bits);
      }
    } else {
      for (int64_t i = begin + lane; i < end; i += kWarp) sum += Type::widen(pass.one(base + i));
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sum += __shfl_down_sync(0xffffffffU, sum, offset);
    }
    if (lane == 0) sums[item] = sum;
  }
}

/// A thread takes kWidth neighbouring channels (a group, or one) of some rows;
/// sums[blockIdx.x * channels + c] gets the sums of a block.
template <class Type, int kWidth, class P>
__global__ void row_kernel(P pass, int64_t rows, int64_t channels, typename Type::Sum* sums) {
  using Sum = typename Type::Sum;
  __shared__ Sum shared[kThreads * kWidth];
  const int64_t channel = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  const bool inside = channel < channels;
  Sum own[kWidth] = {};
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; inside && row < rows;
       row += stride) {
    if constexpr (kWidth == kGroup) {
      const Group<Type> group = pass.group(row * channels + channel);
      for (int i = 0; i < kWidth; ++i) own[i] += Type::widen(group.bits[i]);
    } else {
      own[0] += Type::widen(pass.one(row * channels + channel));
    }
  }
  const unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int i = 0; i < kWidth; ++i) shared[thread * kWidth + i] = own[i];
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  for (int i = 0; i < kWidth; ++i) {
    Sum sum = 0;
    for (unsigned int y = 0; y < blockDim.y; ++y) {
      sum += shared[(y * blockDim.x + threadIdx.x) * kWidth + i];
    }
    sums[blockIdx.x * channels + channel + i] = sum;
  }
}

/// A warp adds up sums[(batch * channels + c) * parts + part] for one channel, in a fixed order.
template <class Type>
__global__ void total_kernel(const typename Type::Sum* sums, int64_t batch, int64_t channels,
                             int64_t parts, typename Type::Value* result) {
  const int lane = threadIdx.x % kWarp;
  const int64_t c = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (c >= channels) return;
  typename Type::Sum total = 0;
  for (int64_t i = lane; i < batch * parts; i += kWarp) {
    total += sums[(i / parts * channels + c) * parts + i % parts];
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    total += __shfl_down_sync(0xffffffffU, total, offset);
  }
  if (lane == 0) result[c] = static_cast<typename Type::Value>(total);
}

template <class Type>
Tensor new_sums(const Tensor& like, int64_t count) {
  const bool wide = sizeof(typename Type::Sum) == sizeof(double);
  return torch::stable::new_empty(like, {count}, wide ? ScalarType::Double : ScalarType::Float);
}

template <class Type>
auto* sums_in(const Tensor& tensor) {
  return static_cast<typename Type::Sum*>(tensor.mutable_data_ptr());
}

template <class Type>
Tensor total_of(const Launch& launch, const Tensor& sums, const Tensor& grad, int64_t batch,
                const Layout& layout, int64_t parts) {
  Tensor result = torch::stable::new_empty(grad, {layout.channels});
  constexpr int kChannelsPerBlock = kThreads / kWarp;
  const auto blocks =
      static_cast<unsigned int>((layout.channels + kChannelsPerBlock - 1) / kChannelsPerBlock);
  total_kernel<Type><<<blocks, kThreads, 0, launch.stream()>>>(
      sums_in<Type>(sums), batch, layout.channels, parts,
      static_cast<typename Type::Value*>(result.mutable_data_ptr()));
  return result;
}

template <class Type, class P>
Tensor run_planes(const Launch& launch, const Tensor& grad, const Layout& layout, const P& pass) {
  const int64_t planes = layout.batch * layout.channels;
  const int64_t parts = (layout.inner + kPlanePart - 1) / kPlanePart;
  const Tensor sums = new_sums<Type>(grad, planes * parts);
  plane_kernel<Type><<<launch.blocks_for(planes * parts * kWarp), kThreads, 0, launch.stream()>>>(
      pass, planes, layout.inner, parts, sums_in<Type>(sums));
  return total_of<Type>(launch, sums, grad, layout.batch, layout, parts);
}

template <class Type, int kWidth, class P>
Tensor run_rows(const Launch& launch, const Tensor& grad, const Layout& layout, const P& pass) {
  const int64_t rows = layout.batch * layout.inner;
  const int64_t columns = (layout.channels + kWidth - 1) / kWidth;
  const auto width = static_cast<unsigned int>(std::min<int64_t>(columns, kWarp));
  const dim3 block(width, kThreads / width);
  const int64_t tiles = (columns + width - 1) / width;
  const int64_t wanted = (rows + block.y * kRowsPerThread - 1) / (block.y * kRowsPerThread);
  const int64_t most = std::max<int64_t>(1, launch.most_blocks() / tiles);
  const int64_t blocks = std::clamp<int64_t>(wanted, 1, most);
  const Tensor sums = new_sums<Type>(grad, blocks * layout.channels);
  const dim3 grid(static_cast<unsigned int>(blocks), static_cast<unsigned int>(tiles));
  row_kernel<Type, kWidth>
      <<<grid, block, 0, launch.stream()>>>(pass, rows, layout.channels, sums_in<Type>(sums));
  return total_of<Type>(launch, sums, grad, blocks, layout, 1);
}

template <class Type, class Source>
Tensor run(const Tensor& grad, const Tensor& result, const Source& source, bool vectors,
           bool want_bias) {
  using Bits = typename Type::Bits;
  const Layout layout = layout_of(grad);
  if (layout.size() == 0) {
    return torch::stable::new_zeros(grad, {want_bias ? layout.channels : 0});
  }
  const Launch launch(grad);
  const Pass<Type, Source> pass{static_cast<const Bits*>(grad.const_data_ptr()), source,
                                static_cast<Bits*>(result.mutable_data_ptr()), vectors};
  Tensor bias;
  if (!want_bias) {
    plain_kernel<<<launch.blocks_for(layout.size() / kGroup), kThreads, 0, launch.stream()>>>(
        pass, layout.size());
    bias = torch::stable::new_empty(grad, {0});
  } else if (!layout.channels_last) {
    bias = run_planes<Type>(launch, grad, layout, pass);
  } else if (vectors && layout.channels % kGroup == 0) {
    bias = run_rows<Type, kGroup>(launch, grad, layout, pass);
  } else {
    bias = run_rows<Type, 1>(launch, grad, layout, pass);
  }
  check_cuda(cudaGetLastError(), "the gradient of ReLU");
  return bias;
}

Gradients relu_backward(Tensor grad, Tensor output, bool want_bias) {
  check_output(grad, output);
  Tensor result = torch::stable::empty_like(grad);
  Tensor bias;
  const bool vectors =
      vectors_fit(grad.const_data_ptr(), output.const_data_ptr(), result.const_data_ptr());
  for_type_of(grad, [&]<class Type>(Type) {
    const auto* const bits = static_cast<const typename Type::Bits*>(output.const_data_ptr());
    bias = run<Type>(grad, result, FromOutput<Type>{bits}, vectors, want_bias);
  });
  return {result, bias};
}

Gradients relu_mask_backward(Tensor grad, Tensor mask, bool want_bias) {
  check_mask(grad, mask);
  Tensor result = torch::stable::empty_like(grad);
  Tensor bias;
  const bool vectors = vectors_fit(grad.const_data_ptr(), result.const_data_ptr());
  for_type_of(grad, [&]<class Type>(Type) {
    const FromMask<Type> source{static_cast<const uint8_t*>(mask.const_data_ptr())};
    bias = run<Type>(grad, result, source, vectors, want_bias);
  });
  return {result, bias};
}

template <class Type, class Index>
void rectify(const Tensor& x, const Layout& layout, const Tensor* bias, uint8_t* mask) {
  const Launch launch(x);
  const auto size = static_cast<Index>(layout.size());
  auto* const bits = static_cast<typename Type::Bits*>(x.mutable_data_ptr());
  const auto* const values =
      bias == nullptr ? nullptr : static_cast<const typename Type::Value*>(bias->const_data_ptr());
  const Biases<Type, Index> biases(values, layout);
  const auto start = [&](auto kernel) {
    kernel<<<launch.blocks_for(mask_bytes(layout.size())), kThreads, 0, launch.stream()>>>(
        bits, size, vectors_fit(bits), biases, mask);
  };
  if (mask == nullptr) {
    start(rectify_kernel<Type, Index, true, false>);
  } else if (bias != nullptr) {
    start(rectify_kernel<Type, Index, true, true>);
  } else {
    start(rectify_kernel<Type, Index, false, true>);
  }
  check_cuda(cudaGetLastError(), "bias and ReLU");
}

void rectify(const Tensor& x, const Tensor* bias, uint8_t* mask) {
  const Layout layout = layout_of(x);
  if (bias != nullptr) check_bias(x, *bias);
  if (layout.size() == 0) return;
  // Half of the range is left for the stride of the grid, which is added to an index.
  const bool narrow = layout.size() <= std::numeric_limits<int32_t>::max();
  for_type_of(x, [&]<class Type>(Type) {
    narrow ? rectify<Type, uint32_t>(x, layout, bias, mask)
           : rectify<Type, uint64_t>(x, layout, bias, mask);
  });
}

void bias_relu_(Tensor x, Tensor bias) { rectify(x, &bias, nullptr); }

Tensor relu_mask_(Tensor x, std::optional<Tensor> bias) {
  Tensor mask = new_mask(x);
  rectify(x, bias.has_value() ? &*bias : nullptr, static_cast<uint8_t*>(mask.mutable_data_ptr()));
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  m.impl("bias_relu_", TORCH_BOX(&bias_relu_));
  m.impl("relu_mask_", TORCH_BOX(&relu_mask_));
  m.impl("relu_backward", TORCH_BOX(&relu_backward));
  m.impl("relu_mask_backward", TORCH_BOX(&relu_mask_backward));
}

}  // namespace vramkit::ops
