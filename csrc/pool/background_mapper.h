// Which pages are mapped next in the background.
#pragma once

#include <cstdint>
#include <memory>

#include "pool/background_mapping.h"
#include "pool/pages.h"
#include "pool/range.h"

namespace vramkit {

/// Walks over the capacity once, by address, and hands out the pages that nobody has mapped yet.
/// Callers hold the pool's lock, which the thread that maps does without while it maps
/// (`BackgroundMapping::map`).
class BackgroundMapper {
 public:
  BackgroundMapper(const Range& range, Pages& pages, uint64_t page_bytes, bool active)
      : range_(range), pages_(pages), page_bytes_(page_bytes), active_(active) {}
  BackgroundMapper(const BackgroundMapper&) = delete;
  BackgroundMapper& operator=(const BackgroundMapper&) = delete;

  /// True until `stop`, where the backend maps slowly.
  bool active() const { return active_; }
  /// Records what was handed out before, and hands out up to `pages` pages; null when there are no
  /// more. Blocks until the former ones are mapped.
  std::shared_ptr<BackgroundMapping> next(uint64_t pages);
  /// Blocks until what was handed out is mapped. Afterwards nobody maps anything while somebody
  /// else has the pool's lock.
  void finish() { pages_.finish_background_mapping(); }
  /// The same for good.
  void stop() {
    finish();
    active_ = false;
  }

 private:
  const Range& range_;
  Pages& pages_;
  const uint64_t page_bytes_;
  bool active_;
  uint64_t next_ = 0;  // pages below were mapped, or are not to be mapped in the background
};

}  // namespace vramkit
