// The operators of tables on CUDA devices.
#include "ops/embedding/device/device_cuda.h"
#include "ops/embedding/device/operators.h"

namespace vramkit::embedding::device {

STABLE_TORCH_LIBRARY_IMPL(vramkit, CUDA, m) {
  using OnCuda = Operators<Cuda>;
  m.impl("table_create", TORCH_BOX(&OnCuda::create));
  m.impl("table_close", TORCH_BOX(&OnCuda::close));
  m.impl("table_read", TORCH_BOX(&OnCuda::read_bags));
  m.impl("tables_read", TORCH_BOX(&OnCuda::read_many));
  m.impl("table_insert", TORCH_BOX(&OnCuda::insert_bags));
  m.impl("tables_insert", TORCH_BOX(&OnCuda::insert_many));
  m.impl("tables_update", TORCH_BOX(&OnCuda::update));
  m.impl("table_gradient_norm", TORCH_BOX(&OnCuda::gradient_norm));
  m.impl("table_weights_gradient", TORCH_BOX(&OnCuda::weights_gradient));
  m.impl("table_dump", TORCH_BOX(&OnCuda::dump));
  m.impl("table_load", TORCH_BOX(&OnCuda::load));
  m.impl("table_prefetch", TORCH_BOX(&OnCuda::prefetch));
  m.impl("table_facts", TORCH_BOX(&OnCuda::facts));
  m.impl("table_resume", TORCH_BOX(&OnCuda::resume));
  m.impl("table_check", TORCH_BOX(&OnCuda::check_table));
}

}  // namespace vramkit::embedding::device
