// The C interface of the pools: statuses and texts instead of exceptions.
#include <cstring>
#include <new>
#include <string>

#include "backend/device_cuda.h"
#include "base/bytes.h"
#include "base/error.h"
#include "bind/c/guarded.h"
#include "bind/c/retry.h"
#include "bind/c/vramkit.h"
#include "pool/pool.h"
#include "pool/registry.h"
#include "pool/replay.h"

using vramkit::Engine;
using vramkit::failed;
using vramkit::guarded;
using vramkit::need;
using vramkit::Pool;
using vramkit::Registry;
using vramkit::Status;
using vramkit::tell;

static_assert(static_cast<int>(Status::kNotRouted) == VRAMKIT_NOT_ROUTED);
static_assert(static_cast<int>(Status::kBusy) == VRAMKIT_BUSY);
static_assert(static_cast<int>(Status::kDoubleFree) == VRAMKIT_DOUBLE_FREE);
static_assert(VRAMKIT_SIZE_CLASSES == vramkit::kSizeClasses);
static_assert(VRAMKIT_MAX_DEVICES == Registry::kMaxDevices);

namespace {

Pool& pool_of(vramkit_pool* handle) {
  need(handle, "pool");
  return *reinterpret_cast<Pool*>(handle);
}
vramkit_pool* handle_of(Pool* pool) { return reinterpret_cast<vramkit_pool*>(pool); }
uint64_t number(const void* address) { return reinterpret_cast<uint64_t>(address); }

void check_device(int32_t device) {
  if (device >= VRAMKIT_DEVICE_CPU && device < VRAMKIT_MAX_DEVICES) return;
  vramkit::fail(Status::kInvalidArgument, "device %d is not between -1 (the CPU) and %d", device,
                VRAMKIT_MAX_DEVICES - 1);
}

/// Leaves the text for a request that a pool has answered with that status.
Status with_reason(Pool& pool, uint64_t size_bytes, Status status,
                   const vramkit::Collected& collected) {
  if (status == Status::kOutOfMemory) {
    try {
      tell(vramkit::explain_after(pool, size_bytes, collected));
    } catch (const std::bad_alloc&) {
      failed(status, "the pool is out of memory, and the machine has none left to say why");
    }
  } else if (status == Status::kClosed || status == Status::kForked) {
    pool.inspect([](Engine&) {});  // throws the reason
  }
  return status;
}

vramkit_block to_c(const vramkit::BlockInfo& info) {
  vramkit_block block{};
  block.address = info.address;
  block.size_bytes = info.size;
  block.requested_bytes = info.requested;
  block.stream = info.stream;
  block.stack_id = info.stack_id;
  const bool live = info.state == vramkit::BlockState::kLive;
  block.state = live           ? VRAMKIT_BLOCK_LIVE
                : info.pending ? VRAMKIT_BLOCK_PENDING
                               : VRAMKIT_BLOCK_FREE;
  block.kind = static_cast<uint32_t>(info.kind);
  return block;
}

vramkit_stats stats_of(const Engine& engine) {
  const vramkit::Counters& counters = engine.counters();
  const uint64_t page = engine.page_bytes();
  vramkit_stats stats{};
  stats.capacity_bytes = engine.capacity_bytes();
  stats.page_bytes = page;
  stats.live_bytes = counters.live_bytes;
  stats.peak_live_bytes = counters.peak_live_bytes;
  stats.allocated_bytes = counters.allocated_bytes;
  stats.peak_allocated_bytes = counters.peak_allocated_bytes;
  stats.mapped_bytes = engine.pages().backed_count() * page;
  stats.peak_mapped_bytes = engine.pages().peak_backed_count() * page;
  stats.held_bytes = engine.held_bytes();
  stats.free_bytes = stats.capacity_bytes - counters.allocated_bytes;
  stats.largest_free_bytes = engine.largest_hole();
  stats.largest_stitch_bytes = engine.free_page_bytes();
  stats.pending_bytes = engine.pending_bytes();
  stats.live_blocks = counters.live_blocks;
  stats.peak_live_blocks = counters.peak_live_blocks;
  stats.allocations = counters.allocations;
  stats.frees = counters.frees;
  stats.failures = counters.failures;
  stats.stitched_requests = counters.stitched_requests;
  stats.stitched_pages = counters.stitched_pages;
  stats.alias_hits = counters.alias_hits;
  stats.mapping_calls = engine.pages().mapping_calls();
  stats.cross_stream_waits = engine.cross_stream_waits();
  stats.overflow_allocations = counters.overflow_allocations;
  stats.overflow_bytes = counters.overflow_bytes;
  stats.metadata_bytes = engine.metadata_bytes();
  return stats;
}

vramkit::PoolConfig config_from(const vramkit_pool_config* config) {
  if (config == nullptr || config->backend == nullptr) {
    vramkit::fail(Status::kInvalidArgument, "a pool needs a config with a backend");
  }
  const uint64_t page = config->page_bytes != 0 ? config->page_bytes : 2 * vramkit::kMiB;
  const std::string label = config->label != nullptr ? config->label : config->backend;
  return {{config->backend, label, config->capacity_bytes, page},
          config->overflow_native != 0,
          config->debug_checks != 0};
}

}  // namespace

vramkit_status vramkit_pool_create(const vramkit_pool_config* config, vramkit_pool** pool) {
  return guarded([&] {
    need(pool, "pool");
    *pool = handle_of(Registry::instance().create(config_from(config)));
  });
}

vramkit_status vramkit_pool_close(vramkit_pool* pool) {
  return guarded([&] { pool_of(pool).close(); });
}

vramkit_status vramkit_pool_release(vramkit_pool* pool) {
  return guarded([&] { pool_of(pool).release(); });
}

vramkit_status vramkit_prepare_exit() {
  return guarded([] { Registry::instance().stop_backing(); });
}

vramkit_status vramkit_pool_resize(vramkit_pool* pool, uint64_t capacity_bytes) {
  return guarded([&] { pool_of(pool).resize(capacity_bytes); });
}

vramkit_status vramkit_pool_trim(vramkit_pool* pool, uint64_t* released_bytes) {
  return guarded([&] {
    const uint64_t released = pool_of(pool).trim();
    if (released_bytes != nullptr) *released_bytes = released;
  });
}

vramkit_status vramkit_pool_check(vramkit_pool* pool) {
  return guarded([&] { pool_of(pool).check_valid(); });
}

vramkit_status vramkit_alloc(vramkit_pool* pool, uint64_t size_bytes, uint64_t stream,
                             uint32_t stack_id, void** address) {
  return guarded([&] {
    need(address, "address");
    uint64_t got = 0;
    vramkit::Collected collected;
    const Status status =
        vramkit::allocate_or_collect(pool_of(pool), size_bytes, stream, stack_id, &got, &collected);
    *address = reinterpret_cast<void*>(got);
    return with_reason(pool_of(pool), size_bytes, status, collected);
  });
}

vramkit_status vramkit_free(vramkit_pool* pool, void* address, uint64_t* size_bytes) {
  return guarded([&] {
    const uint64_t size = pool_of(pool).release_block(number(address));
    if (size_bytes != nullptr) *size_bytes = size;
  });
}

vramkit_status vramkit_free_on(vramkit_pool* pool, void* address, uint64_t stream,
                               uint64_t* size_bytes) {
  return guarded([&] {
    const uint64_t size = pool_of(pool).release_block_on(number(address), stream);
    if (size_bytes != nullptr) *size_bytes = size;
  });
}

vramkit_status vramkit_record_stream(vramkit_pool* pool, void* address, uint64_t stream) {
  return guarded([&] { pool_of(pool).record_stream(number(address), stream); });
}

vramkit_status vramkit_declare_short_lived_stream(vramkit_pool* pool, uint64_t stream) {
  return guarded([&] { pool_of(pool).declare_short_lived(stream); });
}

vramkit_pool* vramkit_owner(const void* address) {
  return handle_of(Registry::instance().owner(number(address)));
}

vramkit_status vramkit_find_block(vramkit_pool* pool, const void* address, vramkit_block* block) {
  return guarded([&] {
    need(block, "block");
    const auto found = pool_of(pool).find(number(address));
    if (!found) {
      vramkit::fail(Status::kForeignPointer, "no live block of this pool contains %p", address);
    }
    *block = to_c(*found);
  });
}

vramkit_status vramkit_snapshot(vramkit_pool* pool, vramkit_block* blocks, uint64_t room,
                                uint64_t* count) {
  return guarded([&] {
    need(count, "count");
    if (room > 0) need(blocks, "blocks");
    const auto infos = pool_of(pool).inspect([](Engine& engine) { return engine.snapshot(); });
    *count = infos.size();
    for (size_t i = 0; i < infos.size() && i < room; ++i) blocks[i] = to_c(infos[i]);
  });
}

vramkit_status vramkit_pool_stats(vramkit_pool* pool, vramkit_stats* stats) {
  return guarded([&] {
    need(stats, "stats");
    *stats = pool_of(pool).inspect(stats_of);
  });
}

vramkit_status vramkit_pool_reset_peaks(vramkit_pool* pool) {
  return guarded([&] { pool_of(pool).inspect([](Engine& engine) { engine.reset_peaks(); }); });
}

vramkit_status vramkit_pool_size_classes(vramkit_pool* pool, vramkit_size_class* rows) {
  return guarded([&] {
    need(rows, "rows");
    const auto classes =
        pool_of(pool).inspect([](Engine& engine) { return engine.counters().classes; });
    for (size_t i = 0; i < classes.size(); ++i) {
      rows[i] = {vramkit::kAlignment << i, classes[i].live_blocks, classes[i].live_bytes,
                 classes[i].allocations, classes[i].frees};
    }
  });
}

vramkit_status vramkit_explain(vramkit_pool* pool, uint64_t size_bytes, char* text, uint64_t room,
                               uint64_t* length) {
  return guarded([&] {
    need(length, "length");
    if (room > 0) need(text, "text");
    const std::string words = pool_of(pool).explain(size_bytes);
    *length = words.size();
    if (room == 0) return;
    const size_t copied = std::min<size_t>(words.size(), room - 1);
    std::memcpy(text, words.data(), copied);
    text[copied] = '\0';
  });
}

vramkit_status vramkit_scope_open(vramkit_pool* pool, int32_t device, uint64_t* token) {
  return guarded([&] {
    need(token, "token");
    check_device(device);
    auto* routed = reinterpret_cast<Pool*>(pool);
    if (routed != nullptr) routed->inspect([](Engine&) {});  // refuses a closed or inherited pool
    *token = Registry::instance().open_scope(routed, device);
  });
}

vramkit_status vramkit_scope_close(uint64_t token) {
  return guarded([&] { Registry::instance().close_scope(token); });
}

vramkit_pool* vramkit_active_pool(int32_t device) {
  if (device < VRAMKIT_DEVICE_CPU || device >= VRAMKIT_MAX_DEVICES) return nullptr;
  return handle_of(Registry::instance().active(device));
}

vramkit_status vramkit_pool_set_stack_hooks(vramkit_pool* pool, vramkit_stack_hook hook,
                                            vramkit_stack_text text) {
  return guarded([&] { pool_of(pool).set_stack_hooks({hook, text}); });
}

vramkit_status vramkit_route_alloc(int32_t device, uint64_t size_bytes, uint64_t stream,
                                   uint32_t flags, void** address, vramkit_pool** overflowed) {
  if (address == nullptr || overflowed == nullptr) {
    return failed(Status::kInvalidArgument, "the argument address or overflowed is a null pointer");
  }
  *overflowed = nullptr;
  auto* const pool = reinterpret_cast<Pool*>(vramkit_active_pool(device));
  if (pool == nullptr) return VRAMKIT_NOT_ROUTED;
  const vramkit_status answer = guarded([&] {
    if ((flags & VRAMKIT_STREAM_SHORT_LIVED) != 0) pool->declare_short_lived(stream);
    uint64_t got = 0;
    vramkit::Collected collected;
    const uint32_t stack_id = pool->capture_stack();
    // Where an overflow is no error, a collection for each would cost more than it saves.
    const Status status =
        pool->overflow_native()
            ? pool->allocate(size_bytes, stream, stack_id, &got)
            : vramkit::allocate_or_collect(*pool, size_bytes, stream, stack_id, &got, &collected);
    *address = reinterpret_cast<void*>(got);
    if (status != Status::kOutOfMemory) return status;
    if (!pool->overflow_native()) return with_reason(*pool, size_bytes, status, collected);
    if (pool->count_overflow(size_bytes)) *overflowed = handle_of(pool);
    return Status::kNotRouted;
  });
  // Another thread may close the pool at any point of this.
  return answer == VRAMKIT_CLOSED || answer == VRAMKIT_FORKED ? VRAMKIT_NOT_ROUTED : answer;
}

vramkit_status vramkit_route_free(void* address, uint64_t* size_bytes) {
  Pool* pool = Registry::instance().owner(number(address));
  if (pool == nullptr) return VRAMKIT_NOT_ROUTED;
  return guarded([&] {
    const uint64_t size = pool->release_block(number(address));
    if (size_bytes != nullptr) *size_bytes = size;
  });
}

const vramkit_core_api* vramkit_core() {
  static const vramkit_core_api api = {
      VRAMKIT_ABI_VERSION,      sizeof(vramkit_core_api), vramkit_last_error,
      vramkit_route_alloc,      vramkit_route_free,       vramkit_owner,
      vramkit_active_pool,      vramkit_record_stream,    vramkit_find_block,
      vramkit_pool_stats,       vramkit_snapshot,         vramkit_device_pools,
      vramkit_capture_begin,    vramkit_capture_end,      vramkit_device_add_peer,
      vramkit_pool_reset_peaks, vramkit_device_totals,    vramkit_declare_short_lived_stream,
  };
  return &api;
}

vramkit_status vramkit_device_pools(int32_t device, vramkit_pool** pools, uint64_t room,
                                    uint64_t* count) {
  return guarded([&] {
    need(count, "count");
    if (room > 0) need(pools, "pools");
    *count = 0;
    Registry::instance().each(device, [&](Pool& pool) {
      if (*count < room) pools[*count] = handle_of(&pool);
      ++*count;
    });
  });
}

vramkit_status vramkit_device_totals(int32_t device, vramkit_totals* totals) {
  return guarded([&] {
    need(totals, "totals");
    const vramkit::Totals sum = Registry::instance().totals(device);
    *totals = {sum.allocations,     sum.frees,
               sum.requested_bytes, sum.freed_requested_bytes,
               sum.allocated_bytes, sum.freed_allocated_bytes,
               sum.shortages};
  });
}

vramkit_status vramkit_capture_begin(int32_t device, uint64_t stream) {
  return guarded([&] { vramkit::begin_capture(device, stream); });
}

vramkit_status vramkit_capture_end(int32_t device, uint64_t stream) {
  return guarded([&] {
    vramkit::end_capture(device, stream);
    Registry::instance().close_abandoned();
  });
}

vramkit_status vramkit_device_add_peer(int32_t device, int32_t peer) {
  return guarded([&] { Registry::instance().add_peer(device, peer); });
}

vramkit_status vramkit_fault(vramkit_pool* pool, const char* call, uint64_t nth) {
  return guarded([&] {
    need(call, "call");
    pool_of(pool).inspect([&](Engine& engine) { engine.inject_fault(call, nth); });
  });
}

vramkit_status vramkit_complete_events(vramkit_pool* pool, uint64_t count) {
  return guarded(
      [&] { pool_of(pool).inspect([&](Engine& engine) { engine.complete_events(count); }); });
}

struct vramkit_replay {
  vramkit::Replay replay;
};

vramkit_status vramkit_replay_create(vramkit_pool* pool, uint64_t block_count,
                                     vramkit_replay** replay) {
  return guarded([&] {
    need(replay, "replay");
    *replay = new vramkit_replay{{pool_of(pool), block_count}};
  });
}

void vramkit_replay_destroy(vramkit_replay* replay) { delete replay; }

vramkit_status vramkit_replay_run(vramkit_replay* replay, const uint8_t* op, const int64_t* id,
                                  const int64_t* size_bytes, const int32_t* stream, uint64_t count,
                                  uint64_t* done) {
  return guarded([&] {
    need(replay, "replay");
    need(done, "done");
    *done = 0;
    if (count > 0) {
      need(op, "op");
      need(id, "id");
      need(size_bytes, "size_bytes");
      need(stream, "stream");
    }
    for (; *done < count; ++*done) {
      const uint64_t i = *done;
      const Status status = replay->replay.step(static_cast<vramkit::Replay::Op>(op[i]), id[i],
                                                size_bytes[i], stream[i]);
      if (status != Status::kOk) {
        const auto wanted = static_cast<uint64_t>(size_bytes[i]);
        return with_reason(replay->replay.pool(), wanted, status, {});
      }
    }
    return Status::kOk;
  });
}
