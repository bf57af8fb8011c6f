// Tensors without values, made without the dispatcher's boxes, which cost the host three times as
// much as the tensor.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vramkit::embedding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr size_t kMostDims = 64;  // as many as torch's tensors have

/// Returns a contiguous tensor on a device; what throws names aoti_torch_empty_strided.
inline Tensor new_tensor(const int64_t* sizes, size_t dims, ScalarType type, int32_t device_type,
                         int32_t device) {
  STD_TORCH_CHECK(dims <= kMostDims, "vramkit: a tensor of ", dims, " dimensions");
  std::array<int64_t, kMostDims> strides;
  int64_t stride = 1;
  for (size_t i = dims; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes, strides.data(),
                                                  dtype, device_type, device, &made));
  return Tensor(made);
}

/// Returns one where another tensor is.
inline Tensor new_like(const Tensor& like, const int64_t* sizes, size_t dims, ScalarType type) {
  int32_t device_type = 0;
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device));
  return new_tensor(sizes, dims, type, device_type, device);
}
inline Tensor new_like(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return new_like(like, sizes.data(), sizes.size(), type);
}
inline Tensor new_like(const Tensor& like, int64_t size, ScalarType type) {
  return new_like(like, &size, 1, type);
}

/// Returns one of one dimension.
inline Tensor new_on_host(int64_t size, ScalarType type) {
  return new_tensor(&size, 1, type, aoti_torch_device_type_cpu(), -1);
}
inline Tensor new_on_cuda(int64_t size, ScalarType type, int32_t device) {
  return new_tensor(&size, 1, type, aoti_torch_device_type_cuda(), device);
}

}  // namespace vramkit::embedding
