// The operators that a node calls: PyTorch's by their C++ functions, vramkit's by the dispatcher.

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/cudnn_convolution_relu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "bind/torch/adapter_node_plan.h"

namespace vramkit::adapter {
namespace {

using at::Tensor;
using Kind = Algorithm::Kind;
using OptionalTensor = std::optional<Tensor>;

/// Throws the error that PyTorch's own operators throw where there is no memory: those on the
/// stable ABI make a runtime_error of it.
void throw_if_out_of_memory(const char* name, const std::runtime_error& error) {
  const std::string_view text = error.what();
  const bool made_a_tensor = text.find("aten::empty") != std::string_view::npos ||
                             text.find("aten::new_empty") != std::string_view::npos;
  TORCH_CHECK_WITH(OutOfMemoryError, !made_a_tensor, name,
                   ": out of memory: the device, or the MemoryPool that is active, has no room for "
                   "the result; use a smaller batch, or free memory");
}

/// An operator that is found by its name.
template <class Signature>
class Operator;

template <class Result, class... Arguments>
class Operator<Result(Arguments...)> {
 public:
  explicit Operator(const char* name)
      : name_(name),
        found_(c10::Dispatcher::singleton()
                   .findSchemaOrThrow(name, "")
                   .typed<Result(Arguments...)>()) {}

  Result call(Arguments... arguments) const {
    try {
      return found_.call(arguments...);
    } catch (const std::runtime_error& error) {
      throw_if_out_of_memory(name_, error);
      throw;
    }
  }

 private:
  const char* name_;
  c10::TypedOperatorHandle<Result(Arguments...)> found_;
};

template <class Signature>
Operator<Signature> find_operator(const char* name) {
  return Operator<Signature>(name);
}

Tensor convolve(const Plan& plan, const Tensor& x, const Tensor& weight,
                const OptionalTensor& bias) {
  const std::vector<int64_t> no_output_padding(plan.stride.size(), 0);
  return at::convolution(x, weight, bias, plan.stride, plan.padding, plan.dilation, false,
                         no_output_padding, plan.groups);
}

Tensor convolve_and_pass(const Plan& plan, const Tensor& x, const Tensor& weight,
                         const OptionalTensor& bias) {
  static const auto bias_relu =
      find_operator<void(const Tensor&, const Tensor&)>("vramkit::bias_relu_");
  Tensor output = convolve(plan, x, weight, std::nullopt);
  if (!bias.has_value()) return at::relu_(output);
  if (!format_of(output).has_value()) output = output.contiguous();
  bias_relu.call(output, *bias);
  return output;
}

/// By the kernels for depthwise convolutions, or those for groups.
Tensor convolve_in_groups(const Plan& plan, const Tensor& x, const Tensor& weight,
                          const OptionalTensor& bias) {
  using Signature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t,
                           int64_t, bool, int64_t);
  static const auto depthwise = find_operator<Signature>("vramkit::depthwise_conv_relu");
  static const auto grouped = find_operator<Signature>("vramkit::grouped_conv_relu");
  const auto& convolution = plan.forward.kind == Kind::kGrouped ? grouped : depthwise;
  return convolution.call(x, weight, bias, plan.stride.at(0), plan.padding.at(0),
                          plan.padding.at(1), true, plan.forward.variant);
}

Tensor convolve_stem(const Plan& plan, const Tensor& x, const Tensor& weight,
                     const OptionalTensor& bias) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t, bool, int64_t);
  static const auto convolution = find_operator<Signature>("vramkit::stem_conv_relu");
  return convolution.call(x, weight, bias, plan.padding.at(0), plan.padding.at(1), true,
                          plan.forward.variant);
}

Tensor own_grad_input(const Plan& plan, const Tensor& grad, const Tensor& x, const Tensor& weight) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
  static const auto depthwise = find_operator<Signature>("vramkit::depthwise_grad_input");
  static const auto grouped = find_operator<Signature>("vramkit::grouped_grad_input");
  const auto& gradient = plan.grad_input.kind == Kind::kGrouped ? grouped : depthwise;
  return gradient.call(grad, weight, x.size(2), x.size(3), plan.stride.at(0), plan.padding.at(0),
                       plan.padding.at(1), plan.grad_input.variant);
}

Tensor depthwise_grad_weight(const Plan& plan, const Tensor& grad, const Tensor& x,
                             const Tensor& weight) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, int64_t);
  static const auto gradient = find_operator<Signature>("vramkit::depthwise_grad_weight");
  return gradient.call(grad, x, weight.size(2), plan.stride.at(0), plan.padding.at(0),
                       plan.padding.at(1), plan.grad_weight.variant);
}

Tensor grouped_grad_weight(const Plan& plan, const Tensor& grad, const Tensor& x,
                           const Tensor& weight) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, bool, int64_t);
  static const auto gradient = find_operator<Signature>("vramkit::grouped_grad_weight");
  return gradient.call(grad, x, weight.size(1), plan.stride.at(0), plan.padding.at(0),
                       plan.padding.at(1), !weight.is_contiguous(), plan.grad_weight.variant);
}

Tensor own_grad_weight(const Plan& plan, const Tensor& grad, const Tensor& x,
                       const Tensor& weight) {
  return plan.grad_weight.kind == Kind::kGrouped ? grouped_grad_weight(plan, grad, x, weight)
                                                 : depthwise_grad_weight(plan, grad, x, weight);
}

bool is_deterministic() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() || context.deterministicCuDNN();
}

/// Asks Python, which chooses, computes, and from then on knows a plan with the choice.
Gradients choose_gradients(const Plan& plan, int64_t call, const Tensor& grad, const Tensor& x,
                           const Tensor& weight, std::array<bool, 2> wanted) {
  using Signature =
      std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef,
                                 at::IntArrayRef, at::IntArrayRef, int64_t, int64_t, bool, bool);
  static const auto choose = find_operator<Signature>("vramkit::choose_gradients");
  auto [input, filter] = choose.call(grad, x, weight, plan.stride, plan.padding, plan.dilation,
                                     plan.groups, call, wanted[0], wanted[1]);
  return {input, filter};
}

/// Returns the sum over all dimensions but that of the channels.
Tensor sum_of_channels(const Tensor& grad) {
  std::vector<int64_t> others;
  for (int64_t dim = 0; dim < grad.dim(); ++dim) {
    if (dim != 1) others.push_back(dim);
  }
  return grad.sum(others);
}

/// Returns the strides of a tensor of two or more dimensions without gaps.
std::vector<int64_t> strides_of(at::IntArrayRef sizes, at::MemoryFormat format) {
  if (format == at::MemoryFormat::ChannelsLast) return c10::get_channels_last_strides_2d(sizes);
  if (format == at::MemoryFormat::ChannelsLast3d) return c10::get_channels_last_strides_3d(sizes);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (std::size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

/// Returns a mask as booleans of the sizes and memory format of what it was made of.
Tensor unpack_mask(const Tensor& mask, at::IntArrayRef sizes, at::MemoryFormat format) {
  const Tensor bits = at::arange(8, mask.options());
  const Tensor flat = mask.unsqueeze(-1).bitwise_right_shift(bits).bitwise_and(1).flatten();
  const Tensor flags = flat.slice(0, 0, c10::multiply_integers(sizes)).to(at::kBool);
  return flags.as_strided(sizes, strides_of(sizes, format));
}

}  // namespace

bool needs_torch(const Tensor& grad) {
  // torch.autograd.grad(is_grads_batched=True) has the first, torch.func.vmap the second.
  constexpr c10::DispatchKeySet kBatched(
      {c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
  return at::GradMode::is_enabled() || grad.key_set().has_any(kBatched);
}

std::optional<at::MemoryFormat> format_of(const Tensor& tensor) {
  if (tensor.is_contiguous()) return at::MemoryFormat::Contiguous;
  for (const auto format : {at::MemoryFormat::ChannelsLast, at::MemoryFormat::ChannelsLast3d}) {
    const int64_t dimensions = format == at::MemoryFormat::ChannelsLast ? 4 : 5;
    if (tensor.dim() == dimensions && tensor.is_contiguous(format)) return format;
  }
  return std::nullopt;
}

Tensor compute_output(const Plan& plan, const Tensor& x, const Tensor& weight,
                      const OptionalTensor& bias) {
  switch (plan.forward.kind) {
    case Kind::kCudnn:
      return at::cudnn_convolution_relu(x, weight, bias, plan.stride, plan.padding, plan.dilation,
                                        plan.groups);
    case Kind::kDepthwise:
    case Kind::kGrouped:
      return convolve_in_groups(plan, x, weight, bias);
    case Kind::kStem:
      return convolve_stem(plan, x, weight, bias);
    default:
      return convolve_and_pass(plan, x, weight, bias);
  }
}

Gradients torch_gradients(const Plan& plan, const Tensor& grad, const Tensor& x,
                          const Tensor& weight, std::array<bool, 2> wanted) {
  const std::vector<int64_t> no_output_padding(plan.stride.size(), 0);
  auto [input, filter, bias] = at::convolution_backward(
      grad, x, weight, std::nullopt, plan.stride, plan.padding, plan.dilation, false,
      no_output_padding, plan.groups, {wanted[0], wanted[1], false});
  return {input, filter};
}

Gradients compute_gradients(const Plan& plan, int64_t call, const Tensor& grad, const Tensor& x,
                            const Tensor& weight, std::array<bool, 2> wanted) {
  // As in Python: what was measured is for calls that may differ from run to run.
  if (is_deterministic()) return torch_gradients(plan, grad, x, weight, wanted);
  const Kind input = plan.grad_input.kind;
  const Kind filter = plan.grad_weight.kind;
  if ((wanted[0] && input == Kind::kPython) || (wanted[1] && filter == Kind::kPython)) {
    return choose_gradients(plan, call, grad, x, weight, wanted);
  }
  const std::array<bool, 2> by_torch{wanted[0] && input == Kind::kTorch,
                                     wanted[1] && filter == Kind::kTorch};
  Gradients found;
  if (by_torch[0] || by_torch[1]) found = torch_gradients(plan, grad, x, weight, by_torch);
  if (wanted[0] && !by_torch[0]) found[0] = own_grad_input(plan, grad, x, weight);
  if (wanted[1] && !by_torch[1]) found[1] = own_grad_weight(plan, grad, x, weight);
  return found;
}

Rectified gradients_of_relu(const Tensor& grad, const Tensor& output, bool wants_bias) {
  const auto format = format_of(output);
  if (needs_torch(grad) || !format.has_value()) {
    const Tensor dense = at::threshold_backward(grad, output.detach(), 0);
    return {dense, wants_bias ? sum_of_channels(dense) : Tensor()};
  }
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, bool);
  static const auto backward = find_operator<Signature>("vramkit::relu_backward");
  auto [dense, bias] = backward.call(grad.contiguous(*format), output, wants_bias);
  return {dense, wants_bias ? bias : Tensor()};
}

Tensor rectify(const Tensor& x, const OptionalTensor& bias, bool mask) {
  static const auto bias_relu =
      find_operator<void(const Tensor&, const Tensor&)>("vramkit::bias_relu_");
  static const auto relu_mask =
      find_operator<Tensor(const Tensor&, const OptionalTensor&)>("vramkit::relu_mask_");
  if (mask) return relu_mask.call(x, bias);
  bias.has_value() ? bias_relu.call(x, *bias) : void(x.relu_());
  return {};
}

Rectified gradients_by_mask(const Tensor& grad, const Tensor& mask, at::MemoryFormat format,
                            bool wants_bias) {
  if (needs_torch(grad)) {
    const Tensor dense = at::where(unpack_mask(mask, grad.sizes(), format), grad, 0);
    return {dense, wants_bias ? sum_of_channels(dense) : Tensor()};
  }
  using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, bool);
  static const auto backward = find_operator<Signature>("vramkit::relu_mask_backward");
  auto [dense, bias] = backward.call(grad.contiguous(format), mask, wants_bias);
  return {dense, wants_bias ? bias : Tensor()};
}

}  // namespace vramkit::adapter
