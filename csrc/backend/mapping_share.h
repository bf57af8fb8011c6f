// How many of the process's mappings its pools may use.
#pragma once

#include <cstdint>
#include <string>

namespace vramkit {

/// The kernel limits the mappings of a process (vm.max_map_count), and each stitched page can take
/// one. At the limit every mmap of the process fails, and with it malloc. So all pools together
/// use at most half of the limit, one pool at most a quarter, and an eighth stays free beyond what
/// the rest of the process has mapped when that was last counted.
///
/// One object for each backend, which gives back what it holds when it goes. Its methods are for
/// one thread at a time; different objects may be used by different threads.
class MappingShare {
 public:
  MappingShare() = default;
  MappingShare(const MappingShare&) = delete;
  MappingShare& operator=(const MappingShare&) = delete;
  ~MappingShare() { give_back(held_); }

  /// False, and nothing is taken, where the pages are too many.
  bool take(uint64_t pages);
  void give_back(uint64_t pages) noexcept;
  /// How many this backend can have at most now, those included that it has.
  uint64_t most() const;
  /// The limit and what is used of it, in words.
  std::string describe() const;

  /// In a forked child: what its parent's pools hold stays mapped, but counts as the mappings of
  /// others do.
  static void forget_parents() noexcept;

 private:
  uint64_t held_ = 0;
};

/// The mappings that the process has now. Takes a millisecond for some thousand.
uint64_t count_mappings();

/// vm.max_map_count.
uint64_t mapping_limit();

}  // namespace vramkit
