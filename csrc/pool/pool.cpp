#include "pool/pool.h"

#include <new>
#include <thread>

#include "base/bytes.h"
#include "pool/explain.h"

namespace vramkit {

Pool::Pool(const PoolConfig& config, OnClosing on_closing)
    : label_(config.engine.label),
      overflow_native_(config.overflow_native),
      debug_checks_(config.debug_checks),
      on_closing_(on_closing),
      engine_(std::make_unique<Engine>(config.engine)),
      device_(engine_->device()),
      base_(engine_->base()),
      address_bytes_(engine_->address_bytes()) {}

void Pool::start_background_mapping() {
  // Detached: the object is immortal, and a closed pool ends the loop.
  if (!inspect([](Engine& engine) { return engine.maps_in_background(); })) return;
  try {
    std::thread([this] { map_in_background(); }).detach();
  } catch (const std::exception& error) {  // no thread, or no memory for one
    report_no_background_mapping(error.what());
  }
}

void Pool::report_no_background_mapping(const char* why) {
  report("%s: memory is mapped when it is needed, not in the background: %s", label_.c_str(), why);
  stop_background_mapping();
}

void Pool::stop_background_mapping() {
  const auto guard = lock();
  if (engine_ && !in_child_) engine_->stop_background_mapping();
}

void Pool::map_in_background() {
  constexpr uint64_t kPagesAtATime = 2;  // who needs one of them waits for both
  const auto next = [this] {
    const auto guard = lock();
    return engine_ ? engine_->next_background_mapping(kPagesAtATime) : nullptr;
  };
  try {
    while (const std::shared_ptr<BackgroundMapping> mapping = next()) {
      mapping->map();
      if (mapping->failure()) return report_no_background_mapping(mapping->failure()->what());
    }
  } catch (const std::bad_alloc& error) {
    report_no_background_mapping(error.what());
  }
}

Engine& Pool::engine() {
  if (!engine_)
    throw_error(Status::kClosed, "%s: the pool is closed; make a new one", label_.c_str());
  if (in_child_) {
    throw_error(
        Status::kForked,
        "%s: this pool belongs to the parent of this process; make a pool of its own in the child",
        label_.c_str());
  }
  return *engine_;
}

void Pool::changed() {
  if (!debug_checks_) return;
  try {
    engine_->check_valid();
  } catch (const std::bad_alloc&) {
    // The check itself found no memory. What was asked for is done all the same.
  }
}

Status Pool::allocate(uint64_t size, uint64_t stream, uint32_t stack_id, uint64_t* address) {
  const auto guard = lock();
  if (!engine_) return Status::kClosed;
  if (in_child_) return Status::kForked;
  refusal_.clear();
  try {
    *address = engine_->allocate(size, stream, stack_id);
  } catch (const Error& error) {
    // Memory that was given back and that somebody else has now, or that cannot be waited for while
    // a graph is captured: a shortage like any other.
    if (error.status() != Status::kOutOfMemory && error.status() != Status::kBusy) throw;
    ++engine_->counters().failures;
    refusal_ = error.what();
    *address = 0;
  }
  changed();
  return *address != 0 ? Status::kOk : Status::kOutOfMemory;
}

template <typename Release>
uint64_t Pool::release_with(Release release) {
  const auto guard = lock();
  if (in_child_) return 0;
  const uint64_t requested = release(engine());
  changed();
  if (should_close()) close_or_report();
  return requested;
}

uint64_t Pool::release_block(uint64_t address) {
  return release_with([address](Engine& engine) { return engine.release(address); });
}

uint64_t Pool::release_block_on(uint64_t address, uint64_t stream) {
  return release_with([=](Engine& engine) { return engine.release_on(address, stream); });
}

/// For callers that have done what they were asked for.
void Pool::close_or_report() {
  try {
    close_locked();
  } catch (const std::exception& error) {
    report("%s: the pool stays open after its last block: %s", label_.c_str(), error.what());
  }
}

void Pool::record_stream(uint64_t address, uint64_t stream) {
  inspect([&](Engine& engine) { engine.record_stream(address, stream); });
}

void Pool::declare_external(uint64_t stream) {
  inspect([&](Engine& engine) { engine.declare_external(stream); });
}

std::optional<BlockInfo> Pool::find(uint64_t address) {
  const auto guard = lock();
  // A child may look at what it inherited.
  return engine_ ? engine_->find(address) : std::nullopt;
}

void Pool::close() {
  const auto guard = lock();
  if (!engine_) return;
  const Counters& counters = engine().counters();
  if (counters.live_blocks > 0) {
    throw_error(
        Status::kBusy,
        "%s: cannot close: the pool still holds %s of %s in total; delete the tensors or buffers "
        "first (pool.snapshot() lists them)",
        label_.c_str(), counted(counters.live_blocks, "live block").c_str(),
        mib(counters.live_bytes).c_str());
  }
  close_locked();
}

void Pool::orphan() {
  const auto guard = lock();
  if (!engine_) return;
  orphaned_ = true;
  if (should_close()) close_locked();
}

void Pool::close_if_orphaned() {
  const auto guard = lock();
  if (should_close()) close_or_report();
}

/// Nobody can use the pool any more, and nothing forbids to wait for the work on its memory.
bool Pool::should_close() const {
  return orphaned_ && engine_ && !in_child_ && engine_->counters().live_blocks == 0 &&
         engine_->may_wait();
}

void Pool::close_locked() {
  engine_->drain();
  on_closing_(*this);
  totals_at_close_ = engine_->counters().totals();
  engine_.reset();
  closed_.store(true, std::memory_order_release);
}

void Pool::resize(uint64_t capacity_bytes) {
  const auto guard = lock();
  engine().resize(capacity_bytes);
  changed();
}

uint64_t Pool::trim() {
  const auto guard = lock();
  const uint64_t released = engine().trim();
  changed();
  return released;
}

void Pool::check_valid() {
  inspect([](Engine& engine) { engine.check_valid(); });
}

Totals Pool::totals() {
  const auto guard = lock();
  return engine_ ? engine_->counters().totals() : totals_at_close_;
}

std::string Pool::explain(uint64_t size) {
  const Shortage shortage = inspect([this, size](Engine& engine) {
    Shortage described = describe_shortage(engine, size);
    described.refusal = refusal_;
    return described;
  });
  return explain_shortage(shortage, stack_text_.load(std::memory_order_acquire));
}

bool Pool::count_overflow(uint64_t size) {
  const auto guard = lock();
  Counters& counters = engine().counters();
  counters.overflow_bytes += size;
  return counters.overflow_allocations++ == 0;
}

void Pool::set_stack_hooks(StackHooks hooks) {
  capture_.store(hooks.capture, std::memory_order_release);
  stack_text_.store(hooks.text, std::memory_order_release);
}

void Pool::before_fork() {
  mutex_.lock();
  if (engine_) engine_->finish_background_mapping();  // the thread that maps is not in the child
}

void Pool::after_fork_in_child() {
  if (engine_ && !in_child_) engine_->discard_free_in_child();
  in_child_ = true;
  mutex_.unlock();
}

}  // namespace vramkit
