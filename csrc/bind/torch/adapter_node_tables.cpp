// The node of autograd for training lookups in embedding tables: what _LookUp in
// vramkit/nn/_embedding/_lookup.py does in Python, at a fraction of the host's time.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/torch/adapter_node_gradients.h"

namespace vramkit::adapter {
namespace {

using at::Tensor;
using torch::autograd::Edge;
using torch::autograd::variable_list;

// Tensors of a lookup in `parts`, and of an answer of tables_insert: the output comes first.
constexpr std::size_t kAsked = 3;
constexpr std::size_t kAnswered = 4;
constexpr std::size_t kSaved = kAsked + kAnswered - 1;
// Integers of a lookup in `plan`, which begin with table and mode.
constexpr std::size_t kPlanned = 4;

/// Returns a tensor that can be saved for backward.
Tensor own(const Tensor& tensor) { return tensor.is_inference() ? tensor.clone() : tensor; }

/// Has no edge to another node: a pass that wants some gradients only does not run it, and nothing
/// is updated.
class TableLookUp : public torch::autograd::Node {
 public:
  TableLookUp(int64_t kind, at::TensorList parts, at::IntArrayRef plan, at::TensorList controls,
              at::IntArrayRef by_frequency, at::TensorList answers)
      : kind_(kind), controls_(controls.vec()) {
    saved_.reserve(kSaved * controls.size());
    for (std::size_t i = 0; i < controls.size(); ++i) {
      const auto save = [&](const Tensor& of) { saved_.emplace_back(own(of), false); };
      for (const Tensor& asked : parts.slice(kAsked * i, kAsked)) save(asked);
      for (const Tensor& found : answers.slice(kAnswered * i + 1, kAnswered - 1)) save(found);
      plans_.push_back({plan[kPlanned * i], plan[kPlanned * i + 1], by_frequency[i]});
    }
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    // Autograd notices where what is saved has been changed in place.
    variable_list saved;
    saved.reserve(saved_.size());
    for (const auto& of : saved_) saved.push_back(of.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    // Autograd would run the nodes of single lookups in this order.
    for (std::size_t i = grads.size(); i-- > 0;) {
      if (!grads[i].defined()) continue;
      TableGradient of{controls_[i], {grads[i].contiguous()}, plans_[i]};
      const auto parts = at::TensorList(saved).slice(kSaved * i, kSaved);
      std::copy(parts.begin(), parts.end(), of.parts.begin() + 1);
      keep_gradient(kind_, of);
    }
    return {};
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (auto& of : saved_) of.reset_data();
  }

  std::string name() const override { return "TableLookUpBackward"; }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& /*args*/) const override {
    TORCH_CHECK(false,
                "vramkit: compiled autograd cannot run the backward pass of a table with a fused "
                "optimizer, which updates the table; call backward without it");
  }

 private:
  int64_t kind_;
  std::vector<std::array<int64_t, 3>> plans_;
  std::vector<torch::autograd::SavedVariable> saved_;
  // Not saved as the others are: hooks may replace those, and Python changes its own.
  std::vector<Tensor> controls_;
};

/// torch counts the references of nodes in the one way or the other.
template <class Made, class... Arguments>
auto make_node(const Arguments&... arguments) {
  if constexpr (std::is_convertible_v<std::shared_ptr<Made>, decltype(Edge::function)>) {
    return std::make_shared<Made>(arguments...);
  } else {
    return c10::make_intrusive<Made>(arguments...);
  }
}

/// Returns the outputs, which autograd knows.
std::vector<Tensor> train(int64_t kind, at::TensorList parts, at::IntArrayRef plan,
                          at::ArrayRef<double> limits, at::TensorList controls,
                          at::IntArrayRef by_frequency) {
  const std::size_t count = controls.size();
  TORCH_CHECK(parts.size() == kAsked * count && plan.size() == kPlanned * count &&
                  limits.size() == 2 * count && by_frequency.size() == count,
              "vramkit: ", count, " lookups with ", parts.size(), " tensors, ", plan.size(),
              " integers, ", limits.size(), " numbers and ", by_frequency.size(), " flags");
  std::vector<Tensor> answers;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    answers = insert_rows(kind, parts, plan, limits);
  }
  const auto node = make_node<TableLookUp>(kind, parts, plan, controls, by_frequency, answers);
  std::vector<Tensor> outputs;
  outputs.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    outputs.push_back(std::move(answers[kAnswered * i]));
    torch::autograd::set_history(outputs.back(), node);
  }
  return outputs;
}

void keep(int64_t kind, const Tensor& control, at::TensorList parts, at::IntArrayRef plan) {
  TableGradient of{control, {}, {}};
  TORCH_CHECK(parts.size() == of.parts.size() && plan.size() == of.plan.size(),
              "vramkit: a gradient with ", parts.size(), " tensors and ", plan.size(), " integers");
  std::copy(parts.begin(), parts.end(), of.parts.begin());
  std::copy(plan.begin(), plan.end(), of.plan.begin());
  keep_gradient(kind, of);
}

TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def("kind_of_tables(str insert, str update) -> int", &register_tables);
  m.def(
      "train_tables(int kind, Tensor[] parts, int[] plan, float[] limits, Tensor[] controls, "
      "int[] by_frequency) -> Tensor[]",
      &train);
  m.def("keep_table_gradient(int kind, Tensor control, Tensor[] parts, int[] plan) -> ()", &keep);
}

}  // namespace
}  // namespace vramkit::adapter
