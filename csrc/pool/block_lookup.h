// The live block at an address: the only place that answers this.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "pool/aliases.h"
#include "pool/range.h"
#include "pool/spans.h"

namespace vramkit {

/// A live block: exactly one of the three kinds, or none.
struct FoundBlock {
  enum class Kind : uint8_t { kNone, kLarge, kSmall, kStitched };

  Kind kind = Kind::kNone;
  uint64_t address = 0;  // its start
  BlockId block = 0;     // kLarge
  AliasId alias = 0;     // kStitched
  uint32_t entry = 0;    // kSmall: of its granule
  Spans::Slot slot{};    // kSmall
};

/// Callers hold the pool's lock. Takes no memory and changes nothing. What it finds is valid until
/// the next allocation or free.
class BlockLookup {
 public:
  BlockLookup(const Layout& layout, uint64_t base, const Range& range, const Spans& spans,
              const Aliases& aliases)
      : layout_(layout),
        primary_bytes_(layout.primary_bytes()),
        base_(base),
        range_(range),
        spans_(spans),
        aliases_(aliases) {}
  BlockLookup(const BlockLookup&) = delete;
  BlockLookup& operator=(const BlockLookup&) = delete;

  bool in_pool(uint64_t address) const { return address - base_ < layout_.address_bytes(); }
  /// The live block that contains the address, which may be any number.
  FoundBlock at(uint64_t address) const;

 private:
  BlockId containing(uint64_t offset) const;
  void find_stitched(uint64_t offset, FoundBlock& found) const;

  const Layout layout_;
  const uint64_t primary_bytes_;
  const uint64_t base_;
  const Range& range_;
  const Spans& spans_;
  const Aliases& aliases_;
};

}  // namespace vramkit
