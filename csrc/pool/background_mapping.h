// One run of pages that a thread maps while others use the pool.
#pragma once

#include <atomic>
#include <optional>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"

namespace vramkit {

/// The pool and the thread that maps own it together: the pool may be closed once the pages are
/// mapped, before that thread has learnt of it. The backend outlives the mapping, because closing
/// waits for it first (`Pages::finish_background_mapping`).
class BackgroundMapping {
 public:
  BackgroundMapping(Backend& backend, PageRun run) : backend_(backend), run_(run) {}
  BackgroundMapping(const BackgroundMapping&) = delete;
  BackgroundMapping& operator=(const BackgroundMapping&) = delete;

  PageRun run() const { return run_; }
  bool touches(PageRun other) const {
    return run_.first < other.first + other.count && other.first < run_.first + run_.count;
  }

  /// The background thread calls it once, without the pool's lock. Blocks in the driver.
  void map() noexcept {
    try {
      backend_.map_primary(run_);
    } catch (Error& error) {
      failure_ = std::move(error);
    } catch (const std::exception&) {
      failure_.emplace(Status::kSystem, "out of memory");  // short enough to need none
    }
    done_.store(true, std::memory_order_release);
    done_.notify_all();
  }

  /// Blocks until the pages are mapped, or cannot be. Called under the pool's lock: `map` needs
  /// none.
  void wait() const { done_.wait(false, std::memory_order_acquire); }
  /// What went wrong, after `wait`; none of the pages is then mapped.
  const std::optional<Error>& failure() const { return failure_; }

 private:
  Backend& backend_;
  const PageRun run_;
  std::optional<Error> failure_;
  std::atomic<bool> done_ = false;
};

}  // namespace vramkit
