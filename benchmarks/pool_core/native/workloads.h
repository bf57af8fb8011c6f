// What the driver does to an allocator: random replacement at a fixed number of live blocks, and
// the replay of a recorded trace. Everything random is drawn before the clock starts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bench {

/// Free the block in `slot`, then allocate `size_bytes` into it.
struct Replacement {
  std::uint32_t slot;
  std::uint32_t size_bytes;
};

/// A fixed sequence: the same arguments give the same one in every process.
struct PairSequence {
  /// Sizes are log-uniform from 512 B to 1 MiB.
  PairSequence(std::uint64_t live_blocks, std::uint64_t replacements, std::uint64_t seed);

  std::vector<std::uint32_t> first_sizes;
  std::vector<Replacement> replacements;
  std::uint64_t peak_bytes = 0;  ///< most bytes live at once, each block rounded up to 512 B
};

/// One allocation or free of a trace; `block` numbers the blocks in order of allocation.
struct Event {
  std::uint64_t size_bytes;
  std::uint32_t block;
  std::uint16_t stream;
  std::uint16_t is_free;
};
static_assert(sizeof(Event) == 16, "the layout that the script writes");

struct Trace {
  /// Reads a file of Events as written by the script.
  explicit Trace(const std::string& path);

  std::vector<Event> events;
  std::uint32_t blocks = 0;
};

}  // namespace bench
