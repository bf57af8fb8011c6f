// The end of a block: it is found by its address, recorded for other streams, freed.
#include "base/bytes.h"
#include "base/error.h"
#include "pool/engine.h"

namespace vramkit {

/// after(stream): the stream that comes after all work on a block of that one.
template <typename After>
uint64_t Engine::release_after(uint64_t address, After after) {
  const Target target = locate(address);
  uint64_t requested = 0;
  uint64_t size = 0;
  if (target.alias != 0) {
    const Alias& alias = aliases_[target.alias];
    requested = alias.requested;
    size = alias.live_pages * page_bytes();
    note_freed(address - base(), large_size(requested));
    aliases_.release(target.alias, streams_.tag_freed(after(alias.stream), alias.uses), streams_);
  } else if (target.block != 0) {
    range_.prefetch_neighbours(target.block);
    const Block& block = range_[target.block];
    requested = block.requested;
    size = block.size;
    note_freed(address - base(), size);
    range_.release(target.block, streams_.tag_freed(after(block.stream), block.uses));
  } else {
    requested = target.slot.requested;
    size = target.slot.size;
    spans_.release(target.entry, target.slot, after(target.slot.stream));
  }
  counters_.on_free(requested, size);
  return requested;
}

uint64_t Engine::release(uint64_t address) {
  return release_after(address, [](StreamIndex own) { return own; });
}

uint64_t Engine::release_on(uint64_t address, uint64_t handle) {
  const StreamIndex stream = enter(handle);
  const uint64_t requested = release_after(address, [stream](StreamIndex) { return stream; });
  streams_.note_alive(stream);
  return requested;
}

void Engine::record_stream(uint64_t address, uint64_t handle) {
  const Target target = locate(address);
  const StreamIndex user = enter(handle);
  if (target.alias != 0) {
    Alias& alias = aliases_[target.alias];
    if (user != alias.stream) alias.uses = streams_.add_use(alias.uses, user);
  } else if (target.block != 0) {
    Block& block = range_[target.block];
    if (user != block.stream) block.uses = streams_.add_use(block.uses, user);
  } else {
    spans_.record_use(target.slot, user);
  }
}

Engine::Target Engine::locate(uint64_t address) const {
  if (address < base() || address >= base() + address_bytes()) refuse_address(address);
  const uint64_t offset = address - base();
  const uint64_t primary_bytes = layout_.primary_pages * page_bytes();
  Target target;
  if (offset >= primary_bytes) {
    const uint64_t page = (offset - primary_bytes) / page_bytes();
    target.alias = aliases_.at(page);
    if (target.alias == 0 || !aliases_[target.alias].live() ||
        pages_.alias_address(aliases_[target.alias].first) != address) {
      refuse_address(address);
    }
    return target;
  }
  target.entry = range_.entry_at(offset);
  if ((target.entry & kSpanEntry) != 0) {
    target.slot = spans_.find(target.entry, offset);
    const Spans::Slot& slot = target.slot;
    if (slot.size == 0 || slot.pending || slot.offset != offset) refuse_address(address);
    return target;
  }
  target.block = target.entry;
  if (target.block == 0 || range_[target.block].offset != offset ||
      range_[target.block].state != BlockState::kLive) {
    refuse_address(address);
  }
  return target;
}

void Engine::refuse_address(uint64_t address) const {
  const auto* pointer = reinterpret_cast<const void*>(address);
  if (address < base() || address >= base() + address_bytes()) {
    throw_error(
        Status::kForeignPointer,
        "%s: %p was not allocated by this pool (its addresses are %p to %p); free it where it was "
        "allocated",
        label_.c_str(), pointer, reinterpret_cast<const void*>(base()),
        reinterpret_cast<const void*>(base() + address_bytes()));
  }
  const std::optional<BlockInfo> inside = find(address);
  if (inside) {
    throw_error(Status::kDoubleFree,
                "%s: %p lies inside the live block of %s that starts at %p; free that",
                label_.c_str(), pointer, mib(inside->size).c_str(),
                reinterpret_cast<const void*>(inside->address));
  }
  throw_error(Status::kDoubleFree,
              "%s: no live block starts at %p: it was freed before, or never allocated",
              label_.c_str(), pointer);
}

}  // namespace vramkit
