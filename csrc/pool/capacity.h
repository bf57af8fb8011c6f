// The pages that the pool may use: growing, shrinking, giving memory back.
#pragma once

#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "pool/aliases.h"
#include "pool/free_memory.h"
#include "pool/pages.h"
#include "pool/range.h"

namespace vramkit {

/// Throws for less than a page and for more than the machine has.
void check_capacity(const std::string& label, uint64_t capacity_bytes, uint64_t page_bytes,
                    const Backend& backend);

/// Adds pages to `Pages` and `Range` together, and takes them out again, so that the two always
/// agree. Pages in the range that are not `retired` make up the capacity.
///
/// The engine calls it under the pool's lock while no page is being mapped in the background.
/// Before `shrink` and `trim` all work on freed memory must be done (`FreeMemory::drain`); both
/// unmap idle aliases. All changes invalidate the ids of free blocks. After a failure the pool is
/// valid, with the capacity that `pages` tells.
class Capacity {
 public:
  Capacity(const std::string& label, const Layout& layout, Backend& backend, Range& range,
           Pages& pages, Aliases& aliases, const FreeMemory& memory)
      : label_(label),
        layout_(layout),
        backend_(backend),
        range_(range),
        pages_(pages),
        aliases_(aliases),
        memory_(memory) {}
  Capacity(const Capacity&) = delete;
  Capacity& operator=(const Capacity&) = delete;

  uint64_t pages() const { return capacity_pages_; }
  /// What `grow` can add: pages with addresses that are not used up.
  uint64_t spare_pages() const;
  /// All or nothing. Throws kInvalidArgument beyond `spare_pages`, and kOutOfMemory where the
  /// device has no memory for the pages.
  void grow(uint64_t pages);
  /// Takes whole free pages from the end. Throws kBusy where there are too few.
  void shrink(uint64_t pages);
  /// Gives the memory of free pages back, and keeps the capacity. Returns how many had any. What
  /// the system refuses to take is reported, and stays.
  uint64_t trim();

 private:
  struct Returned {
    uint64_t pages = 0;
    uint64_t refused = 0;
    std::string reason{};
  };

  uint64_t revivable_pages() const;
  uint64_t revive(uint64_t pages);
  void retire(PageRun run);
  [[noreturn]] void refuse_growth(uint64_t pages) const;
  void give_back(PageRun run, Returned& returned);
  uint64_t give_back(PageRun run);
  bool can_be_given_back(uint64_t page) const;

  const std::string& label_;
  const Layout layout_;
  Backend& backend_;
  Range& range_;
  Pages& pages_;
  Aliases& aliases_;
  const FreeMemory& memory_;
  uint64_t capacity_pages_ = 0;
};

}  // namespace vramkit
