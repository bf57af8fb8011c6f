#include "pool/small_placer.h"

#include "base/bytes.h"

namespace vramkit {

std::optional<Place> SmallPlacer::place(uint64_t size, StreamIndex stream, uint32_t stack_id) {
  if (spans_.has_pending()) memory_.poll_events();
  uint64_t offset = spans_.allocate(size, stream, stack_id, Spans::In::kChunksInUse);
  if (offset == Spans::kNoOffset && open_chunk(stream)) {
    offset = spans_.allocate(size, stream, stack_id, Spans::In::kAnyChunk);
  }
  if (offset == Spans::kNoOffset) return std::nullopt;
  return Place{offset, Spans::slot_bytes(size)};
}

/// Ensures that the stream has an empty chunk: where one was opened before while the same blocks
/// were live, else one that exists, else a new one. False where there is no room, or was none
/// before.
bool SmallPlacer::open_chunk(StreamIndex stream) {
  const uint64_t key = live_set_.request_key(spans_.chunk_key(), stream);
  const std::optional<uint64_t> place = cache_.find(key);
  if (place == Spans::kNoOffset) return false;
  uint64_t chunk = spans_.empty_chunk(stream);
  if (chunk == Spans::kNoOffset) spans_.give_back_chunks();
  if (chunk == Spans::kNoOffset || place != chunk) {
    const uint64_t bytes = spans_.chunk_bytes();
    const bool free =
        place && *place % bytes == 0 && memory_.can_take_after_poll(*place, bytes, stream);
    if (free || chunk == Spans::kNoOffset) chunk = add_chunk(free ? place : std::nullopt, stream);
  }
  cache_.remember(key, chunk);
  return chunk != Spans::kNoOffset;
}

/// Makes a chunk at the place, if that is free, or wherever there is room. Returns its offset, or
/// kNoOffset.
uint64_t SmallPlacer::add_chunk(std::optional<uint64_t> place, StreamIndex stream) {
  const uint64_t bytes = spans_.chunk_bytes();
  spans_.give_back_chunks();  // or a slot could be taken in another
  // What was given back may have merged with the place, which may then not be available.
  if (!place || !memory_.can_take(*place, bytes, stream)) {
    const BlockId block = range_.find_aligned(bytes, bytes, stream);
    if (block == 0) return Spans::kNoOffset;
    place = align_up(range_[block].offset, bytes);
  }
  spans_.prepare_chunk(stream);
  const BlockId block = memory_.take(*place, bytes, BlockState::kChunk, stream);
  try {
    pages_.need_primary(pages_.under(*place, bytes));
  } catch (...) {
    range_.release(block, streams_.tag_freed(stream, 0));
    throw;
  }
  spans_.add_chunk(block, stream);
  return *place;
}

}  // namespace vramkit
