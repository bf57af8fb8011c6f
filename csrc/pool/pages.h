// Which primary pages have memory, and at which address it stands.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "pool/background_mapping.h"

namespace vramkit {

/// Pages are named by their primary index. All calls are made under the pool's lock, and may block
/// in the system or the driver; none waits for work of the device, which must be done before pages
/// lose their address or their memory. Calls that fail leave a state that a later call continues.
/// The destructor moves pages to their primary addresses and gives their memory back.
class Pages {
 public:
  Pages(Backend& backend, const Layout& layout)
      : backend_(backend),
        layout_(layout),
        page_shift_(std::countr_zero(layout.page_bytes)),
        moves_(!backend.aliasing()) {}
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages();

  /// Takes the host memory that `extend` needs: only this call can fail, and it changes nothing.
  void prepare(uint64_t count);
  /// Adds pages without memory at the end.
  void extend(uint64_t count);
  uint64_t count() const { return backed_.size(); }

  /// Afterwards the pages have memory and are mapped at their primary addresses. Before that, no
  /// live block may use them at another address.
  void need_primary(PageRun run) {
    if (backed_count_ < backed_.size() || away_count_ > 0) need_primary_slowly(run);
  }
  /// Afterwards the pages have memory, and one that moves stands at alias pages from `alias` on.
  void need_alias(uint64_t alias, PageRun run);
  /// Maps the pages at alias pages from `alias` on; undone by `unmap_alias`.
  void map_alias(uint64_t alias, PageRun run);
  void unmap_alias(uint64_t alias, PageRun run);
  /// Gives the memory of the pages back, where they have any. Returns how many had.
  uint64_t drop(PageRun run);

  /// The pages have no memory, and the caller is about to map them without the pool's lock. Until
  /// the mapping is finished, a call that needs one of them waits for all. One such run at a time.
  std::shared_ptr<BackgroundMapping> begin_background_mapping(PageRun run);
  /// Waits for that run and records it. Afterwards no pages are being mapped in the background.
  void finish_background_mapping();

  /// The pages that hold the bytes from an offset on.
  PageRun under(uint64_t offset, uint64_t size) const {
    const uint64_t first = offset >> page_shift_;
    return {first, ((offset + size - 1) >> page_shift_) + 1 - first};
  }
  bool backed(uint64_t page) const { return backed_[page]; }
  /// All of them are.
  bool backed(PageRun run) const;
  /// What of the runs has memory.
  std::vector<PageRun> backed_parts(const std::vector<PageRun>& runs) const;
  bool at_primary(uint64_t page) const { return !moves_ || place_[page] == 0; }
  bool at_alias(uint64_t page, uint64_t alias) const {
    return !moves_ || place_[page] == alias + 1;
  }

  uint64_t alias_address(uint64_t alias) const {
    return backend_.base() + (layout_.primary_pages + alias) * layout_.page_bytes;
  }
  uint64_t backed_count() const { return backed_count_; }
  uint64_t peak_backed_count() const { return peak_backed_count_; }
  void reset_peak() { peak_backed_count_ = backed_count_; }
  uint64_t mapping_calls() const { return mapping_calls_; }
  uint64_t metadata_bytes() const {
    return backed_.capacity() / 8 + place_.capacity() * sizeof(uint64_t);
  }

 private:
  void need_primary_slowly(PageRun run);
  void map_primary(PageRun run);
  void note_backed(PageRun run);
  void move_to_primary(PageRun run);

  Backend& backend_;
  const Layout layout_;
  const int page_shift_;
  const bool moves_;
  std::vector<bool> backed_;
  std::vector<uint64_t> place_;  // where pages move: 0 at the primary address, else alias page + 1
  std::shared_ptr<BackgroundMapping> background_;  // what is being mapped
  uint64_t backed_count_ = 0;
  uint64_t peak_backed_count_ = 0;
  uint64_t away_count_ = 0;
  uint64_t mapping_calls_ = 0;
};

}  // namespace vramkit
