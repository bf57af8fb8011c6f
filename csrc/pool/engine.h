// The pool without its lock.
//
// A small request takes a slot of a span, perhaps in a new chunk (`SmallPlacer`). A larger one, or
// a small one for which there is no room, goes where `LargePlacer::place` finds a place first. If
// nothing fits, memory that was freed by streams that may be gone is tried last, after a wait for
// the device. Then the request has failed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "pool/aliases.h"
#include "pool/background_mapper.h"
#include "pool/block_lookup.h"
#include "pool/capacity.h"
#include "pool/counters.h"
#include "pool/free_memory.h"
#include "pool/large_placer.h"
#include "pool/live_set_hash.h"
#include "pool/pages.h"
#include "pool/placement_cache.h"
#include "pool/range.h"
#include "pool/small_placer.h"
#include "pool/spans.h"
#include "pool/streams.h"

namespace vramkit {

struct EngineConfig {
  std::string backend;
  std::string label;
  uint64_t capacity_bytes;
  uint64_t page_bytes;
};

enum class BlockKind : uint8_t { kLarge, kSmall, kStitched };

/// A block as others see it.
struct BlockInfo {
  uint64_t address = 0;
  uint64_t size = 0;
  uint64_t requested = 0;
  uint64_t stream = 0;
  uint32_t stack_id = 0;
  BlockState state = BlockState::kFree;
  BlockKind kind = BlockKind::kLarge;
  bool pending = false;
};

/// Owns the pool's parts and connects them: counts, names streams, records uses, describes blocks.
/// The pool holds its lock during every call, and nobody else has an engine. Addresses are the
/// pool's. A call that throws `Error` leaves a valid pool (`check_valid`).
class Engine {
 public:
  explicit Engine(const EngineConfig& config) : Engine(config, make_backend(config.backend)) {}
  /// With that backend, whatever the config names.
  Engine(const EngineConfig& config, std::unique_ptr<Backend> backend);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// The address, or 0 when the pool cannot serve the request.
  uint64_t allocate(uint64_t size, uint64_t stream, uint32_t stack_id);
  /// Returns the size that was requested.
  uint64_t release(uint64_t address);
  /// The same, where `stream` comes after all work on the block, but for the recorded uses.
  uint64_t release_on(uint64_t address, uint64_t stream);
  void record_stream(uint64_t address, uint64_t stream);
  void declare_external(uint64_t stream) { streams_.declare_external(stream); }
  /// The live block that contains the address.
  std::optional<BlockInfo> find(uint64_t address) const;

  void resize(uint64_t capacity_bytes);
  /// Returns the bytes given back. What the system refuses to take is reported, and stays.
  uint64_t trim();
  /// Waits for all work on freed memory.
  void drain() { memory_.drain(); }
  void reset_peaks();
  /// False while a graph capture forbids to wait for the device.
  bool may_wait() const { return streams_.events_allowed(); }
  /// True while pages are still to be mapped in the background.
  bool maps_in_background() const { return background_.active(); }
  /// See `BackgroundMapper`, whose calls these are.
  std::shared_ptr<BackgroundMapping> next_background_mapping(uint64_t pages) {
    return background_.next(pages);
  }
  void finish_background_mapping() { background_.finish(); }
  void stop_background_mapping() { background_.stop(); }
  int device() const { return backend_->device(); }
  /// Lets another device access the memory, as it can access this device's other memory.
  void add_peer(int device);
  /// Lets those that the process uses. One that cannot is reported, and harms nothing.
  void add_peers_in_use();

  uint64_t base() const { return backend_->base(); }
  uint64_t address_bytes() const { return layout_.address_bytes(); }
  uint64_t page_bytes() const { return layout_.page_bytes; }
  uint64_t capacity_bytes() const { return capacity_.pages() * page_bytes(); }
  /// What resize() could give, by the pool's addresses.
  uint64_t most_capacity_bytes() const {
    return (capacity_.pages() + capacity_.spare_pages()) * page_bytes();
  }
  /// What any pool could have of the machine or the device.
  uint64_t memory_limit() const { return backend_->memory_limit(); }
  const std::string& label() const { return label_; }
  Counters& counters() { return counters_; }
  const Counters& counters() const { return counters_; }
  const Pages& pages() const { return pages_; }
  /// Why stitching could not map so many bytes, in words; empty where no limit forbids it.
  std::string alias_limit(uint64_t bytes) const;
  uint64_t cross_stream_waits() const { return streams_.waits(); }
  uint64_t pending_bytes() const;
  uint64_t largest_free_extent() const { return range_.largest_free_extent(); }
  /// Wholly free pages together.
  uint64_t free_page_bytes() const;
  /// Memory taken from the device, mapped or not.
  uint64_t held_bytes() const { return backend_->held_pages(pages_.backed_count()) * page_bytes(); }
  uint64_t metadata_bytes() const;
  std::vector<BlockInfo> snapshot() const;

  /// Throws with the name of the invariant that does not hold.
  void check_valid() const;

  void discard_free_in_child();
  void inject_fault(const std::string& call, uint64_t nth) { backend_->inject_fault(call, nth); }
  void complete_events(uint64_t count) { backend_->complete_events(count); }

 private:
  /// The stream that a call names.
  StreamIndex enter(uint64_t handle) {
    const StreamIndex stream = streams_.index_of(handle);
    if (stream > 0) {
      range_.prepare_stream(stream);
      range_.keep_streams_apart();
    }
    streams_.note_alive(stream);
    return stream;
  }
  bool wait_for_external_streams();
  template <typename After>
  uint64_t release_after(uint64_t address, After after);
  FoundBlock block_starting_at(uint64_t address) const;
  [[noreturn]] void refuse_address(uint64_t address) const;

  BlockInfo describe(const Block& block) const;
  BlockInfo describe(const Spans::Slot& slot) const;
  BlockInfo describe(const Alias& alias) const;

  void check_blocks() const;
  void check_aliases() const;
  void check_totals() const;

  // In the order of their dependencies: each part uses only those before it.
  const std::string label_;
  const Layout layout_;
  std::unique_ptr<Backend> backend_;
  Streams streams_;
  Range range_;
  LiveSetHash live_set_;
  Spans spans_;
  Pages pages_;
  Aliases aliases_;
  PlacementCache placement_cache_;
  Counters counters_;
  FreeMemory memory_;
  SmallPlacer small_placer_;
  LargePlacer large_placer_;
  BlockLookup lookup_;
  Capacity capacity_;
  BackgroundMapper background_;
};

}  // namespace vramkit
