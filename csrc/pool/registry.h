// All pools of the process: who owns an address, and which pool serves a device now.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "pool/pool.h"

namespace vramkit {

/// Any thread may call any method. `mutex_` protects the scopes and the lists; it is taken before a
/// pool's lock and never while one is held. Reading who owns an address, and which pool is active,
/// takes no lock.
class Registry {
 public:
  static constexpr int kMaxDevices = 64;
  static constexpr size_t kMaxPools = 1024;

  /// Made when the library is loaded, so that no fork can come in between; never destroyed, because
  /// blocks are freed until the very end of the process.
  static Registry& instance();

  /// Makes a pool and registers it; the pool removes itself when it closes. The registry owns the
  /// object for ever. Blocks while the device's memory is taken.
  Pool* create(const PoolConfig& config);

  /// The pool whose addresses include `address`, or null. Takes no lock.
  Pool* owner(uint64_t address) const {
    const size_t count = count_.load(std::memory_order_acquire);
    for (size_t i = 0; i < count; ++i) {
      Pool* pool = pools_[i].load(std::memory_order_acquire);
      if (pool != nullptr && pool->contains(address)) return pool;
    }
    return nullptr;
  }

  /// The memory of the device's pools, and of those still to be made, becomes accessible from
  /// `peer`. Throws after it has tried all pools; none is left half granted.
  void add_peer(int device, int peer);
  /// Stops it in all pools, before the process ends. Blocks until no page is being mapped.
  void stop_background_mapping();
  /// Closes pools whose owner went during a graph capture.
  void close_orphaned();

  /// Calls visit(pool) for the pools of a device.
  template <typename Visit>
  void each(int device, Visit visit) const {
    const size_t count = count_.load(std::memory_order_acquire);
    for (size_t i = 0; i < count; ++i) {
      Pool* pool = pools_[i].load(std::memory_order_acquire);
      if (pool != nullptr && pool->device() == device) visit(*pool);
    }
  }

  /// Of all pools that the device ever had: sums do not fall when a pool closes.
  Totals totals(int device);

  /// Device -1 is the CPU. A null pool: while the scope is the latest, nothing is routed.
  /// `owner` is any number that tells the scopes of one opener from those of others.
  uint64_t open_scope(Pool* pool, int device, uint64_t owner = 0);
  void close_scope(uint64_t token);
  /// Closes the owner's scope that stands last in `mine`, else its latest one. Returns its token,
  /// or 0 when none is open.
  uint64_t close_latest(uint64_t owner, const std::vector<uint64_t>& mine);
  /// Erases the tokens of closed scopes.
  void keep_open(std::vector<uint64_t>& tokens);
  /// Returns how many there were.
  size_t close_all_of(uint64_t owner);
  size_t open_scopes_of(uint64_t owner);
  Pool* active(int device) const {
    return active_[static_cast<size_t>(device + 1)].load(std::memory_order_acquire);
  }

 private:
  struct Scope {
    uint64_t token;
    int device;
    Pool* pool;
    uint64_t owner;
  };

  Registry();
  /// A pool calls it while it closes, under its own lock and perhaps under `mutex_`: takes none.
  void remove(const Pool& pool);
  void erase_scope(std::vector<Scope>::iterator scope);
  void update_active(int device);
  void forget_closed();
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

  std::mutex mutex_;
  std::vector<Scope> scopes_;
  std::set<std::pair<int, int>> peers_;  // device, who may access its memory
  uint64_t last_token_ = 0;
  bool safe_to_fork_ = false;                      // the handlers are registered
  std::vector<std::unique_ptr<Pool>> pools_made_;  // closed ones too: handles are immortal
  // Those whose locks a fork takes. A pool leaves `pools_` when it begins to close, and this list
  // only after it has closed.
  std::vector<Pool*> unclosed_;
  std::atomic<size_t> count_ = 0;
  std::array<std::atomic<Pool*>, kMaxPools> pools_{};
  std::array<std::atomic<Pool*>, kMaxDevices + 1> active_{};
};

}  // namespace vramkit
