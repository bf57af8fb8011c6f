// Threads that copy rows, at the places that an index list names, into contiguous destinations.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "loader/gather_plan.h"

namespace vramkit {

/// A job of fewer bytes is done by the thread that submits it: to wake another takes longer. Its
/// stores go through the caches.
inline constexpr uint64_t kSmallJobBytes = 512 * 1024;

/// A fixed set of threads and the jobs that they work on. Threads without work sleep.
///
/// All functions may be called by any thread at any time, but the destructor, which comes last.
/// In a child that was forked from the creator's process the threads do not exist: there every
/// function throws kForked, and the destructor does nothing and keeps the memory.
class Gatherer {
 public:
  /// Names jobs that are under way. Kept until it has been waited for.
  using Ticket = uint64_t;
  /// The ticket of every job that was over when `submit` returned; it need not be waited for.
  static constexpr Ticket kDone = 0;
  static constexpr uint32_t kMostThreads = 1024;

  /// Starts the threads: all or none. With 0 threads, jobs are done inside `submit`.
  explicit Gatherer(uint32_t threads);
  Gatherer(const Gatherer&) = delete;
  Gatherer& operator=(const Gatherer&) = delete;
  /// Closes. No other thread may be in a function of this object.
  ~Gatherer();

  /// Copies row indices[k] of every piece of the plan to its destination + k * row_bytes. The index
  /// list is copied; the rows and the destinations are borrowed until the job is over. They must
  /// not overlap. Throws kInvalidArgument, before anything is copied, where an index is out of
  /// range, and kClosed. Blocks only for a small job, which it does itself.
  Ticket submit(std::shared_ptr<const GatherPlan> plan, std::span<const uint64_t> destinations,
                std::span<const int64_t> indices);

  /// Helps with the job and returns whether it is over: false only after `timeout_ns` (none: never)
  /// and at most one chunk more. What was copied is then visible to the caller, and the ticket is
  /// no longer known. Throws kInvalidArgument for an unknown ticket, kClosed when the Gatherer is
  /// closed meanwhile.
  bool wait(Ticket ticket, std::optional<uint64_t> timeout_ns);

  /// Whether `wait` would return true at once. Throws kInvalidArgument for an unknown ticket.
  bool done(Ticket ticket);

  /// Abandons the jobs that are not over, wakes who waits for them, and ends the threads. When it
  /// returns, nothing is read or written on behalf of this object. Repeated calls do nothing.
  void close();

 private:
  struct State;

  void check_process() const;

  const pid_t process_;
  std::unique_ptr<State> state_;
};

}  // namespace vramkit
