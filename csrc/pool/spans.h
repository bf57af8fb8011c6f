// Small blocks: slots of one size in spans, spans in chunks, chunks in the primary range.
//
// A chunk belongs to one stream, so that a slot freed by its stream serves that stream again
// without any event. A slot with recorded uses of other streams stays taken until those are done.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <set>
#include <unordered_map>
#include <vector>

#include "pool/live_set_hash.h"
#include "pool/range.h"
#include "pool/streams.h"

namespace vramkit {

inline constexpr uint64_t kMaxSmall = kGranule;

/// Called under the pool's lock; nothing blocks. Callers give it a chunk's block (`add_chunk`),
/// which it releases to the range in `give_back_chunks`. A `Slot` is a copy, valid until the next
/// call that changes anything.
class Spans {
 public:
  struct Slot {
    uint64_t offset;
    uint64_t size;
    uint64_t requested;
    uint32_t stack_id;
    StreamIndex stream;
    bool pending;
  };

  /// Where a slot may be taken: an empty chunk is as good as given back until somebody opens it.
  enum class In : uint8_t { kChunksInUse, kAnyChunk };

  /// Chunks with a live slot are added to `live_set`. `limit_bytes`: the range's largest end.
  Spans(Range& range, Streams& streams, LiveSetHash& live_set, uint64_t capacity_bytes,
        uint64_t limit_bytes);

  /// Sizes from 1 to kMaxSmall. Returns the offset, or kNoOffset when another chunk is needed.
  uint64_t allocate(uint64_t size, StreamIndex stream, uint32_t stack_id, In in);
  /// What a block of that size occupies.
  static uint64_t slot_bytes(uint64_t size) { return kSizes[class_of(size)].slot_bytes; }
  /// The chunk size that `add_chunk` wants; a multiple of itself is its alignment.
  uint64_t chunk_bytes() const { return chunk_bytes_; }
  /// Takes the host memory for one chunk more and its end: only this call can fail, and it changes
  /// nothing.
  void prepare_chunk(StreamIndex stream);
  /// Follows `prepare_chunk`.
  void add_chunk(BlockId block, StreamIndex stream);
  /// The size of a chunk in the hash of the live set and in the key of a request for one: no block
  /// has it.
  uint64_t chunk_key() const { return chunk_bytes_ + 1; }
  /// The offset of the stream's chunk without a live slot, or kNoOffset unless there is just one.
  uint64_t empty_chunk(StreamIndex stream) const;

  /// What is known of the slot at the offset. `entry` is that of the offset's granule. A null size
  /// means that no block lives there.
  Slot find(uint32_t entry, uint64_t offset) const;
  /// Frees a live slot that `find` returned, after the work of that stream.
  void release(uint32_t entry, const Slot& slot, StreamIndex stream);
  void record_use(const Slot& slot, StreamIndex user);

  /// Gives slots whose recorded uses are done back.
  void reclaim_pending();
  bool has_pending() const { return !pending_.empty(); }
  uint64_t pending_bytes() const { return pending_bytes_; }

  bool has_empty_chunk() const { return empty_chunks_ > 0; }
  /// Returns chunks without a live slot to the range. True if there was one.
  bool give_back_chunks();

  /// Calls visit(slot) for every live or pending slot.
  template <typename Visit>
  void each_slot(Visit visit) const;

  uint64_t metadata_bytes() const { return spans_.metadata_bytes(); }
  void check_valid() const;

  static constexpr uint64_t kNoOffset = ~uint64_t{0};

 private:
  static constexpr uint64_t kUnit = 64 * kKiB;        // smallest span
  static constexpr uint64_t kLargeSpan = 256 * kKiB;  // for objects over kMaxInUnit
  static constexpr uint64_t kMaxInUnit = 4 * kKiB;
  static constexpr int kClasses = 24;  // 512 B steps to 8 KiB, then 1 KiB to 16 KiB
  static constexpr uint32_t kMaxSlots = 128;
  static constexpr uint32_t kNoChunk = ~uint32_t{0};

  // An entry holds the class above the number, so that a slot's place follows from its address
  // alone and both of a span's cache lines can be fetched at once.
  static constexpr int kClassShift = 26;
  static constexpr uint32_t kIdMask = (uint32_t{1} << kClassShift) - 1;

  struct alignas(64) Span {
    uint64_t offset;
    uint64_t taken[2];  // a bit for each slot
    uint32_t slot_bytes;
    uint32_t slots;
    uint32_t used;
    uint32_t chunk;  // index in chunks_
    uint32_t prev;   // spans of this class with room
    uint32_t next;
    uint16_t requested[kMaxSlots];  // slot_bytes minus what was asked for
    StreamIndex stream;
    uint8_t size_class;

    uint64_t bytes() const { return span_bytes(slot_bytes); }
    uint32_t entry(uint32_t id) const {
      return kSpanEntry | static_cast<uint32_t>(size_class) << kClassShift | id;
    }
  };
  struct Chunk {
    BlockId block = 0;  // 0: this record is free
    StreamIndex stream = kAnyStream;
    uint32_t units = 0;       // a bit for each unit taken by a span
    uint32_t busy_spans = 0;  // those with a live or pending slot
    bool fell_idle = false;   // it is in idle_chunks_
    std::array<uint32_t, 32> span_at{};
  };
  using Roomy = std::set<uint32_t, std::less<uint32_t>, NodeAllocator<uint32_t>>;
  /// What there is of one stream. Chunks by number, so that low ones are filled first.
  struct OfStream {
    std::array<uint32_t, kClasses> heads{};  // spans with room, by class
    std::array<Roomy, 2> roomy;              // chunks with room for a span, by its width

    explicit OfStream(const Roomy::allocator_type& nodes) : roomy{Roomy(nodes), Roomy(nodes)} {}
  };

  static constexpr uint64_t span_bytes(uint64_t slot_bytes) {
    return slot_bytes > kMaxInUnit ? kLargeSpan : kUnit;
  }
  struct SizeClass {
    uint32_t slot_bytes;
    uint32_t reciprocal;  // of slot_bytes, times 2**32
  };
  static constexpr std::array<SizeClass, kClasses> make_classes();
  static const std::array<SizeClass, kClasses> kSizes;
  static size_t class_of(uint64_t size);
  static size_t width_of(uint64_t span_bytes) { return span_bytes == kLargeSpan ? 1 : 0; }
  uint32_t new_span(size_t size_class, StreamIndex stream, In in);
  bool may_use(uint32_t chunk, In in) const {
    return in == In::kAnyChunk || chunks_[chunk].busy_spans > 0;
  }
  uint32_t chunk_for(uint64_t bytes, StreamIndex stream, In in);
  uint32_t only_empty_chunk(StreamIndex stream) const;
  void list_room(uint32_t chunk);
  void give_back_chunk(uint32_t index);
  uint64_t room_in(const Chunk& chunk, uint64_t bytes) const;
  void drop_span(uint32_t id);
  void drop_spans(uint32_t chunk);
  void link(uint32_t id);
  void unlink(uint32_t id);
  void becomes_busy(const Span& span);
  void becomes_idle(const Span& span);
  void clear_slot(uint32_t id, uint64_t offset);
  void check_chunk(uint32_t index) const;
  void check_span(const Span& span, uint32_t id) const;
  OfStream& of(StreamIndex stream);

  Range& range_;
  Streams& streams_;
  LiveSetHash& live_set_;
  uint64_t chunk_bytes_;
  Slots<Span> spans_;
  std::vector<Chunk> chunks_;
  std::vector<uint32_t> free_chunks_;  // records of chunks_ without one
  std::vector<uint32_t> idle_chunks_;  // those that fell idle: they may be busy again
  NodePool roomy_nodes_{NodeAllocator<uint32_t>::kNodeBytes};
  std::vector<OfStream> streams_of_;               // by stream
  std::unordered_map<uint64_t, uint32_t> stacks_;  // by offset, where one was given
  std::unordered_map<uint64_t, uint32_t> uses_;    // by offset: recorded uses of live slots
  std::unordered_map<uint64_t, Tag> pending_;      // by offset: freed, uses not done
  uint64_t pending_bytes_ = 0;
  uint64_t empty_chunks_ = 0;
};

template <typename Visit>
void Spans::each_slot(Visit visit) const {
  for (const Chunk& chunk : chunks_) {
    if (chunk.block == 0) continue;
    for (const uint32_t id : chunk.span_at) {
      if (id == 0) continue;
      const Span& span = spans_[id];
      for (uint32_t i = 0; i < span.slots; ++i) {
        if ((span.taken[i / 64] >> (i % 64) & 1) == 0) continue;
        visit(find(span.entry(id), span.offset + uint64_t{i} * span.slot_bytes));
      }
    }
  }
}

}  // namespace vramkit
