// The pool without its lock: how a request is served.
//
// A small one takes a slot of a span, perhaps in a new chunk. For a larger one, chunks that have
// become empty are given back first. Where the same blocks were live before, it takes the place
// that the same one had then, if that is free again, as a new chunk does. In a pool that had to
// stitch, it takes one of the last two places that it had while blocks of the same sizes were live.
// Otherwise it takes the tightest hole: with memory to spare one that its stream can have at once,
// else one that another stream freed, after an event; in a tight pool with several streams the
// tightest extent, whoever freed it. Where no hole is large enough it takes a stitched address
// that is still mapped, then a new one. What streams that may be gone have freed comes last, after
// a wait for the device. Then it has failed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "pool/aliases.h"
#include "pool/counters.h"
#include "pool/pages.h"
#include "pool/placement_cache.h"
#include "pool/range.h"
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

/// Throws for less than a page and for more than the machine has.
void check_capacity(const std::string& label, uint64_t capacity_bytes, uint64_t page_bytes,
                    const Backend& backend);

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
  void drain();
  void reset_peaks();
  /// False while a graph capture forbids to wait for the device.
  bool may_wait() const { return streams_.events_allowed(); }
  bool maps_in_background() const { return maps_in_background_; }
  /// Takes note of what was mapped ahead, and chooses up to `pages` pages to be mapped next,
  /// without the pool's lock; none when there are no more.
  std::shared_ptr<BackgroundMapping> next_background_mapping(uint64_t pages);
  /// Afterwards nobody maps anything while somebody else has the pool's lock.
  void finish_background_mapping() { pages_.finish_background_mapping(); }
  void stop_background_mapping() {
    finish_background_mapping();
    maps_in_background_ = false;
  }
  int device() const { return backend_->device(); }
  /// Lets another device access the memory, as it can access this device's other memory.
  void add_peer(int device);
  /// Lets those that the process uses. One that cannot is reported, and harms nothing.
  void add_peers_in_use();

  uint64_t base() const { return backend_->base(); }
  uint64_t address_bytes() const {
    return (layout_.primary_pages + layout_.alias_pages) * page_bytes();
  }
  uint64_t page_bytes() const { return layout_.page_bytes; }
  uint64_t capacity_bytes() const { return capacity_pages_ * page_bytes(); }
  /// What resize() could give, by the pool's addresses.
  uint64_t most_capacity_bytes() const;
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
  struct Place {
    uint64_t address;
    uint64_t size;
  };
  /// A block found by its exact start, ready to be freed.
  struct Target {
    uint32_t entry = 0;
    BlockId block = 0;
    AliasId alias = 0;
    Spans::Slot slot{};
  };

  /// What a block that is in no span takes of a hole.
  static uint64_t large_size(uint64_t requested);
  /// Which free pages a stitched block may take.
  enum class Pick : uint8_t { kAny, kBacked };

  PageRun pages_under(uint64_t offset, uint64_t size) const;
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
  std::optional<Place> place_in_what_is_held(uint64_t size, StreamIndex stream, uint32_t stack_id);
  template <typename PlaceIn>
  std::optional<uint64_t> find_in_hole(uint64_t size, StreamIndex stream, PlaceIn place_in) const;
  std::optional<uint64_t> find_backed(uint64_t size, StreamIndex stream) const;
  bool wait_for_external_streams();
  std::optional<Place> place_small(uint64_t size, StreamIndex stream, uint32_t stack_id);
  bool open_chunk(StreamIndex stream);
  uint64_t add_chunk(std::optional<uint64_t> place, StreamIndex stream);
  BlockId take_stretch(uint64_t place, uint64_t size, BlockState state, StreamIndex stream);
  std::optional<Place> place_large(uint64_t size, uint64_t requested, StreamIndex stream,
                                   uint32_t stack_id);
  std::optional<Place> place_again(std::optional<uint64_t> place, uint64_t size, uint64_t requested,
                                   StreamIndex stream, uint32_t stack_id);
  Place place_home(uint64_t offset, uint64_t size, uint64_t requested, StreamIndex stream,
                   uint32_t stack_id);
  void note_live(uint64_t place, uint64_t size) { live_set_.toggle(place, size); }
  void note_freed(uint64_t place, uint64_t size) { live_set_.toggle(place, size); }
  bool is_as_before(uint64_t place, uint64_t size, uint64_t requested, StreamIndex stream);
  BlockId find_hole(uint64_t size, StreamIndex stream);
  BlockId find_foreign_hole(uint64_t size, StreamIndex stream);
  bool must_pack() const;
  BlockId take_hole(uint64_t size, StreamIndex stream);
  BlockId take_found(BlockId id, uint64_t size, StreamIndex stream);
  BlockId take_tightest_stretch(uint64_t size, StreamIndex stream);
  Place finish_large(BlockId id, uint64_t requested, StreamIndex stream, uint32_t stack_id);
  std::optional<Place> place_stitched(uint64_t requested, StreamIndex stream, uint32_t stack_id,
                                      Pick pick);
  Place occupy_alias(AliasId id, uint64_t requested, StreamIndex stream, uint32_t stack_id);
  std::vector<PageRun> choose_pages(uint64_t pages, StreamIndex stream, Pick pick) const;
  bool pages_free(PageRun run, StreamIndex stream) const;
  bool needs_no_wait(uint64_t offset, uint64_t size, StreamIndex stream) const;
  bool can_take(uint64_t offset, uint64_t size, StreamIndex stream) const;
  bool can_take_after_poll(uint64_t offset, uint64_t size, StreamIndex stream);
  void wait_for_stretch(uint64_t offset, uint64_t size, StreamIndex stream);
  bool room_for_alias(uint64_t pages);
  bool poll_events();
  void drain_streams();
  void forget_done_uses();
  template <typename After>
  uint64_t release_after(uint64_t address, After after);
  Target locate(uint64_t address) const;
  [[noreturn]] void refuse_address(uint64_t address) const;

  std::vector<PageRun> free_pages() const;
  template <typename Wanted>
  std::vector<PageRun> whole_pages(Wanted wanted) const;
  std::vector<PageRun> obtainable_pages(StreamIndex stream) const;
  void retire(PageRun run);
  uint64_t spare_pages() const;
  void grow(uint64_t pages);
  uint64_t revive(uint64_t pages);
  void shrink(uint64_t pages);
  [[noreturn]] void refuse_growth(uint64_t pages) const;
  bool can_be_given_back(uint64_t page) const;
  struct Returned {
    uint64_t pages = 0;
    uint64_t refused = 0;
    std::string reason{};
  };
  void give_back(PageRun run, Returned& returned);
  uint64_t give_back(PageRun run);

  BlockInfo describe(const Block& block) const;
  BlockInfo describe(const Spans::Slot& slot) const;
  BlockInfo describe(const Alias& alias) const;

  void check_blocks() const;
  void check_aliases() const;
  void check_totals() const;

  const std::string label_;
  const Layout layout_;
  const int page_shift_;
  uint64_t capacity_pages_ = 0;
  uint64_t next_unmapped_ = 0;  // pages below were mapped, or are not to be mapped ahead
  bool maps_in_background_ = false;
  bool uses_ended_ = false;  // events are done, and blocks that wait for them not yet released
  std::unique_ptr<Backend> backend_;
  Streams streams_;
  Range range_;
  LiveSetHash live_set_;  // of live blocks; the small ones stand for their chunks
  Spans spans_;
  Pages pages_;
  Aliases aliases_;
  PlacementCache placement_cache_;
  // What steers placement, apart from the counters, which a user may reset.
  uint64_t most_allocated_ = 0;  // at once, since the pool was made
  Counters counters_;
};

}  // namespace vramkit
