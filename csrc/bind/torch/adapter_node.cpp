// Nodes of autograd for a convolution with its ReLU: what vramkit/nn/_fused.py and _rectify.py do
// in Python, at a fraction of the host's time. Bound to one torch minor version, whose
// torch::autograd::Function they derive from. They decide nothing: a plan says what to call.

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/headeronly/version.h>
#include <torch/library.h>

#include <string>

#include "bind/c/vramkit.h"
#include "bind/torch/adapter_node_plan.h"

namespace vramkit::adapter {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// Autograd has one edge for each of these that is defined.
enum Input : std::size_t { kX, kWeight, kBias };

bool wants_gradient(const Tensor& tensor) { return tensor.requires_grad(); }
bool wants_gradient(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->requires_grad();
}

/// Tells whether autograd records an operation on the tensors.
template <class... Tensors>
bool records(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (wants_gradient(tensors) || ...);
}

/// Keeps input, weight and output; the output is what the next operation often keeps too.
class ConvReLU : public torch::autograd::Function<ConvReLU> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const OptionalTensor& bias, int64_t plan, int64_t call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = compute_output(plan_at(plan), x, weight, bias);
    ctx->save_for_backward({x, weight, output});
    ctx->saved_data["plan"] = plan;
    ctx->saved_data["call"] = call;
    ctx->saved_data["bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &output = saved[2];
    const Plan& plan = plan_at(ctx->saved_data["plan"].toInt());
    const std::array<bool, 2> wanted{ctx->needs_input_grad(kX), ctx->needs_input_grad(kWeight)};
    const bool wants_bias = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(kBias);
    Gradients found;
    Rectified rectified;
    if (needs_torch(grads[0])) {
      rectified = gradients_of_relu(grads[0], output, wants_bias);
      found = torch_gradients(plan, rectified.grad, x, weight, wanted);
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      rectified = gradients_of_relu(grads[0], output, wants_bias);
      const int64_t call = ctx->saved_data["call"].toInt();
      found = compute_gradients(plan, call, rectified.grad, x, weight, wanted);
    }
    return {found[0], found[1], rectified.bias, Tensor(), Tensor()};
  }
};

/// Overwrites `x`, which nothing else uses, by relu(x + bias), and keeps that or its mask.
class Rectify : public torch::autograd::Function<Rectify> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& bias,
                        bool mask) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto format = format_of(x);
    TORCH_CHECK(format.has_value(), "vramkit: the tensor to rectify must be without gaps");
    const Tensor bits = rectify(x, bias, mask);
    // Not `x` marked as dirty, which compiled autograd refuses in C++; nothing else uses `x`.
    Tensor output = x.alias();
    ctx->save_for_backward({mask ? bits : output});
    ctx->saved_data["mask"] = mask;
    ctx->saved_data["bias"] = bias.has_value();
    ctx->saved_data["format"] = static_cast<int64_t>(*format);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor kept = ctx->get_saved_variables()[0];
    const bool wants_bias = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(1);
    const auto format = static_cast<at::MemoryFormat>(ctx->saved_data["format"].toInt());
    const auto found = ctx->saved_data["mask"].toBool()
                           ? gradients_by_mask(grads[0], kept, format, wants_bias)
                           : gradients_of_relu(grads[0], kept, wants_bias);
    return {found.grad, found.bias, Tensor()};
  }
};

Tensor conv_relu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t plan,
                 int64_t call) {
  if (records(x, weight, bias)) return ConvReLU::apply(x, weight, bias, plan, call);
  const at::AutoDispatchBelowADInplaceOrView below;
  return compute_output(plan_at(plan), x, weight, bias);
}

Tensor rectify_node(const Tensor& x, const OptionalTensor& bias, bool mask) {
  if (records(x, bias)) return Rectify::apply(x, bias, mask);
  rectify(x, bias, mask);
  return x;
}

int64_t plan_of(at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                int64_t groups, std::string_view forward, std::string_view grad_input,
                std::string_view grad_weight) {
  const auto algorithm = forward_of(forward);
  if (!algorithm.has_value()) return -1;
  return register_plan({stride.vec(), padding.vec(), dilation.vec(), groups, *algorithm,
                        gradient_of(grad_input), gradient_of(grad_weight)});
}

TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def(
      "conv_relu_plan(int[] stride, int[] padding, int[] dilation, int groups, str forward, "
      "str grad_input, str grad_weight) -> int",
      &plan_of);
  m.def("conv_relu(Tensor x, Tensor weight, Tensor? bias, int plan, int call) -> Tensor",
        &conv_relu);
  m.def("rectify_(Tensor(a!) x, Tensor? bias, bool mask) -> Tensor(a!)", &rectify_node);
}

}  // namespace
}  // namespace vramkit::adapter

extern "C" {

// The torch release whose headers this library was compiled with.
VRAMKIT_API const char* vramkit_adapter_torch_version(void) { return TORCH_VERSION; }

}  // extern "C"
