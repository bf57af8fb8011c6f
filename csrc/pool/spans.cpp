#include "pool/spans.h"

#include <algorithm>
#include <bit>

#include "base/bytes.h"
#include "base/error.h"
#include "base/host_memory.h"

namespace vramkit {
namespace {

constexpr uint64_t kFineLimit = 8 * kKiB;

}  // namespace

Spans::Spans(Range& range, Streams& streams, LiveSetHash& live_set, uint64_t capacity_bytes,
             uint64_t limit_bytes)
    : range_(range),
      streams_(streams),
      live_set_(live_set),
      // Small pools must not spend much of themselves on one small tensor.
      chunk_bytes_(std::clamp(std::bit_floor(capacity_bytes / 256), kMinChunk, 2 * kMiB)),
      spans_(std::min<uint64_t>(limit_bytes / kUnit + 1, kIdMask)) {}

constexpr std::array<Spans::SizeClass, Spans::kClasses> Spans::make_classes() {
  std::array<SizeClass, kClasses> sizes{};
  for (uint32_t i = 0; i < kClasses; ++i) {
    const uint64_t bytes = i < 16 ? (i + 1) * kAlignment : kFineLimit + (i - 15) * kKiB;
    sizes[i] = {static_cast<uint32_t>(bytes),
                static_cast<uint32_t>(((uint64_t{1} << 32) + bytes - 1) / bytes)};
  }
  return sizes;
}

const std::array<Spans::SizeClass, Spans::kClasses> Spans::kSizes = make_classes();

size_t Spans::class_of(uint64_t size) {
  if (size <= kFineLimit) return (size - 1) / kAlignment;
  return 16 + (size - kFineLimit - 1) / kKiB;
}

uint64_t Spans::allocate(uint64_t size, StreamIndex stream, uint32_t stack_id, In in) {
  const size_t size_class = class_of(size);
  uint32_t id = of(stream).heads[size_class];
  if (id != 0 && spans_[id].used == 0 && !may_use(spans_[id].chunk, in)) id = 0;
  if (id == 0) id = new_span(size_class, stream, in);
  if (id == 0) return kNoOffset;
  Span& span = spans_[id];
  const size_t word = span.taken[0] == ~uint64_t{0} ? 1 : 0;
  const auto bit = static_cast<uint32_t>(std::countr_one(span.taken[word]));
  const uint32_t slot = static_cast<uint32_t>(word) * 64 + bit;
  const uint64_t offset = span.offset + uint64_t{slot} * span.slot_bytes;
  if (stack_id != 0) stacks_[offset] = stack_id;
  span.taken[word] |= uint64_t{1} << bit;
  span.requested[slot] = static_cast<uint16_t>(span.slot_bytes - size);
  if (span.used++ == 0) becomes_busy(span);
  if (span.used == span.slots) unlink(id);
  return offset;
}

Spans::Slot Spans::find(uint32_t entry, uint64_t offset) const {
  const SizeClass& sizes = kSizes[entry >> kClassShift & 31];
  const uint64_t base = align_down(offset, span_bytes(sizes.slot_bytes));
  const auto slot = static_cast<uint32_t>((offset - base) * sizes.reciprocal >> 32);
  const Span& span = spans_[entry & kIdMask];
  __builtin_prefetch(&span.requested[slot < kMaxSlots ? slot : 0], 1);
  const uint64_t start = base + uint64_t{slot} * sizes.slot_bytes;
  Slot found{start, 0, 0, 0, span.stream, false};
  if (slot >= span.slots || (span.taken[slot / 64] >> (slot % 64) & 1) == 0) return found;
  found.size = span.slot_bytes;
  found.requested = span.slot_bytes - span.requested[slot];
  found.pending = !pending_.empty() && pending_.contains(start);
  if (!stacks_.empty()) {
    const auto stack = stacks_.find(start);
    if (stack != stacks_.end()) found.stack_id = stack->second;
  }
  return found;
}

void Spans::release(uint32_t entry, const Slot& slot, StreamIndex stream) {
  const uint32_t id = entry & kIdMask;
  record_use(slot, stream);
  if (!uses_.empty()) {
    const auto found = uses_.find(slot.offset);
    if (found != uses_.end()) {
      // Another stream that comes after its own stream's work is enough to wait for.
      const bool own = stream == slot.stream;
      Tag& tag = pending_[slot.offset];
      tag = own ? streams_.tag_freed(stream, found->second) : streams_.tag_used(found->second);
      uses_.erase(found);
      if (slot.stack_id != 0) stacks_.erase(slot.offset);
      pending_bytes_ += slot.size;
      return;
    }
  }
  if (slot.stack_id != 0) stacks_.erase(slot.offset);
  if (streams_.external(slot.stream)) streams_.tag_freed(slot.stream, 0);
  clear_slot(id, slot.offset);
}

void Spans::record_use(const Slot& slot, StreamIndex user) {
  if (user == slot.stream) return;
  const auto [place, is_new] = uses_.try_emplace(slot.offset, 0);
  try {
    place->second = streams_.add_use(place->second, user);
  } catch (...) {
    if (is_new) uses_.erase(place);
    throw;
  }
}

void Spans::reclaim_pending() {
  for (auto it = pending_.begin(); it != pending_.end();) {
    if (!streams_.uses_done(it->second)) {
      ++it;
      continue;
    }
    const uint64_t offset = it->first;
    streams_.drop_uses(it->second.uses);
    it = pending_.erase(it);
    const uint32_t id = range_.entry_at(offset) & kIdMask;
    pending_bytes_ -= spans_[id].slot_bytes;
    clear_slot(id, offset);
  }
}

void Spans::clear_slot(uint32_t id, uint64_t offset) {
  Span& span = spans_[id];
  const auto slot = static_cast<uint32_t>((offset - span.offset) / span.slot_bytes);
  span.taken[slot / 64] &= ~(uint64_t{1} << (slot % 64));
  if (span.used-- == span.slots) link(id);
  if (span.used == 0) becomes_idle(span);
  // One empty span of a class is kept: a lone tensor that comes and goes costs no more than a bit.
  if (span.used == 0 && (span.prev != 0 || span.next != 0)) drop_span(id);
}

void Spans::becomes_busy(const Span& span) {
  Chunk& chunk = chunks_[span.chunk];
  if (chunk.busy_spans++ > 0) return;
  --empty_chunks_;
  live_set_.toggle(range_[chunk.block].offset, chunk_key());
}

void Spans::becomes_idle(const Span& span) {
  Chunk& chunk = chunks_[span.chunk];
  if (--chunk.busy_spans > 0) return;
  ++empty_chunks_;
  live_set_.toggle(range_[chunk.block].offset, chunk_key());
  if (!chunk.fell_idle) idle_chunks_.push_back(span.chunk);
  chunk.fell_idle = true;
}

uint32_t Spans::new_span(size_t size_class, StreamIndex stream, In in) {
  const uint32_t slot_bytes = kSizes[size_class].slot_bytes;
  const uint64_t bytes = span_bytes(slot_bytes);
  const uint32_t index = chunk_for(bytes, stream, in);
  if (index == kNoChunk) return 0;
  Chunk& chunk = chunks_[index];
  const uint64_t unit = room_in(chunk, bytes);
  const uint32_t id = spans_.take();
  spans_[id] = Span{};
  Span& span = spans_[id];
  span.offset = range_[chunk.block].offset + unit * kUnit;
  span.slot_bytes = slot_bytes;
  span.slots = static_cast<uint32_t>(bytes / slot_bytes);
  span.taken[0] = span.slots < 64 ? ~uint64_t{0} << span.slots : 0;
  span.taken[1] = span.slots < 128 ? ~uint64_t{0} << (span.slots > 64 ? span.slots - 64 : 0) : 0;
  span.chunk = index;
  span.stream = stream;
  span.size_class = static_cast<uint8_t>(size_class);
  chunk.units |= static_cast<uint32_t>(((uint64_t{1} << bytes / kUnit) - 1) << unit);
  chunk.span_at[unit] = id;
  list_room(index);
  range_.mark_span(span.offset, bytes, span.entry(id));
  link(id);
  return id;
}

/// A chunk with room for a span of so many bytes, or kNoChunk.
uint32_t Spans::chunk_for(uint64_t bytes, StreamIndex stream, In in) {
  const Roomy& roomy = of(stream).roomy[width_of(bytes)];
  for (const uint32_t index : roomy) {
    if (may_use(index, in)) return index;
  }
  const uint32_t empty = in == In::kAnyChunk ? only_empty_chunk(stream) : kNoChunk;
  if (empty != kNoChunk) drop_spans(empty);  // empty ones that were kept
  return empty;
}

/// Lists the chunk where its room is looked for, or not any more.
void Spans::list_room(uint32_t index) {
  const Chunk& chunk = chunks_[index];
  for (const uint64_t bytes : {kUnit, kLargeSpan}) {
    Roomy& roomy = of(chunk.stream).roomy[width_of(bytes)];
    if (chunk.block != 0 && room_in(chunk, bytes) != kNoOffset) {
      roomy.insert(index);
    } else {
      roomy.erase(index);
    }
  }
}

uint64_t Spans::room_in(const Chunk& chunk, uint64_t bytes) const {
  const uint64_t width = bytes / kUnit;
  const uint64_t mask = (uint64_t{1} << width) - 1;
  for (uint64_t unit = 0; unit + width <= chunk_bytes_ / kUnit; unit += width) {
    if ((chunk.units & mask << unit) == 0) return unit;
  }
  return kNoOffset;
}

void Spans::drop_span(uint32_t id) {
  const Span& span = spans_[id];
  unlink(id);
  Chunk& chunk = chunks_[span.chunk];
  const uint64_t unit = (span.offset - range_[chunk.block].offset) / kUnit;
  chunk.units &= ~static_cast<uint32_t>(((uint64_t{1} << span.bytes() / kUnit) - 1) << unit);
  chunk.span_at[unit] = 0;
  list_room(span.chunk);
  range_.unmark_span(span.offset, span.bytes(), chunk.block);
  spans_.give_back(id);
}

void Spans::drop_spans(uint32_t chunk) {
  for (const uint32_t id : chunks_[chunk].span_at) {
    if (id != 0) drop_span(id);
  }
}

void Spans::prepare_chunk(StreamIndex stream) {
  of(stream);
  if (!free_chunks_.empty()) return;
  const size_t count = chunks_.size() + 1;
  roomy_nodes_.reserve(2 * count);
  reserve_more(idle_chunks_, count - idle_chunks_.size());
  reserve_more(free_chunks_, count);
  chunks_.emplace_back();
  free_chunks_.push_back(static_cast<uint32_t>(count - 1));
}

void Spans::add_chunk(BlockId block, StreamIndex stream) {
  const uint32_t index = free_chunks_.back();
  free_chunks_.pop_back();
  chunks_[index] = Chunk{};
  chunks_[index].block = block;
  chunks_[index].stream = stream;
  chunks_[index].fell_idle = true;
  idle_chunks_.push_back(index);
  ++empty_chunks_;
  list_room(index);
}

uint64_t Spans::empty_chunk(StreamIndex stream) const {
  const uint32_t index = only_empty_chunk(stream);
  return index != kNoChunk ? range_[chunks_[index].block].offset : kNoOffset;
}

uint32_t Spans::only_empty_chunk(StreamIndex stream) const {
  if (empty_chunks_ != 1) return kNoChunk;
  const auto empty = std::find_if(idle_chunks_.begin(), idle_chunks_.end(), [this](uint32_t index) {
    return chunks_[index].busy_spans == 0;
  });
  return chunks_[*empty].stream == stream ? *empty : kNoChunk;
}

bool Spans::give_back_chunks() {
  bool any = false;
  for (const uint32_t index : idle_chunks_) {
    chunks_[index].fell_idle = false;
    if (chunks_[index].busy_spans > 0) continue;
    give_back_chunk(index);
    any = true;
  }
  idle_chunks_.clear();
  return any;
}

void Spans::give_back_chunk(uint32_t index) {
  drop_spans(index);
  Chunk& chunk = chunks_[index];
  range_.release(chunk.block, streams_.tag_given_back(chunk.stream));
  chunk.block = 0;
  list_room(index);
  free_chunks_.push_back(index);
  --empty_chunks_;
}

void Spans::link(uint32_t id) {
  Span& span = spans_[id];
  uint32_t& head = of(span.stream).heads[span.size_class];
  span.prev = 0;
  span.next = head;
  if (head != 0) spans_[head].prev = id;
  head = id;
}

void Spans::unlink(uint32_t id) {
  Span& span = spans_[id];
  if (span.next != 0) spans_[span.next].prev = span.prev;
  (span.prev != 0 ? spans_[span.prev].next : of(span.stream).heads[span.size_class]) = span.next;
  span.prev = 0;
  span.next = 0;
}

Spans::OfStream& Spans::of(StreamIndex stream) {
  while (streams_of_.size() <= stream) {
    streams_of_.emplace_back(Roomy::allocator_type(roomy_nodes_));
  }
  return streams_of_[stream];
}

void Spans::check_valid() const {
  uint64_t empty = 0;
  for (uint32_t index = 0; index < chunks_.size(); ++index) {
    if (chunks_[index].block == 0) continue;
    check_chunk(index);
    empty += chunks_[index].busy_spans == 0;
  }
  if (empty != empty_chunks_) {
    throw_error(Status::kSystem, "%llu empty chunks counted, %llu found",
                static_cast<unsigned long long>(empty_chunks_),
                static_cast<unsigned long long>(empty));
  }
}

void Spans::check_chunk(uint32_t index) const {
  const Chunk& chunk = chunks_[index];
  uint32_t busy = 0;
  for (const uint32_t id : chunk.span_at) {
    if (id == 0) continue;
    check_span(spans_[id], id);
    busy += spans_[id].used > 0;
  }
  if (busy != chunk.busy_spans) {
    throw_error(Status::kSystem, "chunk of block %u: %u busy spans counted, %u found", chunk.block,
                chunk.busy_spans, busy);
  }
  if (busy == 0 && std::count(idle_chunks_.begin(), idle_chunks_.end(), index) != 1) {
    throw_error(Status::kSystem, "chunk of block %u is empty and not listed once", chunk.block);
  }
  for (const uint64_t bytes : {kUnit, kLargeSpan}) {
    const bool has_room = room_in(chunk, bytes) != kNoOffset;
    if (streams_of_[chunk.stream].roomy[width_of(bytes)].contains(index) != has_room) {
      throw_error(Status::kSystem,
                  "chunk of block %u has %s for a span of %s, and is listed otherwise", chunk.block,
                  has_room ? "room" : "no room", mib(bytes).c_str());
    }
  }
}

void Spans::check_span(const Span& span, uint32_t id) const {
  const auto bits = std::popcount(span.taken[0]) + std::popcount(span.taken[1]);
  const auto spare = static_cast<int>(kMaxSlots - span.slots);
  if (static_cast<int>(span.used) != bits - spare) {
    throw_error(Status::kSystem, "span at offset %llu: %u slots counted, %d bits set",
                static_cast<unsigned long long>(span.offset), span.used, bits - spare);
  }
  if (range_.entry_at(span.offset) != span.entry(id)) {
    throw_error(Status::kSystem, "span at offset %llu is not in the address table",
                static_cast<unsigned long long>(span.offset));
  }
}

}  // namespace vramkit
