// The optimizers' rules, as torch.optim has them for sparse gradients. Shared by CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/embedding/rows.h"
#include "ops/on_both.h"

namespace vramkit::embedding {

/// What an update needs besides the row; factors that depend on the step are already applied.
struct Step {
  float rate;  // the learning rate, with Adagrad's decay or Adam's bias corrections
  float beta1;
  float beta2;
  float epsilon;
};

/// The learning rate of a step, from 1, with Adam's bias corrections as in torch.optim.SparseAdam
/// and Adagrad's decay as in torch.optim.Adagrad.
inline float rate_at(Rule rule, double rate, double decay, double beta1, double beta2,
                     int64_t step) {
  const auto count = static_cast<double>(step);
  if (rule == Rule::kAdam) {
    rate *= std::sqrt(1 - std::pow(beta2, count)) / (1 - std::pow(beta1, count));
  } else if (rule == Rule::kAdagrad || rule == Rule::kRowwiseAdagrad) {
    rate /= 1 + (count - 1) * decay;
  }
  return static_cast<float>(rate);
}

inline constexpr uint64_t kUpdateDraws = 0x75706461;  // apart from those of initial values

/// The random numbers of an update.
inline uint64_t draws_of(uint64_t seed, int64_t step) {
  return mix(seed ^ kUpdateDraws, static_cast<uint64_t>(step));
}

// Each rule for one element.
VRAMKIT_ON_BOTH inline void sgd(const Step& step, float grad, float& value) {
  value -= step.rate * grad;
}
VRAMKIT_ON_BOTH inline void adagrad(const Step& step, float grad, float& value, float& sum) {
  sum += grad * grad;
  value -= step.rate * grad / (sqrtf(sum) + step.epsilon);
}
VRAMKIT_ON_BOTH inline void adam(const Step& step, float grad, float& value, float& moment,
                                 float& square) {
  moment += (grad - moment) * (1 - step.beta1);
  square += (grad * grad - square) * (1 - step.beta2);
  value -= step.rate * moment / (sqrtf(square) + step.epsilon);
}

/// What row-wise Adagrad adds to a row's sum (Naumov et al., DLRM, 2019), and its rate then.
VRAMKIT_ON_BOTH inline float mean_of_squares(float squares, uint32_t dim) {
  return squares / static_cast<float>(dim);
}
VRAMKIT_ON_BOTH inline float rowwise_rate(const Step& step, float sum) {
  return step.rate / (sqrtf(sum) + step.epsilon);
}

inline void rowwise_adagrad(const Step& step, uint32_t dim, const float* grad, float* values,
                            float& sum) {
  float squares = 0;
  for (uint32_t i = 0; i < dim; ++i) squares += grad[i] * grad[i];
  sum += mean_of_squares(squares, dim);
  const float rate = rowwise_rate(step, sum);
  for (uint32_t i = 0; i < dim; ++i) values[i] -= rate * grad[i];
}

/// Updates state, the sum of row-wise Adagrad, and the decoded `values`, which the caller stores.
inline void apply_rule(const RowLayout& layout, const Step& step, const float* grad, float* state,
                       float& sum, float* values) {
  const uint32_t dim = layout.dim;
  switch (layout.rule) {
    case Rule::kSgd:
      for (uint32_t i = 0; i < dim; ++i) sgd(step, grad[i], values[i]);
      return;
    case Rule::kAdagrad:
      for (uint32_t i = 0; i < dim; ++i) adagrad(step, grad[i], values[i], state[i]);
      return;
    case Rule::kRowwiseAdagrad:
      return rowwise_adagrad(step, dim, grad, values, sum);
    case Rule::kAdam:
      for (uint32_t i = 0; i < dim; ++i) adam(step, grad[i], values[i], state[i], state[dim + i]);
  }
}

}  // namespace vramkit::embedding
