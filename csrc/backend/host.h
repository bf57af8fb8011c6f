// Ordinary memory of this machine: private and anonymous, so that fork copies on write.
#pragma once

#include "backend/mapping.h"

namespace vramkit {

/// A page stands at one address at a time: `map_alias` moves it with mremap, and `unmap_alias`
/// moves it back. The address that it leaves stays mapped (MREMAP_DONTUNMAP); otherwise the next
/// malloc of the program could be placed in the gap and would be lost when the page returns.
/// Where the kernel has no such call, and beyond `max_alias_pages`, memory is dropped at one
/// address and faulted in at the other, which serves as well because pages that move hold no data.
class HostBackend : public SynchronousBackend {
 public:
  void reserve(const Layout& layout) override;
  uint64_t base() const override { return range_.base(); }
  void create_physical(PageRun run) override;
  void map_primary(PageRun run) override;
  void unmap_and_release(PageRun run) override;
  bool rebindable() const override { return true; }
  bool aliasing() const override { return false; }
  void map_alias(uint64_t address, PageRun run) override;
  void unmap_alias(uint64_t address, PageRun run) override;
  void discard_in_child(uint64_t address, uint64_t bytes) override;

 private:
  uint64_t primary_address(uint64_t page) const { return range_.base() + page * page_bytes_; }
  /// False where the kernel refuses; what was moved until then does no harm.
  bool move(uint64_t from, uint64_t to, PageRun run);
  bool move_page(uint64_t from, uint64_t to);

  AddressRange range_;
  uint64_t page_bytes_ = 0;
  uint64_t accessible_pages_ = 0;  // primary pages below
  bool can_move_ = true;
};

}  // namespace vramkit
