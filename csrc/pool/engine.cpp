#include "pool/engine.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "backend/mapping.h"
#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {
namespace {

// How many requests are remembered.
constexpr uint64_t kCapacityARequest = 128 * kKiB;
constexpr uint64_t kFewestRequests = 16384;
constexpr uint64_t kMostRequests = 65536;

size_t requests_to_remember(uint64_t capacity_bytes) {
  return std::bit_floor(
      std::clamp(capacity_bytes / kCapacityARequest, kFewestRequests, kMostRequests));
}

void check_page_size(const EngineConfig& config) {
  if (std::has_single_bit(config.page_bytes) && config.page_bytes >= 64 * kKiB &&
      config.page_bytes <= kGiB) {
    return;
  }
  throw_error(Status::kInvalidArgument,
              "%s: a page of %s is not possible; take a power of two from 64KiB to 1GiB",
              config.label.c_str(), counted(config.page_bytes, "byte").c_str());
}

/// Where the process may reserve less (`ulimit -v`): first the aliases get no more than home, then
/// both shrink, home down to the capacity and the aliases to none.
Layout within_allowance(const Layout& full, uint64_t capacity_pages, const Backend& backend) {
  constexpr uint64_t kMetadataShare = 64;  // metadata takes less than this part of home's addresses
  constexpr uint64_t kMetadataBytes = 64 * kMiB;  // and this
  const uint64_t allowance = address_allowance();
  if (allowance == ~uint64_t{0}) return full;
  const uint64_t bytes = allowance > kMetadataBytes ? allowance - kMetadataBytes : 0;
  const uint64_t pages = bytes / full.page_bytes * kMetadataShare / (kMetadataShare + 1);
  if (!backend.takes_address_space()) {
    const uint64_t home = std::min(full.primary_pages, pages * kMetadataShare);
    return {full.page_bytes, std::max(home, capacity_pages), full.alias_pages};
  }
  const uint64_t home = std::clamp(pages / 2, capacity_pages, full.primary_pages);
  return {full.page_bytes, home, std::min(pages > home ? pages - home : 0, full.alias_pages)};
}

/// Room to grow, and for many stitched blocks; where addresses are retired, for many trims too.
Layout layout_for(const EngineConfig& config, const Backend& backend) {
  check_page_size(config);
  check_capacity(config.label, config.capacity_bytes, config.page_bytes, backend);
  const uint64_t capacity = config.capacity_bytes;
  const uint64_t page = config.page_bytes;
  if (!backend.has_own_addresses()) return {page, capacity / page, 0};
  const bool again = backend.rebindable();
  const uint64_t spare = again ? std::clamp(16 * capacity, 4 * kGiB, 32 * kGiB) : 32 * kGiB;
  const uint64_t more = again ? 1 : 4;
  const uint64_t home = align_down(4 * more * capacity + spare, page);
  const uint64_t aliases = align_down(16 * more * capacity + spare, page);
  return within_allowance({page, home / page, aliases / page}, capacity / page, backend);
}

std::unique_ptr<Backend> reserve(const Layout& layout, std::unique_ptr<Backend> backend) {
  backend->reserve(layout);
  return backend;
}

}  // namespace

void check_capacity(const std::string& label, uint64_t capacity_bytes, uint64_t page_bytes,
                    const Backend& backend) {
  if (capacity_bytes < page_bytes) {
    throw_error(Status::kInvalidArgument, "%s: a capacity of %s is less than one page of %s",
                label.c_str(), mib_apart(capacity_bytes, page_bytes).c_str(),
                mib_apart(page_bytes, capacity_bytes).c_str());
  }
  if (capacity_bytes > backend.memory_limit()) {
    throw_error(Status::kInvalidArgument,
                "%s: a capacity of %s is more than the %s that the machine has; ask for less",
                label.c_str(), mib_apart(capacity_bytes, backend.memory_limit()).c_str(),
                mib_apart(backend.memory_limit(), capacity_bytes).c_str());
  }
}

uint64_t Engine::large_size(uint64_t requested) {
  return align_up(std::max(requested, kGranule), kAlignment);
}

Engine::Engine(const EngineConfig& config, std::unique_ptr<Backend> backend)
    : label_(config.label),
      layout_(layout_for(config, *backend)),
      page_shift_(std::countr_zero(config.page_bytes)),
      backend_(reserve(layout_, std::move(backend))),
      streams_(*backend_),
      range_(layout_.primary_pages * layout_.page_bytes, streams_),
      spans_(range_, streams_, live_set_, config.capacity_bytes,
             layout_.primary_pages * layout_.page_bytes),
      pages_(*backend_, layout_),
      aliases_(*backend_, pages_, range_, layout_),
      placement_cache_(requests_to_remember(config.capacity_bytes)) {
  maps_in_background_ = backend_->maps_slowly();
  grow(config.capacity_bytes / config.page_bytes);
}

uint64_t Engine::allocate(uint64_t size, uint64_t handle, uint32_t stack_id) {
  if (size == 0)
    throw_error(Status::kInvalidArgument, "%s: a block needs at least one byte", label_.c_str());
  const StreamIndex stream = enter(handle);
  std::optional<Place> place;
  if (size <= capacity_bytes()) {
    try {
      do {
        if (size <= kMaxSmall) place = place_small(size, stream, stack_id);
        if (!place) place = place_large(large_size(size), size, stream, stack_id);
        // Looking which work is done may have emptied chunks.
      } while (!place && (spans_.has_empty_chunk() || wait_for_external_streams()));
    } catch (const Error& error) {
      if (error.status() != Status::kOutOfMemory) throw;
      do {
        place = place_in_what_is_held(size, stream, stack_id);
      } while (!place && wait_for_external_streams());
      if (!place) throw;
    }
  }
  if (!place) {
    ++counters_.failures;
    return 0;
  }
  counters_.on_allocate(size, place->size);
  most_allocated_ = std::max(most_allocated_, counters_.allocated_bytes);
  return base() + place->address;
}

/// The last resort: streams that may be gone have freed memory, and no event tells when it is safe.
/// False where there is none, as after such a wait.
bool Engine::wait_for_external_streams() {
  if (!streams_.lack_events() || !streams_.events_allowed()) return false;
  drain_streams();
  return true;
}

std::optional<Engine::Place> Engine::place_small(uint64_t size, StreamIndex stream,
                                                 uint32_t stack_id) {
  if (spans_.has_pending()) poll_events();
  uint64_t offset = spans_.allocate(size, stream, stack_id, Spans::In::kChunksInUse);
  if (offset == Spans::kNoOffset && open_chunk(stream)) {
    offset = spans_.allocate(size, stream, stack_id, Spans::In::kAnyChunk);
  }
  if (offset == Spans::kNoOffset) return std::nullopt;
  return Place{offset, Spans::slot_bytes(size)};
}

/// Sees to a chunk of the stream without a live slot: where one was opened in this layout before,
/// else one that is there, else a new one. False where there is no room, or was none before.
bool Engine::open_chunk(StreamIndex stream) {
  const uint64_t request = live_set_.with_request(spans_.chunk_key(), stream);
  const std::optional<uint64_t> place = placement_cache_.find(request);
  if (place == Spans::kNoOffset) return false;
  uint64_t chunk = spans_.empty_chunk(stream);
  if (chunk == Spans::kNoOffset) spans_.give_back_chunks();
  if (chunk == Spans::kNoOffset || place != chunk) {
    const uint64_t bytes = spans_.chunk_bytes();
    const bool free = place && *place % bytes == 0 && can_take_after_poll(*place, bytes, stream);
    if (free || chunk == Spans::kNoOffset) chunk = add_chunk(free ? place : std::nullopt, stream);
  }
  placement_cache_.note(request, chunk);
  return chunk != Spans::kNoOffset;
}

/// Makes a chunk at the place, if that is free, or wherever there is room. Returns its offset, or
/// kNoOffset.
uint64_t Engine::add_chunk(std::optional<uint64_t> place, StreamIndex stream) {
  const uint64_t bytes = spans_.chunk_bytes();
  spans_.give_back_chunks();  // or a slot could be taken in another
  // What was given back may have merged with the place, and not be to be had.
  if (!place || !can_take(*place, bytes, stream)) {
    const BlockId hole = range_.find_aligned(bytes, bytes, stream);
    if (hole == 0) return Spans::kNoOffset;
    place = align_up(range_[hole].offset, bytes);
  }
  spans_.prepare_chunk(stream);
  const BlockId block = take_stretch(*place, bytes, BlockState::kChunk, stream);
  try {
    pages_.need_primary(pages_under(*place, bytes));
  } catch (...) {
    range_.release(block, streams_.tag_freed(stream, 0));
    throw;
  }
  spans_.add_chunk(block, stream);
  return *place;
}

/// Takes free memory that the stream may wait for, or need not.
BlockId Engine::take_stretch(uint64_t place, uint64_t size, BlockState state, StreamIndex stream) {
  wait_for_stretch(place, size, stream);
  return range_.take(place, size, state);
}

bool Engine::pages_free(PageRun run, StreamIndex stream) const {
  return can_take(run.first * page_bytes(), run.count * page_bytes(), stream);
}

/// All of it is free, and the stream can have it, after a wait perhaps.
bool Engine::can_take(uint64_t offset, uint64_t size, StreamIndex stream) const {
  if (offset + size > range_.end()) return false;
  const bool may_wait = streams_.events_allowed();
  for (BlockId id = range_.block_at(offset);; id = range_[id].next) {
    const Block& block = range_[id];
    if (!block.is_free() || !streams_.obtainable(stream, block.tag(), may_wait)) return false;
    if (block.end() >= offset + size) return true;
  }
}

/// The same, after a look at which work is done where a wait would be needed. Judged again after
/// that: what has merged is to be had no earlier than the last of its parts.
bool Engine::can_take_after_poll(uint64_t offset, uint64_t size, StreamIndex stream) {
  if (!can_take(offset, size, stream)) return false;
  return needs_no_wait(offset, size, stream) || !poll_events() || can_take(offset, size, stream);
}

/// No wait is needed to take it, which is free. Where waits are possible, judged by the order of
/// streams alone: the layout of a repeated step must not depend on timing.
bool Engine::needs_no_wait(uint64_t offset, uint64_t size, StreamIndex stream) const {
  const bool may_wait = streams_.events_allowed();
  for (BlockId id = range_.block_at(offset);; id = range_[id].next) {
    const Tag tag = range_[id].tag();
    if (may_wait ? !streams_.ordered(stream, tag) : !streams_.ready(stream, tag)) return false;
    if (range_[id].end() >= offset + size) return true;
  }
}

void Engine::wait_for_stretch(uint64_t offset, uint64_t size, StreamIndex stream) {
  for (BlockId id = range_.block_at(offset); id != 0 && range_[id].offset < offset + size;
       id = range_[id].next) {
    streams_.wait_for(stream, range_[id].tag());
  }
}

bool Engine::room_for_alias(uint64_t pages) {
  if (aliases_.has_room(pages)) return true;
  // Idle aliases must go, and unmapping needs the work on them done.
  if (!streams_.events_allowed() || !aliases_.could_make_room(pages)) return false;
  drain_streams();
  return aliases_.make_room(pages);
}

/// Learns which events are done, and lets free blocks whose recorded uses are over merge again.
bool Engine::poll_events() {
  uses_ended_ |= streams_.poll();
  if (!uses_ended_) return false;
  forget_done_uses();
  return true;
}

void Engine::forget_done_uses() {
  std::vector<BlockId> done;
  range_.mixed().each_from(0, [&](BlockId id) {
    if (streams_.uses_done(range_[id].tag())) done.push_back(id);
    return true;
  });
  for (const BlockId id : done) range_.forget_uses(id);
  spans_.reclaim_pending();
  uses_ended_ = false;
}

void Engine::drain_streams() {
  uses_ended_ = true;  // no event is left from which it could be learnt later
  streams_.drain();
  forget_done_uses();
}

void Engine::drain() {
  drain_streams();
  // Frees of small blocks are numbered only when their chunk comes back.
  if (spans_.give_back_chunks()) streams_.drain();
}

PageRun Engine::pages_under(uint64_t offset, uint64_t size) const {
  const uint64_t first = offset >> page_shift_;
  return {first, ((offset + size - 1) >> page_shift_) + 1 - first};
}

}  // namespace vramkit
