// The pool as others use it: thread-safe, fork-safe, and its handle is immortal.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "pool/engine.h"

namespace vramkit {

class Pool;

struct PoolConfig {
  EngineConfig engine;
  bool overflow_native = false;
  bool debug_checks = false;
};

/// Called with no lock held.
struct StackHooks {
  uint32_t (*capture)() = nullptr;
  const char* (*text)(uint32_t) = nullptr;
};

/// Takes a pool out of what finds pools by their address. Called once, under the pool's lock, just
/// before the pool gives its addresses up: afterwards they may belong to somebody else. It must
/// neither throw nor take a lock.
using OnClosing = void (*)(const Pool& pool);

/// A Pool object is never deleted (a thread may hold its address while it is closed); what it owns
/// is given back by `close`, or when it was orphaned and its last block is freed. Methods throw
/// `Error` unless they return a Status. Each takes the pool's lock unless it says otherwise; a
/// caller may hold the registry's lock, and must hold no other pool's.
class Pool {
 public:
  Pool(const PoolConfig& config, OnClosing on_closing);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// kOk, kOutOfMemory, kClosed or kForked; throws on wrong use and on a failing backend.
  Status allocate(uint64_t size, uint64_t stream, uint32_t stack_id, uint64_t* address);
  /// The size that was requested. In a forked child blocks of the parent are left alone.
  uint64_t release_block(uint64_t address);
  /// The same, where `stream` comes after all work on the block, but for the recorded uses.
  uint64_t release_block_on(uint64_t address, uint64_t stream);
  void record_stream(uint64_t address, uint64_t stream);
  void declare_external(uint64_t stream);
  std::optional<BlockInfo> find(uint64_t address);

  /// Waits for the device, and gives everything back. Throws kBusy while blocks are live; does
  /// nothing in a closed pool.
  void close();
  /// The owner is gone: the pool closes now, or when its last block is freed.
  void orphan();
  /// Closes an orphaned pool that had to wait for a graph capture.
  void close_if_orphaned();
  void resize(uint64_t capacity_bytes);
  uint64_t trim();
  void check_valid();

  /// Calls look(engine) under the lock.
  template <typename Look>
  auto inspect(Look look) {
    const auto guard = lock();
    return look(engine());
  }
  /// Also of a closed pool, and in a forked child.
  Totals totals();
  /// Why a request of that size cannot be served now.
  std::string explain(uint64_t size);

  bool overflow_native() const { return overflow_native_; }
  /// True the first time.
  bool count_overflow(uint64_t size);

  void set_stack_hooks(StackHooks hooks);
  uint32_t capture_stack() const {
    auto* capture = capture_.load(std::memory_order_acquire);
    return capture != nullptr ? capture() : 0;
  }

  /// When the full pool may have garbage collected again: nanoseconds of the steady clock.
  std::atomic<int64_t>& next_collection_ns() { return next_collection_ns_; }

  /// The CUDA device whose memory the pool manages, or -1.
  int device() const { return device_; }
  bool contains(uint64_t address) const { return address - base_ < address_bytes_; }
  /// True for good once the pool has given everything back.
  bool closed() const { return closed_.load(std::memory_order_acquire); }

  /// Starts to map the capacity in the background, where mapping is slow. Called once.
  void start_background_mapping();

  /// Blocks until no page is being mapped in the background, and none will be.
  void stop_background_mapping();

  /// Around fork, in this order.
  void before_fork();
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child();

 private:
  /// A closed pool changes no more and needs no lock. In a forked child nobody may wait for it: a
  /// fork does not take it, so a thread of the parent may have held it.
  std::unique_lock<std::mutex> lock() {
    if (closed()) return std::unique_lock(mutex_, std::defer_lock);
    return std::unique_lock(mutex_);
  }
  Engine& engine();
  void changed();
  template <typename Release>
  uint64_t release_with(Release release);
  void close_locked();
  bool should_close() const;
  void map_in_background();
  void report_no_background_mapping(const char* why);
  void close_or_report();

  const std::string label_;
  const bool overflow_native_;
  const bool debug_checks_;
  const OnClosing on_closing_;
  std::mutex mutex_;
  std::unique_ptr<Engine> engine_;
  const int device_;
  uint64_t base_ = 0;
  uint64_t address_bytes_ = 0;
  Totals totals_at_close_;
  std::string refusal_;  // what the backend said to the last request, when it had no memory
  bool orphaned_ = false;
  bool in_child_ = false;
  std::atomic<bool> closed_ = false;  // engine_ is gone
  std::atomic<int64_t> next_collection_ns_ = 0;
  std::atomic<uint32_t (*)()> capture_ = nullptr;
  std::atomic<const char* (*)(uint32_t)> stack_text_ = nullptr;
};

}  // namespace vramkit
