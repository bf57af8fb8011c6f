// Stitched blocks: pages that are free here and there, at one contiguous address of their own.
//
// An address stays mapped after its block is freed and serves again once the pages under it are
// wholly free: a training step that needs stitching needs the same one in every repetition. The
// address is bound to its pages for ever; one that is given up is not used for other pages (see
// `Backend::rebindable`).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "pool/pages.h"
#include "pool/range.h"

namespace vramkit {

using AliasId = uint32_t;  // 0 is none

struct Alias {
  uint64_t first = 0;  // alias page
  uint64_t pages = 0;
  std::vector<PageRun> runs;  // primary pages in the order of the alias addresses
  uint64_t last_use = 0;
  // Of the live block, when there is one:
  uint64_t live_pages = 0;
  uint64_t requested = 0;
  uint32_t stack_id = 0;
  uint32_t uses = 0;
  StreamIndex stream = kAnyStream;
  std::vector<BlockId> primary_blocks;  // the primary blocks that it occupies

  bool live() const { return live_pages > 0; }
};

/// Called under the pool's lock. Calls that create, occupy or drop aliases map or unmap pages, and
/// may block in the driver. The id of a live alias stays valid; `create` invalidates references,
/// and `make_room` and `drop_idle` the ids of idle aliases. The destructor unmaps all aliases, and
/// reports what fails.
class Aliases {
 public:
  Aliases(Backend& backend, Pages& pages, Range& range, const Layout& layout);
  Aliases(const Aliases&) = delete;
  Aliases& operator=(const Aliases&) = delete;
  ~Aliases();

  /// A mapped alias whose first `pages` pages satisfy usable(run), the tightest one; or 0. Only so
  /// many are looked at as cost less than mapping a new one.
  template <typename Usable>
  AliasId find(uint64_t pages, Usable usable) const;
  /// Gives the pages of `runs`, which must be free, an address. A failure leaves an alias of those
  /// that were mapped; without memory for all of them it takes no address. Returns 0 where
  /// another pool has just taken the mappings that `has_room` had seen.
  AliasId create(const std::vector<PageRun>& runs);
  /// True if `pages` more fit under the cap and have an address.
  bool has_room(uint64_t pages) const;
  /// True if giving idle aliases up would make room.
  bool could_make_room(uint64_t pages) const;
  /// Gives idle aliases up, least recently used first, until there is room, and some more, so that
  /// the next ones need not wait. Work on them must be done. False if that is not enough.
  bool make_room(uint64_t pages);

  /// Occupies the primary pages under the first `pages` pages.
  void occupy(AliasId id, uint64_t pages);
  /// Frees them with the tag, whose uses each freed block holds.
  void release(AliasId id, const Tag& tag, Streams& streams);

  /// Unmaps aliases without a live block, and what live blocks do not use of theirs. Work on them
  /// must be done.
  void drop_idle();

  Alias& operator[](AliasId id) { return aliases_[id]; }
  const Alias& operator[](AliasId id) const { return aliases_[id]; }
  /// The alias, mapped, that contains the alias page; or 0.
  AliasId at(uint64_t alias_page) const;
  /// The mapped alias whose first page that is; or 0.
  AliasId starting_at(uint64_t alias_page) const;
  uint64_t mapped_pages() const { return mapped_pages_; }

  template <typename Visit>
  void each(Visit visit) const {
    for (const auto& [first, id] : by_address_) visit(id, aliases_[id]);
  }
  uint64_t metadata_bytes() const;

 private:
  static constexpr int kMostLooks = 128;

  using Pair = std::pair<uint64_t, uint64_t>;
  using Sized = std::pair<uint64_t, AliasId>;
  template <typename Value>
  using Map = std::map<uint64_t, Value, std::less<uint64_t>,
                       NodeAllocator<std::pair<const uint64_t, Value>>>;

  void prepare(size_t runs);
  AliasId new_alias(uint64_t first);
  void append(AliasId id, PageRun run);
  void cut(AliasId id, uint64_t pages);
  void set_pages(AliasId id, uint64_t pages);
  void forget(AliasId id);
  void drop(AliasId id);
  std::vector<AliasId> idle() const;
  bool has_address(uint64_t pages) const;
  uint64_t take_address(uint64_t pages);
  void give_back_address(uint64_t first, uint64_t pages);

  Backend& backend_;
  Pages& pages_;
  Range& range_;
  const Layout layout_;
  std::vector<Alias> aliases_{1};
  std::vector<AliasId> free_ids_;
  NodePool nodes_{NodeAllocator<Pair>::kNodeBytes};  // of the three below
  std::set<Sized, std::less<Sized>, NodeAllocator<Sized>> by_pages_{NodeAllocator<Sized>(nodes_)};
  Map<AliasId> by_address_{NodeAllocator<Pair>(nodes_)};
  Map<uint64_t> free_addresses_{NodeAllocator<Pair>(nodes_)};  // to be bound again: first, pages
  uint64_t next_address_ = 0;
  uint64_t mapped_pages_ = 0;
  uint64_t clock_ = 0;
};

/// Calls visit(run) for the runs, the last one cut, that make up the first `pages` pages.
template <typename Visit>
bool each_prefix_run(const std::vector<PageRun>& runs, uint64_t pages, Visit visit) {
  for (const PageRun& run : runs) {
    if (pages == 0) break;
    const PageRun part{run.first, run.count < pages ? run.count : pages};
    if (!visit(part)) return false;
    pages -= part.count;
  }
  return true;
}

template <typename Usable>
AliasId Aliases::find(uint64_t pages, Usable usable) const {
  int looks = kMostLooks;
  for (auto it = by_pages_.lower_bound({pages, 0}); it != by_pages_.end() && looks > 0; ++it) {
    const Alias& alias = aliases_[it->second];
    if (alias.live()) continue;
    if (each_prefix_run(alias.runs, pages, usable)) return it->second;
    --looks;
  }
  return 0;
}

}  // namespace vramkit
