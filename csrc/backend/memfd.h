// Shared memory of a nameless file: a page can stand at two addresses at once, as on CUDA.
#pragma once

#include "backend/mapping.h"

namespace vramkit {

/// Owns the file and the address range; both are closed with it.
/// Addresses are bound for ever, as on CUDA, so that the pool takes the same paths there and here.
class MemfdBackend : public SynchronousBackend {
 public:
  ~MemfdBackend() override;
  void reserve(const Layout& layout) override;
  uint64_t base() const override { return range_.base(); }
  void map_primary(PageRun run) override;
  void unmap_and_release(PageRun run) override;
  bool rebindable() const override { return false; }
  bool aliasing() const override { return true; }
  void map_alias(uint64_t address, PageRun run) override;
  void unmap_alias(uint64_t address, PageRun run) override;
  /// The memory is the parent's too: nothing is let go.
  void discard_in_child(uint64_t, uint64_t) override {}

 private:
  uint64_t primary_address(uint64_t page) const { return range_.base() + page * page_bytes_; }
  void close_address(uint64_t address, uint64_t pages);

  AddressRange range_;
  uint64_t page_bytes_ = 0;
  int file_ = -1;
};

}  // namespace vramkit
