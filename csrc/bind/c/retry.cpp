#include "bind/c/retry.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "base/bytes.h"

namespace vramkit {
namespace {

std::atomic<GarbageCollector> garbage_collector = nullptr;

// A program that lives with full pools must not spend its time on collections that free nothing:
// each of these postpones the pool's next one by a multiple of its own duration.
constexpr int kPausePerDuration = 10;

int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

uint64_t less(uint64_t before, uint64_t after) { return before - std::min(before, after); }

}  // namespace

void set_garbage_collector(GarbageCollector collector) { garbage_collector = collector; }

bool collect_for(Pool& pool, uint64_t size, Collected* collected) {
  const GarbageCollector collect = garbage_collector;
  if (collect == nullptr) return false;
  uint64_t live_bytes = 0;
  uint64_t live_blocks = 0;
  const bool hopeless = pool.inspect([&](Engine& engine) {
    live_bytes = engine.counters().live_bytes;
    live_blocks = engine.counters().live_blocks;
    return live_blocks == 0 || size > engine.capacity_bytes();
  });
  const int64_t begin_ns = now_ns();
  if (hopeless || begin_ns < pool.next_collection_ns() || !collect()) return false;
  pool.inspect([&](Engine& engine) {
    collected->ran = true;
    collected->bytes = less(live_bytes, engine.counters().live_bytes);
    collected->blocks = less(live_blocks, engine.counters().live_blocks);
    --engine.counters().failures;  // the request is not refused yet
  });
  if (collected->blocks == 0) {
    const int64_t end_ns = now_ns();
    pool.next_collection_ns() = end_ns + kPausePerDuration * (end_ns - begin_ns);
  }
  return true;
}

Status allocate_or_collect(Pool& pool, uint64_t size, uint64_t stream, uint32_t stack_id,
                           uint64_t* address, Collected* collected) {
  const Status first = pool.allocate(size, stream, stack_id, address);
  if (first != Status::kOutOfMemory || !collect_for(pool, size, collected)) return first;
  return pool.allocate(size, stream, stack_id, address);
}

std::string explain_after(Pool& pool, uint64_t size, const Collected& collected) {
  std::string text = pool.explain(size);
  if (collected.blocks == 0) return text;
  return text + format("\nA garbage collection before this freed %s in %llu %s; it was not enough.",
                       mib(collected.bytes).c_str(),
                       static_cast<unsigned long long>(collected.blocks),
                       collected.blocks == 1 ? "tensor" : "tensors");
}

}  // namespace vramkit
