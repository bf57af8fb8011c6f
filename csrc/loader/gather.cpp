#include "loader/gather.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "loader/gather_copy.h"
#include "loader/stream_copy.h"

namespace vramkit {
namespace {

using Clock = std::chrono::steady_clock;
// A longer timeout does not end while the machine runs, and its deadline might overflow.
constexpr uint64_t kLongestTimeoutNs = uint64_t{1} << 60;

/// What one call of `submit` asked for, cut into chunks that threads claim one by one.
class Job {
 public:
  Job(std::shared_ptr<const GatherPlan> plan, std::span<const uint64_t> destinations,
      std::span<const int64_t> indices)
      : plan_(std::move(plan)), indices_(indices.begin(), indices.end()) {
    const auto& pieces = plan_->pieces();
    plan_->check_destination_count(destinations.size());
    // Not the caller's list, which another thread may change meanwhile.
    plan_->check_indices(indices_);
    copies_.reserve(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      const PieceCopy& copy = copies_.emplace_back(pieces[i], destinations[i], indices_.size());
      chunks_ += copy.chunks();
      bytes_ += copy.bytes();
    }
  }

  uint64_t chunks() const { return chunks_; }
  bool is_small() const { return bytes_ < kSmallJobBytes; }
  bool over() const { return copied_.load(std::memory_order_acquire) == chunks_; }

  enum class Step { kNoneLeft, kCopied, kCopiedLast };
  /// Copies a chunk that no thread has claimed.
  Step copy_next() noexcept {
    uint64_t chunk = claimed_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= chunks_) return Step::kNoneLeft;
    auto copy = copies_.begin();
    for (; chunk >= copy->chunks(); ++copy) chunk -= copy->chunks();
    copy->run(chunk, indices_, !is_small());
    stream_fence();
    const uint64_t copied = copied_.fetch_add(1, std::memory_order_acq_rel) + 1;
    return copied == chunks_ ? Step::kCopiedLast : Step::kCopied;
  }

 private:
  const std::shared_ptr<const GatherPlan> plan_;
  const std::vector<int64_t> indices_;
  std::vector<PieceCopy> copies_;
  uint64_t chunks_ = 0;
  uint64_t bytes_ = 0;
  // All threads write to these: apart from what they only read.
  alignas(64) std::atomic<uint64_t> claimed_ = 0;
  alignas(64) std::atomic<uint64_t> copied_ = 0;
};

/// Blocks the thread's signals for a scope, so that threads started in it leave them to others. A
/// fault of the thread itself stays deliverable: its handler reports where it was.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) {
      ::sigdelset(&all, fault);
    }
    ::pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

struct Gatherer::State {
  std::mutex mutex;
  std::condition_variable more;            // a job was queued, or the Gatherer was closed
  std::condition_variable over;            // a job is over, or the Gatherer was closed
  std::condition_variable idle;            // no thread is copying any more
  std::deque<std::shared_ptr<Job>> queue;  // jobs of which chunks may be unclaimed
  std::unordered_map<Ticket, std::shared_ptr<Job>> tickets;
  Ticket last_ticket = kDone;
  size_t copying = 0;                // threads that copy, ours and callers'
  std::atomic<bool> closed = false;  // written under the mutex
  std::vector<std::thread> threads;  // changed by the constructor and by close() only
  size_t thread_count = 0;

  void check_open() const {
    if (closed) throw_error(Status::kClosed, "the gatherer has been closed");
  }

  std::shared_ptr<Job> find(Ticket ticket) const {
    const auto found = tickets.find(ticket);
    if (found != tickets.end()) return found->second;
    check_open();
    throw_error(Status::kInvalidArgument,
                "the gatherer has no ticket %llu: each ticket of submit is waited for once",
                static_cast<unsigned long long>(ticket));
  }

  /// Copies the job's chunks until none is unclaimed, `enough` says so or the Gatherer is closed.
  /// Enters and returns with the lock held, and copies without it.
  template <typename Enough>
  void copy(std::unique_lock<std::mutex>& lock, Job& job, Enough enough) noexcept {
    ++copying;
    lock.unlock();
    auto step = Job::Step::kCopied;
    while (step == Job::Step::kCopied && !closed.load(std::memory_order_relaxed) && !enough()) {
      step = job.copy_next();
    }
    lock.lock();
    if (step == Job::Step::kCopiedLast) over.notify_all();
    if (--copying == 0 && closed) idle.notify_all();
  }

  /// A thread's life.
  void serve() noexcept {
    std::unique_lock lock(mutex);
    while (true) {
      more.wait(lock, [this] { return closed || !queue.empty(); });
      if (closed) return;
      const std::shared_ptr<Job> job = queue.front();
      copy(lock, *job, [] { return false; });
      if (!queue.empty() && queue.front() == job) queue.pop_front();
    }
  }

  Ticket enqueue(const std::shared_ptr<Job>& job) {
    const Ticket ticket = last_ticket + 1;
    tickets.emplace(ticket, job);
    try {
      queue.push_back(job);
    } catch (...) {
      tickets.erase(ticket);
      throw;
    }
    return last_ticket = ticket;
  }
};

Gatherer::Gatherer(uint32_t threads) : process_(::getpid()), state_(std::make_unique<State>()) {
  if (threads > kMostThreads) {
    throw_error(Status::kInvalidArgument, "a gatherer has at most %u threads, got %u", kMostThreads,
                threads);
  }
  state_->threads.reserve(threads);
  const SignalsBlocked blocked;
  for (uint32_t i = 0; i < threads; ++i) {
    try {
      std::thread& thread =
          state_->threads.emplace_back([state = state_.get()] { state->serve(); });
      ::pthread_setname_np(thread.native_handle(), "vramkit-gather");
    } catch (const std::exception& error) {
      close();  // a thread that is not joined ends the process
      throw_error(
          Status::kSystem,
          "cannot start thread %u of %u of a gatherer: %s; ask for fewer threads or raise the "
          "limit of processes (ulimit -u)",
          i + 1, threads, error.what());
    }
  }
  state_->thread_count = threads;
}

Gatherer::~Gatherer() {
  if (::getpid() != process_) {
    // Its locks may be taken for ever, and its threads cannot be joined.
    static_cast<void>(state_.release());
    return;
  }
  close();
}

void Gatherer::check_process() const {
  if (::getpid() != process_) {
    throw_error(
        Status::kForked,
        "the gatherer belongs to process %d, the parent of this forked process, which has none of "
        "its threads; create one here",
        static_cast<int>(process_));
  }
}

Gatherer::Ticket Gatherer::submit(std::shared_ptr<const GatherPlan> plan,
                                  std::span<const uint64_t> destinations,
                                  std::span<const int64_t> indices) {
  check_process();
  const auto job = std::make_shared<Job>(std::move(plan), destinations, indices);
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.check_open();
  if (job->is_small() || state.thread_count == 0) {
    state.copy(lock, *job, [] { return false; });
    if (!job->over()) state.check_open();
    return kDone;
  }
  const Ticket ticket = state.enqueue(job);
  lock.unlock();
  if (job->chunks() >= state.thread_count) {
    state.more.notify_all();
  } else {
    for (uint64_t i = 0; i < job->chunks(); ++i) state.more.notify_one();
  }
  return ticket;
}

bool Gatherer::wait(Ticket ticket, std::optional<uint64_t> timeout_ns) {
  check_process();
  if (ticket == kDone) return true;
  const bool limited = timeout_ns && *timeout_ns < kLongestTimeoutNs;
  const auto deadline =
      Clock::now() + std::chrono::nanoseconds(limited ? static_cast<int64_t>(*timeout_ns) : 0);
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  const std::shared_ptr<Job> job = state.find(ticket);
  if (!job->over()) {
    state.copy(lock, *job, [&] { return limited && Clock::now() >= deadline; });
  }
  const auto ended = [&] { return job->over() || state.closed; };
  if (limited) {
    if (!state.over.wait_until(lock, deadline, ended)) return false;
  } else {
    state.over.wait(lock, ended);
  }
  if (!job->over()) state.check_open();
  state.tickets.erase(ticket);
  return true;
}

bool Gatherer::done(Ticket ticket) {
  check_process();
  if (ticket == kDone) return true;
  const std::lock_guard guard(state_->mutex);
  return state_->find(ticket)->over();
}

void Gatherer::close() {
  check_process();
  State& state = *state_;
  std::vector<std::thread> threads;
  {
    const std::lock_guard guard(state.mutex);
    state.closed = true;
    threads.swap(state.threads);
  }
  state.more.notify_all();
  state.over.notify_all();
  for (std::thread& thread : threads) thread.join();
  std::unique_lock lock(state.mutex);
  state.idle.wait(lock, [&] { return state.copying == 0; });
  state.queue.clear();
  state.tickets.clear();
}

}  // namespace vramkit
