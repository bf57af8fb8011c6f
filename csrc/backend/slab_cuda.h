// A piece of CUDA memory that somebody else owns.
#pragma once

#include "backend/device_cuda.h"

namespace vramkit {

/// The memory is there, at one address: it can neither grow nor be stitched.
class CudaSlabBackend : public CudaDevice {
 public:
  CudaSlabBackend(int device, uint64_t address) : CudaDevice(device), base_(address) {}

  bool has_own_addresses() const override { return false; }
  void reserve(const Layout&) override {}
  uint64_t base() const override { return base_; }
  void map_primary(PageRun) override {}
  void unmap_and_release(PageRun) override {}
  bool rebindable() const override { return true; }
  bool aliasing() const override { return true; }
  uint64_t max_alias_pages() const override { return 0; }
  void map_alias(uint64_t, PageRun) override {}
  void unmap_alias(uint64_t, PageRun) override {}

 private:
  const uint64_t base_;
};

}  // namespace vramkit
