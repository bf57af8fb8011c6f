#include "pool/registry.h"

#include <pthread.h>

#include <algorithm>
#include <new>
#include <optional>

#include "backend/device_cuda.h"
#include "backend/mapping.h"
#include "base/host_memory.h"

namespace vramkit {
namespace {

// A child forked while another thread makes the registry would wait for that thread for ever.
[[maybe_unused]] const Registry& made_at_load = Registry::instance();

}  // namespace

Registry::Registry()
    : safe_to_fork_(::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0) {
}

Registry& Registry::instance() {
  // In place: loading the library must not fail for want of memory.
  alignas(Registry) static unsigned char storage[sizeof(Registry)];
  static auto* const registry = new (storage) Registry();
  return *registry;
}

Pool* Registry::create(const PoolConfig& config) {
  if (!safe_to_fork_) {
    throw_error(
        Status::kSystem,
        "pthread_atfork failed when vramkit was loaded: no memory was left for its handlers; "
        "start the process again with more memory");
  }
  close_orphaned();
  auto pool =
      std::make_unique<Pool>(config, [](const Pool& closing) { instance().remove(closing); });
  pool->inspect([](Engine& engine) { engine.add_peers_in_use(); });
  const std::lock_guard guard(mutex_);
  size_t slot = 0;
  while (slot < kMaxPools && pools_[slot].load(std::memory_order_relaxed) != nullptr) ++slot;
  if (slot == kMaxPools) {
    throw_error(Status::kInvalidArgument, "%zu pools are open in this process; close some first",
                kMaxPools);
  }
  for (const auto& [device, peer] : peers_) {
    if (device != pool->device()) continue;
    pool->inspect([peer = peer](Engine& engine) { engine.add_peer(peer); });
  }
  forget_closed();
  reserve_more(unclosed_, 1);
  pools_made_.push_back(std::move(pool));
  Pool* made = pools_made_.back().get();
  unclosed_.push_back(made);
  pools_[slot].store(made, std::memory_order_release);
  if (slot >= count_.load(std::memory_order_relaxed)) {
    count_.store(slot + 1, std::memory_order_release);
  }
  made->start_background_mapping();
  return made;
}

void Registry::add_peer(int device, int peer) {
  const std::lock_guard guard(mutex_);
  std::optional<Error> failed;
  each(device, [&](Pool& pool) {
    try {
      pool.inspect([peer](Engine& engine) { engine.add_peer(peer); });
    } catch (const Error& error) {
      if (error.status() != Status::kClosed) failed = error;
    }
  });
  if (failed) throw Error(*failed);
  peers_.emplace(device, peer);
}

void Registry::stop_background_mapping() {
  for (auto& slot : pools_) {
    Pool* pool = slot.load(std::memory_order_acquire);
    if (pool != nullptr) pool->stop_background_mapping();
  }
}

void Registry::close_orphaned() {
  for (auto& slot : pools_) {
    Pool* pool = slot.load(std::memory_order_acquire);
    if (pool != nullptr) pool->close_if_orphaned();
  }
}

void Registry::forget_closed() {
  std::erase_if(unclosed_, [](const Pool* pool) { return pool->closed(); });
}

void Registry::remove(const Pool& pool) {
  for (auto& slot : pools_) {
    if (slot.load(std::memory_order_relaxed) == &pool) {
      slot.store(nullptr, std::memory_order_release);
      return;
    }
  }
}

Totals Registry::totals(int device) {
  std::vector<Pool*> pools;
  {
    const std::lock_guard guard(mutex_);
    for (const auto& pool : pools_made_) {
      if (pool->device() == device) pools.push_back(pool.get());
    }
  }
  Totals sum;  // without the registry's lock: a pool may be waiting for its device
  for (Pool* const pool : pools) sum += pool->totals();
  return sum;
}

uint64_t Registry::open_scope(Pool* pool, int device, uint64_t owner) {
  const std::lock_guard guard(mutex_);
  scopes_.push_back({++last_token_, device, pool, owner});
  update_active(device);
  return last_token_;
}

void Registry::close_scope(uint64_t token) {
  const std::lock_guard guard(mutex_);
  const auto found = std::find_if(scopes_.begin(), scopes_.end(),
                                  [token](const Scope& scope) { return scope.token == token; });
  if (found == scopes_.end()) {
    throw_error(Status::kInvalidArgument, "no scope with token %llu is open: it was closed before",
                static_cast<unsigned long long>(token));
  }
  erase_scope(found);
}

uint64_t Registry::close_latest(uint64_t owner, const std::vector<uint64_t>& mine) {
  const std::lock_guard guard(mutex_);
  const auto rank = [&mine](const Scope& scope) {
    return std::find(mine.begin(), mine.end(), scope.token) - mine.begin();
  };
  auto chosen = scopes_.end();
  bool chosen_is_mine = false;
  for (auto scope = scopes_.begin(); scope != scopes_.end(); ++scope) {
    if (scope->owner != owner) continue;
    const bool is_mine = rank(*scope) < static_cast<std::ptrdiff_t>(mine.size());
    if (chosen_is_mine && (!is_mine || rank(*scope) < rank(*chosen))) continue;
    chosen = scope;
    chosen_is_mine = is_mine;
  }
  const uint64_t token = chosen != scopes_.end() ? chosen->token : 0;
  if (token != 0) erase_scope(chosen);
  return token;
}

void Registry::keep_open(std::vector<uint64_t>& tokens) {
  const std::lock_guard guard(mutex_);
  std::erase_if(tokens, [this](uint64_t token) {
    return std::none_of(scopes_.begin(), scopes_.end(),
                        [token](const Scope& scope) { return scope.token == token; });
  });
}

size_t Registry::close_all_of(uint64_t owner) {
  const std::lock_guard guard(mutex_);
  size_t closed = 0;
  for (auto scope = scopes_.end(); scope != scopes_.begin();) {
    if ((--scope)->owner != owner) continue;
    const auto index = scope - scopes_.begin();
    erase_scope(scope);
    scope = scopes_.begin() + index;
    ++closed;
  }
  return closed;
}

size_t Registry::open_scopes_of(uint64_t owner) {
  const std::lock_guard guard(mutex_);
  return static_cast<size_t>(
      std::count_if(scopes_.begin(), scopes_.end(),
                    [owner](const Scope& scope) { return scope.owner == owner; }));
}

void Registry::erase_scope(std::vector<Scope>::iterator scope) {
  const int device = scope->device;
  scopes_.erase(scope);
  update_active(device);
}

void Registry::update_active(int device) {
  Pool* latest = nullptr;
  for (const Scope& scope : scopes_) {
    if (scope.device == device) latest = scope.pool;
  }
  active_[static_cast<size_t>(device + 1)].store(latest, std::memory_order_release);
}

void Registry::before_fork() {
  Registry& registry = instance();
  registry.mutex_.lock();
  registry.forget_closed();
  for (Pool* pool : registry.unclosed_) pool->before_fork();
  lock_captures();
}

void Registry::after_fork_in_parent() {
  Registry& registry = instance();
  unlock_captures();
  for (Pool* pool : registry.unclosed_) pool->after_fork_in_parent();
  registry.mutex_.unlock();
}

void Registry::after_fork_in_child() {
  Registry& registry = instance();
  unlock_captures();
  MappingShare::forget_parents();
  for (Pool* pool : registry.unclosed_) pool->after_fork_in_child();
  registry.mutex_.unlock();
}

}  // namespace vramkit
