#include "pool/engine.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "backend/mapping.h"
#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {
namespace {

// How many requests the cache of placements holds.
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

/// Where the process may reserve less (`ulimit -v`): first the aliases get no more than the primary
/// pages, then both shrink, the primary pages down to the capacity and the aliases to none.
Layout within_allowance(const Layout& full, uint64_t capacity_pages, const Backend& backend) {
  constexpr uint64_t kMetadataShare =
      64;  // metadata takes less than this part of the primary addresses
  constexpr uint64_t kMetadataBytes = 64 * kMiB;  // and this
  const uint64_t allowance = address_allowance();
  if (allowance == ~uint64_t{0}) return full;
  const uint64_t bytes = allowance > kMetadataBytes ? allowance - kMetadataBytes : 0;
  const uint64_t pages = bytes / full.page_bytes * kMetadataShare / (kMetadataShare + 1);
  if (!backend.takes_address_space()) {
    const uint64_t primary = std::min(full.primary_pages, pages * kMetadataShare);
    return {full.page_bytes, std::max(primary, capacity_pages), full.alias_pages};
  }
  const uint64_t primary = std::clamp(pages / 2, capacity_pages, full.primary_pages);
  return {full.page_bytes, primary,
          std::min(pages > primary ? pages - primary : 0, full.alias_pages)};
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
  const uint64_t primary = align_down(4 * more * capacity + spare, page);
  const uint64_t aliases = align_down(16 * more * capacity + spare, page);
  return within_allowance({page, primary / page, aliases / page}, capacity / page, backend);
}

std::unique_ptr<Backend> reserve(const Layout& layout, std::unique_ptr<Backend> backend) {
  backend->reserve(layout);
  return backend;
}

}  // namespace

Engine::Engine(const EngineConfig& config, std::unique_ptr<Backend> backend)
    : label_(config.label),
      layout_(layout_for(config, *backend)),
      backend_(reserve(layout_, std::move(backend))),
      streams_(*backend_),
      range_(layout_.primary_bytes(), streams_),
      spans_(range_, streams_, live_set_, config.capacity_bytes, layout_.primary_bytes()),
      pages_(*backend_, layout_),
      aliases_(*backend_, pages_, range_, layout_),
      placement_cache_(requests_to_remember(config.capacity_bytes)),
      memory_(range_, streams_, spans_, layout_.page_bytes),
      small_placer_(spans_, memory_, range_, streams_, pages_, live_set_, placement_cache_),
      large_placer_(layout_, {spans_, memory_, range_, streams_, pages_, aliases_, live_set_,
                              placement_cache_, counters_}),
      lookup_(layout_, backend_->base(), range_, spans_, aliases_),
      capacity_(label_, layout_, *backend_, range_, pages_, aliases_, memory_),
      background_(range_, pages_, layout_.page_bytes, backend_->maps_slowly()) {
  capacity_.grow(config.capacity_bytes / config.page_bytes);
}

uint64_t Engine::allocate(uint64_t size, uint64_t handle, uint32_t stack_id) {
  if (size == 0)
    throw_error(Status::kInvalidArgument, "%s: a block needs at least one byte", label_.c_str());
  const StreamIndex stream = enter(handle);
  std::optional<Place> place;
  if (size <= capacity_bytes()) {
    try {
      do {
        if (size <= kMaxSmall) place = small_placer_.place(size, stream, stack_id);
        if (!place) place = large_placer_.place({size, stream, stack_id}, capacity_bytes());
        // Looking which work is done may have emptied chunks.
      } while (!place && (spans_.has_empty_chunk() || wait_for_external_streams()));
    } catch (const Error& error) {
      if (error.status() != Status::kOutOfMemory) throw;
      do {
        finish_background_mapping();
        place = large_placer_.place_in_backed({size, stream, stack_id});
      } while (!place && wait_for_external_streams());
      if (!place) throw;
    }
  }
  if (!place) {
    ++counters_.failures;
    return 0;
  }
  counters_.on_allocate(size, place->size);
  large_placer_.note_allocated(counters_.allocated_bytes);
  return base() + place->offset;
}

/// The last resort: streams that may be gone have freed memory, and no event tells when it is safe.
/// False where there is none, as after such a wait.
bool Engine::wait_for_external_streams() {
  if (!streams_.lack_events() || !streams_.events_allowed()) return false;
  memory_.drain_numbered();
  return true;
}

void Engine::resize(uint64_t capacity_bytes) {
  check_capacity(label_, capacity_bytes, page_bytes(), *backend_);
  finish_background_mapping();
  const uint64_t pages = capacity_bytes / page_bytes();
  if (pages > capacity_.pages()) capacity_.grow(pages - capacity_.pages());
  if (pages < capacity_.pages()) {
    memory_.drain();
    capacity_.shrink(capacity_.pages() - pages);
  }
}

uint64_t Engine::trim() {
  if (!backend_->has_own_addresses()) return 0;  // its owner holds the memory
  memory_.drain();
  stop_background_mapping();  // or what is given back would be taken again
  return capacity_.trim() * page_bytes();
}

void Engine::add_peer(int device) {
  finish_background_mapping();
  backend_->add_peer(device);
  try {
    for (uint64_t page = 0; page < pages_.count(); ++page) {
      if (pages_.backed(page)) backend_->grant_peers(base() + page * page_bytes(), 1);
    }
    aliases_.each([&](AliasId, const Alias& alias) {
      backend_->grant_peers(pages_.alias_address(alias.first), alias.pages);
    });
  } catch (...) {
    backend_->remove_peer(device);  // or nothing could be mapped any more
    throw;
  }
}

void Engine::add_peers_in_use() {
  for (const int peer : backend_->peers_in_use()) {
    try {
      pages_.need_primary({0, 1});  // or it would show only later that one cannot
      add_peer(peer);
    } catch (const Error& error) {
      report("%s: cuda:%d cannot access the pool's memory directly: %s", label_.c_str(), peer,
             error.what());
    }
  }
}

}  // namespace vramkit
