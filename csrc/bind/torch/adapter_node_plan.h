// What a node of a convolution calls, as chosen in Python (vramkit/nn/_selection.py).
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace vramkit::adapter {

/// What computes an output or a gradient; the names are those of vramkit/nn/_candidates.py.
struct Algorithm {
  enum class Kind : std::uint8_t { kTorch, kCudnn, kDepthwise, kGrouped, kStem, kPython };

  Kind kind = Kind::kPython;
  int64_t variant = 0;

  bool operator==(const Algorithm&) const = default;
};

/// Where a convolution reads, and what computes it. Never changed once it is registered.
struct Plan {
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  int64_t groups = 1;
  Algorithm forward;
  Algorithm grad_input;   // kPython: not chosen yet, or Python alone knows it
  Algorithm grad_weight;  // as grad_input

  bool operator==(const Plan&) const = default;
};

/// Returns what computes an output; none if there is no code here for the name.
std::optional<Algorithm> forward_of(std::string_view name);

/// Returns what computes a gradient: kPython for every name without code here.
Algorithm gradient_of(std::string_view name);

/// Keeps a plan for ever and returns its number; equal plans have one number. Any thread may call.
int64_t register_plan(Plan plan);

/// Returns a registered plan. Throws for a number that no plan has. Any thread may call.
const Plan& plan_at(int64_t number);

/// Returns the memory format of a tensor without gaps; none for any other order.
std::optional<at::MemoryFormat> format_of(const at::Tensor& tensor);

/// Returns relu(conv(x, weight, bias)), below autograd.
at::Tensor compute_output(const Plan& plan, const at::Tensor& x, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias);

/// Tells whether a gradient needs PyTorch's operators: those of others have no gradients
/// themselves, and take no batches of gradients (vmap).
bool needs_torch(const at::Tensor& grad);

/// Gradients of the input and the weight; undefined where not wanted.
using Gradients = std::array<at::Tensor, 2>;

/// Returns PyTorch's gradients, which are differentiable themselves.
Gradients torch_gradients(const Plan& plan, const at::Tensor& grad, const at::Tensor& x,
                          const at::Tensor& weight, std::array<bool, 2> wanted);

/// Returns the gradients as the plan says; `call` is the number by which Python knows it.
Gradients compute_gradients(const Plan& plan, int64_t call, const at::Tensor& grad,
                            const at::Tensor& x, const at::Tensor& weight,
                            std::array<bool, 2> wanted);

/// The gradient of ReLU, and of the bias if wanted.
struct Rectified {
  at::Tensor grad;
  at::Tensor bias;  // undefined if not wanted
};

/// Returns both from the output in one pass, or by PyTorch's operators where they are needed.
Rectified gradients_of_relu(const at::Tensor& grad, const at::Tensor& output, bool wants_bias);

/// Overwrites `x`, which has no gaps, by relu(x + bias), below autograd. Returns its mask, one bit
/// an element, if wanted.
at::Tensor rectify(const at::Tensor& x, const std::optional<at::Tensor>& bias, bool mask);

/// As gradients_of_relu, from the mask of a tensor in the memory format.
Rectified gradients_by_mask(const at::Tensor& grad, const at::Tensor& mask, at::MemoryFormat format,
                            bool wants_bias);

}  // namespace vramkit::adapter
