// The live blocks and their places, as one number.
#pragma once

#include <cstdint>

namespace vramkit {

/// Mixes a value into a hash; collisions are rare, and harmless to the callers.
inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value ^ (hash >> 32)) * 0x9e3779b97f4a7c15U;
  return hash ^ (hash >> 29);
}

/// Two sets of live blocks hardly ever have the same hash. The engine owns the only one: the large
/// placer adds blocks, `Engine::release` removes them, and `Spans` does both for chunks, which
/// stand for their small blocks. The pool's lock protects it; nothing throws.
class LiveSetHash {
 public:
  /// Adds a block, or removes it again.
  void toggle(uint64_t place, uint64_t size) { value_ ^= mix(mix(0, place), size); }
  /// The key of a request that comes while these blocks are live.
  uint64_t request_key(uint64_t size, uint64_t stream) const {
    return mix(mix(value_, size), stream);
  }
  bool operator==(const LiveSetHash&) const = default;

 private:
  uint64_t value_ = 0;
};

}  // namespace vramkit
