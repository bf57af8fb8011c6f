#include "workloads.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "allocators.h"

namespace bench {
namespace {

class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  double next_unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

std::uint32_t draw_size(SplitMix64& random) {
  constexpr double kSmallest = 512;
  constexpr double kOctaves = 11;  // 512 B to 1 MiB
  return static_cast<std::uint32_t>(kSmallest * std::exp2(kOctaves * random.next_unit()));
}

std::uint64_t rounded(std::uint32_t size_bytes) { return (size_bytes + 511ULL) & ~511ULL; }

}  // namespace

PairSequence::PairSequence(std::uint64_t live_blocks, std::uint64_t replacement_count,
                           std::uint64_t seed) {
  SplitMix64 random(seed);
  std::uint64_t live_bytes = 0;
  first_sizes.reserve(live_blocks);
  for (std::uint64_t i = 0; i < live_blocks; ++i) {
    first_sizes.push_back(draw_size(random));
    live_bytes += rounded(first_sizes.back());
  }
  peak_bytes = live_bytes;
  std::vector<std::uint32_t> sizes = first_sizes;
  replacements.reserve(replacement_count);
  for (std::uint64_t i = 0; i < replacement_count; ++i) {
    const auto slot = static_cast<std::uint32_t>(random.next() % live_blocks);
    const std::uint32_t size = draw_size(random);
    live_bytes += rounded(size) - rounded(sizes[slot]);
    peak_bytes = std::max(peak_bytes, live_bytes);
    sizes[slot] = size;
    replacements.push_back({slot, size});
  }
}

Trace::Trace(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail("cannot read " + path);
  const auto length_bytes = static_cast<std::size_t>(file.tellg());
  events.resize(length_bytes / sizeof(Event));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(events.data()),
            static_cast<std::streamsize>(events.size() * sizeof(Event)));
  if (!file) fail("cannot read all of " + path);
  for (const Event& event : events) blocks = std::max(blocks, event.block + 1);
}

}  // namespace bench
