// What reads a table and what updates it: batches of ids in bags, and gradients of such batches.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/embedding/bags.h"
#include "ops/embedding/memory.h"
#include "ops/embedding/rules.h"
#include "ops/embedding/store.h"

namespace vramkit::embedding {

/// Computes the bags from the rows in `slots` (kMissing: the initial row of the id) and stores them
/// as `type`. `argmax` gets the positions that kMax took, or -1; null for other modes. Where
/// `slots` is null, finds the ids of the bags as Store::find does, and returns how many have a row.
int64_t pool_bags(const Store& store, const Bags& bags, const uint32_t* slots, NormLimit limit,
                  RowType type, void* output, int64_t* argmax, const Parallel& parallel);

/// Scales stored rows to the limit.
void limit_norms(Store& store, const int64_t* slots, int64_t count, NormLimit limit,
                 const Parallel& parallel);

/// grad[i] = the product of row i and the gradient of its bag, where nothing is padding.
void weight_gradients(const Store& store, const Bags& bags, const uint32_t* slots, RowType type,
                      const void* grad, float* result, const Parallel& parallel);

/// The gradient of one forward pass; the arrays are those of Store::insert.
struct GradientBatch {
  Bags bags;
  RowType type;
  const void* grad;  // bags x dim
  const uint32_t* inverse;
  const int64_t* keys;
  const int64_t* slots;
  int64_t unique;
  int64_t epoch;
  const int64_t* argmax;
  bool by_frequency;  // divide by the number of times that an id occurs
};

/// The gradients of some forward passes, added up by key: one update, however often a table is
/// used.
class Gradients {
 public:
  Gradients(const Store& store, std::vector<GradientBatch> batches);

  /// The 2-norm over all rows.
  double norm(const Parallel& parallel) const;

  /// Positions whose row is not there any more.
  int64_t lost() const;

  /// Updates the rows that are still there.
  void apply(Store& store, const Step& step, float factor, int64_t number,
             const Parallel& parallel) const;

 private:
  struct Position {
    uint32_t batch;
    uint32_t bag;
    uint32_t position;
    float factor;
  };

  void merge(const Store& store);
  void place(const GradientBatch& batch, uint32_t number, std::vector<uint32_t>& next);
  void sum(int64_t row, float* to) const;
  template <class Loop>
  void for_rows(const Parallel& parallel, const Loop& loop) const;

  uint32_t dim_;
  std::vector<GradientBatch> batches_;
  std::vector<std::vector<uint32_t>> merged_;  // for each batch: its distinct ids among all
  std::vector<uint32_t> slots_;
  std::vector<uint32_t> starts_;
  std::vector<Position> positions_;
};

}  // namespace vramkit::embedding
