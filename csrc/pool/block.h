// One record for each piece of the primary range, live or free, in address order.
#pragma once

#include <cstdint>

#include "base/slots.h"

namespace vramkit {

using BlockId = uint32_t;  // 0 is no block
using StreamIndex = uint16_t;

/// Free memory that no stream's work can still touch.
inline constexpr StreamIndex kAnyStream = 0xffff;

enum class BlockState : uint8_t {
  kFree,
  kLive,
  kChunk,    // holds spans of small blocks
  kAliased,  // its pages serve a stitched block
  kRetired,  // an address that is never used again
};

/// Whose queued work may still touch a freed piece of memory: everything that `stream` was given
/// before its free number `epoch`, and the uses recorded under `uses` (0: none).
struct Tag {
  StreamIndex stream = kAnyStream;
  uint32_t uses = 0;
  uint64_t epoch = 0;
};

struct alignas(64) Block {
  uint64_t offset;     // bytes from the start of the primary range
  uint64_t size;       // bytes
  uint64_t requested;  // bytes asked for; 0 unless live
  uint64_t epoch;      // of the tag, when free
  BlockId prev;        // neighbours by address
  BlockId next;
  BlockId bin_prev;  // neighbours in the bin, when free
  BlockId bin_next;
  uint32_t stack_id;
  uint32_t uses;  // when live: streams recorded; when free: of the tag
  StreamIndex stream;
  BlockState state;

  uint64_t end() const { return offset + size; }
  bool contains(uint64_t place) const { return place - offset < size; }
  bool is_free() const { return state == BlockState::kFree; }
  Tag tag() const { return {stream, uses, epoch}; }
};
static_assert(sizeof(Block) == 64);

/// Ids are reused after a block has merged into its neighbour: keep none across a free.
using Blocks = Slots<Block>;

}  // namespace vramkit
