// The end of a block: it is found by its address, recorded for other streams, freed.
#include "base/bytes.h"
#include "base/error.h"
#include "pool/engine.h"

namespace vramkit {

/// after(stream): the stream that comes after all work on a block of that one.
template <typename After>
uint64_t Engine::release_after(uint64_t address, After after) {
  const FoundBlock found = block_starting_at(address);
  uint64_t requested = 0;
  uint64_t size = 0;
  if (found.kind == FoundBlock::Kind::kSmall) {
    requested = found.slot.requested;
    size = found.slot.size;
    spans_.release(found.entry, found.slot, after(found.slot.stream));
  } else if (found.kind == FoundBlock::Kind::kLarge) {
    range_.prefetch_neighbours(found.block);
    const Block& block = range_[found.block];
    requested = block.requested;
    size = block.size;
    live_set_.toggle(address - base(), size);
    range_.release(found.block, streams_.tag_freed(after(block.stream), block.uses));
  } else {
    const Alias& alias = aliases_[found.alias];
    requested = alias.requested;
    size = alias.live_pages * page_bytes();
    live_set_.toggle(address - base(), large_size(requested));
    aliases_.release(found.alias, streams_.tag_freed(after(alias.stream), alias.uses), streams_);
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
  const FoundBlock found = block_starting_at(address);
  const StreamIndex user = enter(handle);
  if (found.kind == FoundBlock::Kind::kSmall) {
    spans_.record_use(found.slot, user);
  } else if (found.kind == FoundBlock::Kind::kLarge) {
    Block& block = range_[found.block];
    if (user != block.stream) block.uses = streams_.add_use(block.uses, user);
  } else {
    Alias& alias = aliases_[found.alias];
    if (user != alias.stream) alias.uses = streams_.add_use(alias.uses, user);
  }
}

/// Throws where no live block starts there.
FoundBlock Engine::block_starting_at(uint64_t address) const {
  const FoundBlock found = lookup_.at(address);
  if (found.kind == FoundBlock::Kind::kNone || found.address != address) refuse_address(address);
  return found;
}

void Engine::refuse_address(uint64_t address) const {
  const auto* pointer = reinterpret_cast<const void*>(address);
  if (!lookup_.in_pool(address)) {
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
