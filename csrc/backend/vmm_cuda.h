// Memory of a CUDA device that belongs to the pool, through virtual memory management.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/device_cuda.h"

namespace vramkit {

/// One handle is one page: a handle is mapped whole or not at all. The handles of the whole
/// capacity are made at once (the device keeps its promise, or the pool is not made); mapping them,
/// which costs three times as much, follows in the background.
///
/// Stream order makes an alias safe: nothing is copied from one address to another, and two blocks
/// that share a page follow each other by stream order or by an event (CUDA Programming Guide,
/// "Virtual Aliasing Support").
///
/// The destructor unmaps nothing: `Pages` and `Aliases` have done so before. It releases handles
/// that are left, then the address range.
class CudaVmmBackend : public CudaDevice {
 public:
  explicit CudaVmmBackend(int device);
  CudaVmmBackend(const CudaVmmBackend&) = delete;
  CudaVmmBackend& operator=(const CudaVmmBackend&) = delete;
  ~CudaVmmBackend() override;

  void reserve(const Layout& layout) override;
  uint64_t base() const override { return base_; }
  void create_physical(PageRun run) override;
  uint64_t release_physical(PageRun run) override;
  uint64_t held_pages(uint64_t) const override { return held_; }
  bool maps_slowly() const override { return true; }
  void map_primary(PageRun run) override;
  void unmap_and_release(PageRun run) override;
  bool rebindable() const override { return false; }
  bool aliasing() const override { return true; }
  uint64_t max_alias_pages() const override { return kMaxAliasPages; }
  void map_alias(uint64_t address, PageRun run) override;
  void unmap_alias(uint64_t address, PageRun run) override;
  void add_peer(int device) override;
  std::vector<int> peers_in_use() const override;
  void remove_peer(int device) override;
  void grant_peers(uint64_t address, uint64_t pages) override;

 private:
  static constexpr uint64_t kMaxAliasPages = uint64_t{1} << 17;

  uint64_t primary_address(uint64_t page) const { return base_ + page * page_bytes_; }
  void map_pages(uint64_t address, PageRun run);
  void unmap_pages(uint64_t address, uint64_t count);
  std::vector<cuda::AccessDescription> accesses() const;
  cuda::Result set_access(uint64_t address, uint64_t pages,
                          const std::vector<cuda::AccessDescription>& access);
  void release_handle(uint64_t page);
  cuda::AllocationProperties properties() const;

  const cuda::AllocationProperties wanted_;
  uint64_t page_bytes_ = 0;
  uint64_t base_ = 0;
  uint64_t address_bytes_ = 0;
  std::vector<cuda::MemoryHandle> handles_;  // by page; 0: none
  uint64_t held_ = 0;                        // of the handles
  std::vector<int> peers_;                   // devices that may access the memory too
};

}  // namespace vramkit
