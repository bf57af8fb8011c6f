// Gradients of embedding tables between a backward pass and the update at its end: what
// vramkit/nn/_embedding/_gradients.py does in Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vramkit::adapter {

/// What Python tells of a table, and may change at any time: the elements of a tensor of float64
/// in the host's memory. vramkit/nn/_embedding/_control.py numbers them in the same way.
enum Told : std::uint8_t { kHeld, kReplaced, kUpdates, kRule, kTold = kRule + 5 };

/// The gradient of a lookup.
struct TableGradient {
  at::Tensor control;               // the elements above; whoever holds it keeps the table alive
  std::array<at::Tensor, 7> parts;  // of tables_update: gradient, ids, bounds, weights, what the
                                    // lookup found
  std::array<int64_t, 3> plan;      // of tables_update: table, mode, by frequency
};

/// Keeps the operators of one kind of tables for ever, found by their names, and returns their
/// number. Any thread may call.
int64_t register_tables(std::string_view insert, std::string_view update);

/// Looks up, giving rows to ids that have none, as tables_insert does.
std::vector<at::Tensor> insert_rows(int64_t kind, at::TensorList parts, at::IntArrayRef plan,
                                    at::ArrayRef<double> limits);

/// Keeps a gradient until the running backward pass ends, which then updates all tables of a kind
/// on a device at once. Python takes gradients of tables that hold or refuse them. Throws outside
/// of a backward pass.
void keep_gradient(int64_t kind, const TableGradient& of);

}  // namespace vramkit::adapter
