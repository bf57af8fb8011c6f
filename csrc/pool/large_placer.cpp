#include "pool/large_placer.h"

#include "base/bytes.h"

namespace vramkit {

std::optional<Place> LargePlacer::place(const LargeRequest& request, uint64_t capacity_bytes) {
  // Chunks that stay where a block could go would make every repetition of a step look different.
  if (parts_.spans.has_empty_chunk()) parts_.spans.give_back_chunks();
  const uint64_t key = parts_.live_set.request_key(request.size, request.stream);
  const bool several_streams = parts_.range.streams_apart();
  const bool packs = must_pack(capacity_bytes);

  std::optional<Place> place = try_reuse(parts_.cache.find(key), request);
  if (!place && !packs) place = try_own_block(request);
  if (!place && !packs && several_streams) place = try_any_block(request);
  if (!place && several_streams) place = try_tightest_extent(request);
  if (!place) place = try_mapped_alias(request, Pick::kAny);
  if (!place) place = try_new_alias(request, Pick::kAny);

  if (place) {
    parts_.cache.remember(key, place->offset);
    parts_.live_set.toggle(place->offset, request.size);
  }
  return place;
}

std::optional<Place> LargePlacer::place_in_backed(const LargeRequest& request) {
  std::optional<Place> place = try_backed_block(request);
  if (!place) place = try_mapped_alias(request, Pick::kBacked);
  if (!place) place = try_new_alias(request, Pick::kBacked);
  if (place) parts_.live_set.toggle(place->offset, request.size);
  return place;
}

/// Several streams share a capacity that exceeds what was needed at once so far by less than a
/// sixteenth. They then take the tightest extent, even where one has to wait for another.
bool LargePlacer::must_pack(uint64_t capacity_bytes) const {
  return parts_.range.streams_apart() && most_allocated_ + most_allocated_ / 16 > capacity_bytes;
}

/// Where the same request went while the same blocks were live, if all of it is free.
std::optional<Place> LargePlacer::try_reuse(std::optional<uint64_t> place,
                                            const LargeRequest& request) {
  if (!place) return std::nullopt;
  if (*place < layout_.primary_bytes()) {
    if (!parts_.memory.can_take_after_poll(*place, request.size, request.stream)) {
      return std::nullopt;
    }
    return take_offset(*place, request);
  }
  const AliasId id = parts_.aliases.starting_at(layout_.alias_page(*place));
  if (id == 0 || !can_reuse(id, request)) return std::nullopt;
  const Place taken = fill_alias(id, request);
  ++parts_.counters.alias_hits;
  return taken;
}

bool LargePlacer::can_reuse(AliasId id, const LargeRequest& request) const {
  const Alias& alias = parts_.aliases[id];
  const uint64_t pages = pages_for(request);
  if (alias.live() || alias.pages < pages) return false;
  return each_prefix_run(alias.runs, pages,
                         [&](PageRun run) { return parts_.memory.can_take(run, request.stream); });
}

/// The tightest free block that the stream can have at once, so that streams do not wait for each
/// other.
std::optional<Place> LargePlacer::try_own_block(const LargeRequest& request) {
  BlockId id = parts_.range.find(request.size, request.stream);
  if (id == 0 && parts_.range.streams_apart() && parts_.memory.poll_events()) {
    id = parts_.range.find(request.size, request.stream);
  }
  if (id == 0) return std::nullopt;
  return take_block(id, request);
}

/// The tightest free block, whoever freed it.
std::optional<Place> LargePlacer::try_any_block(const LargeRequest& request) {
  const BlockId id = parts_.memory.find_obtainable(request.size, request.stream);
  if (id == 0) return std::nullopt;
  return take_block(id, request);
}

/// Best fit whoever freed the memory: then the layout does not depend on how streams happened to
/// run, and a repeated step finds the one of its last repetition.
std::optional<Place> LargePlacer::try_tightest_extent(const LargeRequest& request) {
  parts_.memory.poll_events();
  const std::optional<uint64_t> offset = tightest_extent(request.size, request.stream);
  if (offset) return take_offset(*offset, request);
  // Then there is only what lies in the middle of an extent, between memory that is not obtainable.
  return try_any_block(request);
}

/// Among extents up to twice the tightest, one that needs no wait is preferred, at its start or at
/// its end.
std::optional<uint64_t> LargePlacer::tightest_extent(uint64_t size, StreamIndex stream) const {
  const bool may_wait = parts_.streams.events_allowed();
  uint64_t tightest = 0;
  std::optional<uint64_t> chosen;
  parts_.range.each_extent_from(size, [&](const FreeExtent& extent) {
    if (chosen && extent.size > 2 * tightest) return false;
    for (const uint64_t offset : {extent.offset, extent.offset + extent.size - size}) {
      if (parts_.memory.needs_no_wait(offset, size, stream)) {
        chosen = offset;
        return false;
      }
      if (chosen || !may_wait || !parts_.memory.can_take(offset, size, stream)) continue;
      chosen = offset;
      tightest = extent.size;
    }
    return true;
  });
  return chosen;
}

/// The start, or the end, of the smallest free block of which that much has memory.
std::optional<Place> LargePlacer::try_backed_block(const LargeRequest& request) {
  const uint64_t size = request.size;
  const bool may_wait = parts_.streams.events_allowed();
  const BlockId id = parts_.range.find_any(size, [&](BlockId candidate) {
    const Block& block = parts_.range[candidate];
    if (!parts_.streams.obtainable(request.stream, block.tag(), may_wait)) return false;
    return backed_part(block, size).has_value();
  });
  if (id == 0) return std::nullopt;
  return take_offset(*backed_part(parts_.range[id], size), request);
}

std::optional<uint64_t> LargePlacer::backed_part(const Block& block, uint64_t size) const {
  for (const uint64_t offset : {block.offset, block.end() - size}) {
    if (parts_.pages.backed(parts_.pages.under(offset, size))) return offset;
  }
  return std::nullopt;
}

/// A stitched address that is still mapped.
std::optional<Place> LargePlacer::try_mapped_alias(const LargeRequest& request, Pick pick) {
  const AliasId id = parts_.aliases.find(pages_for(request), [&](PageRun run) {
    return parts_.memory.can_take(run, request.stream) &&
           (pick == Pick::kAny || parts_.pages.backed(run));
  });
  if (id == 0) return std::nullopt;
  const Place taken = fill_alias(id, request);
  ++parts_.counters.alias_hits;
  return taken;
}

/// A new stitched address for free pages.
std::optional<Place> LargePlacer::try_new_alias(const LargeRequest& request, Pick pick) {
  const uint64_t pages = pages_for(request);
  const std::vector<PageRun> runs = choose_pages(pages, request.stream, pick);
  if (runs.empty() || !make_room_for_alias(pages)) return std::nullopt;
  const AliasId id = parts_.aliases.create(runs);
  if (id == 0) return std::nullopt;
  const Place taken = fill_alias(id, request);
  ++parts_.counters.stitched_requests;
  parts_.counters.stitched_pages += pages;
  return taken;
}

/// Wholly free pages from the smallest extents first, so that large ones stay whole; empty if there
/// are too few.
std::vector<PageRun> LargePlacer::choose_pages(uint64_t pages, StreamIndex stream,
                                               Pick pick) const {
  std::vector<PageRun> runs = parts_.memory.obtainable_pages(stream);
  if (pick == Pick::kBacked) runs = parts_.pages.backed_parts(runs);
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

bool LargePlacer::make_room_for_alias(uint64_t pages) {
  if (parts_.aliases.has_room(pages)) return true;
  // Idle aliases must go, and unmapping needs the work on them done.
  if (!parts_.streams.events_allowed() || !parts_.aliases.could_make_room(pages)) return false;
  parts_.memory.drain_numbered();
  return parts_.aliases.make_room(pages);
}

Place LargePlacer::take_offset(uint64_t offset, const LargeRequest& request) {
  return fill_block(parts_.memory.take(offset, request.size, BlockState::kLive, request.stream),
                    request);
}

Place LargePlacer::take_block(BlockId id, const LargeRequest& request) {
  return fill_block(parts_.memory.take_start(id, request.size, BlockState::kLive, request.stream),
                    request);
}

/// Gives a taken block its pages and its record. A failure frees it again.
Place LargePlacer::fill_block(BlockId id, const LargeRequest& request) {
  Block& block = parts_.range[id];
  block.stream = request.stream;
  try {
    parts_.pages.need_primary(parts_.pages.under(block.offset, block.size));
  } catch (...) {
    parts_.range.release(id, parts_.streams.tag_freed(request.stream, 0));
    throw;
  }
  block.requested = request.requested;
  block.stack_id = request.stack_id;
  return {block.offset, block.size};
}

/// Makes an idle alias, whose pages the stream can take, the request's block.
Place LargePlacer::fill_alias(AliasId id, const LargeRequest& request) {
  const uint64_t pages = pages_for(request);
  const uint64_t page_bytes = layout_.page_bytes;
  Alias& alias = parts_.aliases[id];
  each_prefix_run(alias.runs, pages, [&](PageRun run) {
    parts_.memory.wait_for(run.first * page_bytes, run.count * page_bytes, request.stream);
    return true;
  });
  parts_.aliases.occupy(id, pages);
  alias.requested = request.requested;
  alias.stream = request.stream;
  alias.stack_id = request.stack_id;
  return {layout_.primary_bytes() + alias.first * page_bytes, pages * page_bytes};
}

}  // namespace vramkit
