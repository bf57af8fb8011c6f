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

VRAMKIT_ON_BOTH inline void sgd(const Step& step, uint32_t dim, const float* grad, float* values) {
  for (uint32_t i = 0; i < dim; ++i) values[i] -= step.rate * grad[i];
}

VRAMKIT_ON_BOTH inline void adagrad(const Step& step, uint32_t dim, const float* grad,
                                    float* values, float* sums) {
  for (uint32_t i = 0; i < dim; ++i) {
    sums[i] += grad[i] * grad[i];
    values[i] -= step.rate * grad[i] / (sqrtf(sums[i]) + step.epsilon);
  }
}

/// One sum for a row, of the mean of its squared gradients (Naumov et al., DLRM, 2019).
VRAMKIT_ON_BOTH inline void rowwise_adagrad(const Step& step, uint32_t dim, const float* grad,
                                            float* values, float& sum) {
  float squares = 0;
  for (uint32_t i = 0; i < dim; ++i) squares += grad[i] * grad[i];
  sum += squares / static_cast<float>(dim);
  const float rate = step.rate / (sqrtf(sum) + step.epsilon);
  for (uint32_t i = 0; i < dim; ++i) values[i] -= rate * grad[i];
}

VRAMKIT_ON_BOTH inline void adam(const Step& step, uint32_t dim, const float* grad, float* values,
                                 float* moments) {
  float* const squares = moments + dim;
  for (uint32_t i = 0; i < dim; ++i) {
    moments[i] += (grad[i] - moments[i]) * (1 - step.beta1);
    squares[i] += (grad[i] * grad[i] - squares[i]) * (1 - step.beta2);
    values[i] -= step.rate * moments[i] / (sqrtf(squares[i]) + step.epsilon);
  }
}

/// Updates the state in `row` and the decoded `values`, which the caller stores.
VRAMKIT_ON_BOTH inline void apply_rule(const RowLayout& layout, const Step& step, const float* grad,
                                       char* row, float* values) {
  switch (layout.rule) {
    case Rule::kSgd:
      return sgd(step, layout.dim, grad, values);
    case Rule::kAdagrad:
      return adagrad(step, layout.dim, grad, values, state_of(layout, row));
    case Rule::kRowwiseAdagrad:
      return rowwise_adagrad(step, layout.dim, grad, values, header_of(row).sum);
    case Rule::kAdam:
      return adam(step, layout.dim, grad, values, state_of(layout, row));
  }
}

}  // namespace vramkit::embedding
