// The operators of tables on a GPU, run on the host: tests use them in the place of the CPU's.
#include "ops/embedding/device/host.h"
#include "ops/embedding/device/operators.h"

namespace vramkit::embedding::device {
namespace {

/// Lanes of a row from now on, of all tables.
void set_lanes(Tensor /*selects the CPU*/, int64_t lanes) {
  Host::most_lanes() = static_cast<uint32_t>(lanes);
}

/// Bytes that stand for locked host memory, at most so many from now on; -1: without a limit.
int64_t pinned_bytes(Tensor /*selects the CPU*/, int64_t most) {
  Host::most_pinned_bytes() = most < 0 ? UINT64_MAX : static_cast<uint64_t>(most);
  return static_cast<int64_t>(Host::pinned_bytes());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vramkit, m) {
  m.def("emulated_table_create(Tensor like, Tensor integers, Tensor numbers) -> int");
  m.def("emulated_table_close(Tensor like, int table) -> ()");
  m.def(
      "emulated_table_read(Tensor ids, Tensor bounds, Tensor weights, int table, int mode, "
      "ScalarType dtype, int dim, float max_norm, float norm_type) -> Tensor");
  m.def("emulated_tables_read(Tensor[] parts, int[] plan, float[] limits) -> Tensor[]");
  m.def(
      "emulated_table_insert(Tensor ids, Tensor bounds, Tensor weights, int table, int mode, "
      "ScalarType dtype, int dim, float max_norm, float norm_type) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("emulated_tables_insert(Tensor[] parts, int[] plan, float[] limits) -> Tensor[]");
  m.def("emulated_tables_update(Tensor[] parts, int[] plan, float[] numbers) -> ()");
  m.def("emulated_table_gradient_norm(Tensor[] parts, int[] plan) -> Tensor");
  m.def(
      "emulated_table_weights_gradient(Tensor grad, Tensor ids, Tensor bounds, Tensor distinct, "
      "int table, int mode) -> Tensor");
  m.def("emulated_table_dump(Tensor like, int table, int since, bool with_present) -> Tensor[]");
  m.def(
      "emulated_table_load(Tensor keys, Tensor rows, Tensor headers, Tensor state, Tensor stamps, "
      "int table) -> ()");
  m.def("emulated_table_prefetch(Tensor ids, int table) -> bool");
  m.def("emulated_table_facts(Tensor like, int table) -> Tensor");
  m.def("emulated_table_resume(Tensor like, Tensor counters, int table) -> ()");
  m.def("emulated_table_check(Tensor like, int table) -> ()");
  m.def("emulated_lanes(Tensor like, int lanes) -> ()");
  m.def("emulated_pinned_bytes(Tensor like, int most) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(vramkit, CPU, m) {
  using Emulated = Operators<Host>;
  m.impl("emulated_table_create", TORCH_BOX(&Emulated::create));
  m.impl("emulated_table_close", TORCH_BOX(&Emulated::close));
  m.impl("emulated_table_read", TORCH_BOX(&Emulated::read_bags));
  m.impl("emulated_tables_read", TORCH_BOX(&Emulated::read_many));
  m.impl("emulated_table_insert", TORCH_BOX(&Emulated::insert_bags));
  m.impl("emulated_tables_insert", TORCH_BOX(&Emulated::insert_many));
  m.impl("emulated_tables_update", TORCH_BOX(&Emulated::update));
  m.impl("emulated_table_gradient_norm", TORCH_BOX(&Emulated::gradient_norm));
  m.impl("emulated_table_weights_gradient", TORCH_BOX(&Emulated::weights_gradient));
  m.impl("emulated_table_dump", TORCH_BOX(&Emulated::dump));
  m.impl("emulated_table_load", TORCH_BOX(&Emulated::load));
  m.impl("emulated_table_prefetch", TORCH_BOX(&Emulated::prefetch));
  m.impl("emulated_table_facts", TORCH_BOX(&Emulated::facts));
  m.impl("emulated_table_resume", TORCH_BOX(&Emulated::resume));
  m.impl("emulated_table_check", TORCH_BOX(&Emulated::check_table));
  m.impl("emulated_lanes", TORCH_BOX(&set_lanes));
  m.impl("emulated_pinned_bytes", TORCH_BOX(&pinned_bytes));
}

}  // namespace vramkit::embedding::device
