// The lanes of a warp on a GPU.
#pragma once

#include <type_traits>

#include "ops/conv/matrix.h"
#include "ops/conv/vectors.h"

namespace vramkit::ops {

/// Adds the product of 16 x 16 and 16 x 8 elements to a sum.
template <class Type>
__device__ void multiply_add(const LeftFragment& a, const RightFragment& b, SumFragment& sum) {
  float* const c = sum.values;
  if constexpr (std::is_same_v<Type, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
          "r"(b.words[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
          "r"(b.words[1]));
  }
}

/// The same for 16 x 8 and 8 x 8: the left operand is the first or the second half of a fragment.
template <class Type, int kHalf>
__device__ void multiply_add_half(const LeftFragment& a, uint32_t b, SumFragment& sum) {
  float* const c = sum.values;
  const uint32_t* const words = a.words + 2 * kHalf;
  if constexpr (std::is_same_v<Type, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(words[0]), "r"(words[1]), "r"(b));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(words[0]), "r"(words[1]), "r"(b));
  }
}

/// A warp, as the code of its lanes sees it: each has its own part of what the warp holds. The
/// CPU's CpuWarp has the same members.
class CudaWarp {
 public:
  template <class Value>
  using Lanes = Value;

  __device__ explicit CudaWarp(int lane) : lane_(lane) {}

  template <class F>
  VRAMKIT_ON_BOTH void each(const F& f) const {
    f(lane_);
  }

  template <class Value>
  VRAMKIT_ON_BOTH static Value& at(Value& lanes, int) {
    return lanes;
  }

  /// Loads four matrices of 8 x 8: lane i has the address of row i % 8 of matrix i / 8, 16 bytes. A
  /// lane gets two neighbours of row g of each matrix; `kTransposed`: of column g.
  template <bool kTransposed, class F>
  VRAMKIT_ON_BOTH void load(LeftFragment& to, const F& row_of) const {
#if defined(__CUDA_ARCH__)
    const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(row_of(lane_)));
    uint32_t* const words = to.words;
    if constexpr (kTransposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(address)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(address)
                   : "memory");
    }
#endif
  }

  template <class Type>
  VRAMKIT_ON_BOTH void multiply(const LeftFragment& left, const RightFragment& right,
                                SumFragment& sum) const {
#if defined(__CUDA_ARCH__)
    multiply_add<Type>(left, right, sum);
#endif
  }

  template <class Type, int kHalf>
  VRAMKIT_ON_BOTH void multiply_half(const LeftFragment& left, uint32_t right,
                                     SumFragment& sum) const {
#if defined(__CUDA_ARCH__)
    multiply_add_half<Type, kHalf>(left, right, sum);
#endif
  }

  /// Four lanes that are neighbours exchange words: lane t gets word t of each, in their order.
  VRAMKIT_ON_BOTH void transpose([[maybe_unused]] Vector<uint32_t, 4>& words) const {
#if defined(__CUDA_ARCH__)
    order(words);
    VRAMKIT_UNROLL
    for (int i = 1; i < 4; ++i) words.at[i] = __shfl_xor_sync(0xffffffffU, words.at[i], i);
    order(words);
#endif
  }

 private:
  /// Word i becomes word i ^ t, without indices that are known only at run time.
  VRAMKIT_ON_BOTH void order(Vector<uint32_t, 4>& words) const {
    swap_if((lane_ & 1) != 0, words.at[0], words.at[1]);
    swap_if((lane_ & 1) != 0, words.at[2], words.at[3]);
    swap_if((lane_ & 2) != 0, words.at[0], words.at[2]);
    swap_if((lane_ & 2) != 0, words.at[1], words.at[3]);
  }

  VRAMKIT_ON_BOTH static void swap_if(bool swap, uint32_t& a, uint32_t& b) {
    const uint32_t first = swap ? b : a;
    b = swap ? a : b;
    a = first;
  }

  int lane_;
};

}  // namespace vramkit::ops
