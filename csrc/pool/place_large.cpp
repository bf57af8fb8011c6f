// Where a block goes that is in no span: as before, into a hole, or stitched.
#include <algorithm>

#include "base/bytes.h"
#include "pool/engine.h"

namespace vramkit {

/// What place_in(hole) finds in the tightest hole where it finds anything.
template <typename PlaceIn>
std::optional<uint64_t> Engine::find_in_hole(uint64_t size, StreamIndex stream,
                                             PlaceIn place_in) const {
  const bool may_wait = streams_.events_allowed();
  const BlockId hole = range_.find_any(size, [&](BlockId id) {
    return streams_.obtainable(stream, range_[id].tag(), may_wait) && place_in(range_[id]);
  });
  return hole != 0 ? place_in(range_[hole]) : std::nullopt;
}

std::optional<Engine::Place> Engine::place_large(uint64_t size, uint64_t requested,
                                                 StreamIndex stream, uint32_t stack_id) {
  // Chunks that stay where a hole could be would make every repetition of a step look different.
  if (spans_.has_empty_chunk()) spans_.give_back_chunks();
  const uint64_t request = live_set_.with_request(size, stream);
  std::optional<Place> place =
      place_again(placement_cache_.find(request), size, requested, stream, stack_id);
  if (!place) {
    const BlockId id = must_pack() ? take_tightest_stretch(size, stream) : take_hole(size, stream);
    place = id != 0 ? finish_large(id, requested, stream, stack_id)
                    : place_stitched(requested, stream, stack_id, Pick::kAny);
  }
  if (place) {
    placement_cache_.note(request, place->address);
    note_live(place->address, size);
  }
  return place;
}

/// Others have on the device what was given back to it: what is still held must do.
std::optional<Engine::Place> Engine::place_in_what_is_held(uint64_t size, StreamIndex stream,
                                                           uint32_t stack_id) {
  finish_background_mapping();
  const uint64_t bytes = large_size(size);
  const std::optional<uint64_t> hole = find_backed(bytes, stream);
  const std::optional<Place> place = hole ? place_home(*hole, bytes, size, stream, stack_id)
                                          : place_stitched(size, stream, stack_id, Pick::kBacked);
  if (place) note_live(place->address, bytes);
  return place;
}

/// Where the smallest hole begins, or ends, with so much memory.
std::optional<uint64_t> Engine::find_backed(uint64_t size, StreamIndex stream) const {
  return find_in_hole(size, stream, [&](const Block& hole) -> std::optional<uint64_t> {
    for (const uint64_t offset : {hole.offset, hole.end() - size}) {
      if (pages_.backed(pages_under(offset, size))) return offset;
    }
    return std::nullopt;
  });
}

/// Where the request went before, if that is to be had again.
std::optional<Engine::Place> Engine::place_again(std::optional<uint64_t> place, uint64_t size,
                                                 uint64_t requested, StreamIndex stream,
                                                 uint32_t stack_id) {
  if (!place || !is_as_before(*place, size, requested, stream)) return std::nullopt;
  const uint64_t primary_bytes = layout_.primary_pages * page_bytes();
  if (*place >= primary_bytes) {
    const AliasId alias = aliases_.at((*place - primary_bytes) / page_bytes());
    const Place taken = occupy_alias(alias, requested, stream, stack_id);
    ++counters_.alias_hits;
    return taken;
  }
  return place_home(*place, size, requested, stream, stack_id);
}

Engine::Place Engine::place_home(uint64_t offset, uint64_t size, uint64_t requested,
                                 StreamIndex stream, uint32_t stack_id) {
  const BlockId block = take_stretch(offset, size, BlockState::kLive, stream);
  return finish_large(block, requested, stream, stack_id);
}

bool Engine::is_as_before(uint64_t place, uint64_t size, uint64_t requested, StreamIndex stream) {
  const uint64_t primary_bytes = layout_.primary_pages * page_bytes();
  if (place < primary_bytes) return can_take_after_poll(place, size, stream);
  const uint64_t page = (place - primary_bytes) / page_bytes();
  const uint64_t pages = ceil_div(requested, page_bytes());
  const AliasId id = aliases_.at(page);
  if (id == 0 || aliases_[id].first != page || aliases_[id].live() || aliases_[id].pages < pages) {
    return false;
  }
  return each_prefix_run(aliases_[id].runs, pages,
                         [&](PageRun run) { return pages_free(run, stream); });
}

/// Several streams share a capacity that exceeds what was needed at once so far by less than a
/// sixteenth.
bool Engine::must_pack() const {
  return range_.streams_apart() && most_allocated_ + most_allocated_ / 16 > capacity_bytes();
}

/// With memory to spare: the stream's own first, so that streams do not wait for each other.
BlockId Engine::take_hole(uint64_t size, StreamIndex stream) {
  const BlockId id = find_hole(size, stream);
  if (id == 0) return range_.streams_apart() ? take_tightest_stretch(size, stream) : 0;
  return take_found(id, size, stream);
}

BlockId Engine::take_found(BlockId id, uint64_t size, StreamIndex stream) {
  streams_.wait_for(stream, range_[id].tag());
  return range_.carve(id, size, BlockState::kLive);
}

BlockId Engine::find_hole(uint64_t size, StreamIndex stream) {
  BlockId id = range_.find(size, stream);
  if (id != 0 || !range_.streams_apart()) return id;
  if (poll_events()) id = range_.find(size, stream);
  return id != 0 ? id : find_foreign_hole(size, stream);
}

BlockId Engine::find_foreign_hole(uint64_t size, StreamIndex stream) {
  const bool may_wait = streams_.events_allowed();
  return range_.find_any(
      size, [&](BlockId id) { return streams_.obtainable(stream, range_[id].tag(), may_wait); });
}

/// Best fit whoever freed the memory: then the layout does not depend on how streams happened to
/// run, and a repeated step finds the one of its last repetition. Among extents up to twice the
/// tightest, one that needs no waiting is preferred, at its start or at its end.
BlockId Engine::take_tightest_stretch(uint64_t size, StreamIndex stream) {
  poll_events();
  const bool may_wait = streams_.events_allowed();
  uint64_t tightest = 0;
  std::optional<uint64_t> chosen;
  range_.each_extent_from(size, [&](const FreeExtent& extent) {
    if (chosen && extent.size > 2 * tightest) return false;
    for (const uint64_t offset : {extent.offset, extent.offset + extent.size - size}) {
      if (needs_no_wait(offset, size, stream)) {
        chosen = offset;
        return false;
      }
      if (chosen || !may_wait || !can_take(offset, size, stream)) continue;
      chosen = offset;
      tightest = extent.size;
    }
    return true;
  });
  if (!chosen) {  // then only what lies in the middle of an extent, between memory not obtainable
    const BlockId hole = find_foreign_hole(size, stream);
    return hole != 0 ? take_found(hole, size, stream) : 0;
  }
  return take_stretch(*chosen, size, BlockState::kLive, stream);
}

Engine::Place Engine::finish_large(BlockId id, uint64_t requested, StreamIndex stream,
                                   uint32_t stack_id) {
  Block& block = range_[id];
  block.stream = stream;
  try {
    pages_.need_primary(pages_under(block.offset, block.size));
  } catch (...) {
    range_.release(id, streams_.tag_freed(stream, 0));
    throw;
  }
  block.requested = requested;
  block.stack_id = stack_id;
  return {block.offset, block.size};
}

std::optional<Engine::Place> Engine::place_stitched(uint64_t requested, StreamIndex stream,
                                                    uint32_t stack_id, Pick pick) {
  const uint64_t pages = ceil_div(requested, page_bytes());
  AliasId id = aliases_.find(pages, [&](PageRun run) {
    return pages_free(run, stream) && (pick == Pick::kAny || pages_.backed(run));
  });
  const bool mapped_before = id != 0;
  if (!mapped_before) {
    const std::vector<PageRun> runs = choose_pages(pages, stream, pick);
    if (runs.empty() || !room_for_alias(pages)) return std::nullopt;
    id = aliases_.create(runs);
    if (id == 0) return std::nullopt;
  }
  const Place place = occupy_alias(id, requested, stream, stack_id);
  counters_.alias_hits += mapped_before;
  counters_.stitched_requests += !mapped_before;
  counters_.stitched_pages += mapped_before ? 0 : pages;
  return place;
}

Engine::Place Engine::occupy_alias(AliasId id, uint64_t requested, StreamIndex stream,
                                   uint32_t stack_id) {
  const uint64_t pages = ceil_div(requested, page_bytes());
  Alias& alias = aliases_[id];
  each_prefix_run(alias.runs, pages, [&](PageRun run) {
    wait_for_stretch(run.first * page_bytes(), run.count * page_bytes(), stream);
    return true;
  });
  aliases_.occupy(id, pages);
  alias.requested = requested;
  alias.stream = stream;
  alias.stack_id = stack_id;
  return Place{pages_.alias_address(alias.first) - base(), pages * page_bytes()};
}

/// Wholly free pages from the smallest extents first, so that large free blocks stay; empty if
/// there are too few.
std::vector<PageRun> Engine::choose_pages(uint64_t pages, StreamIndex stream, Pick pick) const {
  std::vector<PageRun> runs = obtainable_pages(stream);
  if (pick == Pick::kBacked) runs = pages_.backed_parts(runs);
  std::stable_sort(runs.begin(), runs.end(),
                   [](const PageRun& a, const PageRun& b) { return a.count < b.count; });
  std::vector<PageRun> chosen;
  for (const PageRun& run : runs) {
    chosen.push_back({run.first, std::min(run.count, pages)});
    pages -= chosen.back().count;
    if (pages == 0) return chosen;
  }
  return {};
}

}  // namespace vramkit
