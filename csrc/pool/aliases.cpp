#include "pool/aliases.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/host_memory.h"

namespace vramkit {

Aliases::Aliases(Backend& backend, Pages& pages, Range& range, const Layout& layout)
    : backend_(backend), pages_(pages), range_(range), layout_(layout) {}

Aliases::~Aliases() {
  try {
    drop_idle();
  } catch (const std::exception& error) {
    report("closing a pool: %s", error.what());
  }
}

AliasId Aliases::create(const std::vector<PageRun>& runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) {
    pages += run.count;
    if (backend_.aliasing()) pages_.need_primary(run);
  }
  prepare(runs.size());
  if (!backend_.take_mappings(pages)) return 0;
  const AliasId id = new_alias(take_address(pages));
  try {
    for (const PageRun& run : runs) append(id, run);
  } catch (...) {
    const uint64_t mapped = aliases_[id].pages;
    backend_.give_back_mappings(pages - mapped);
    give_back_address(aliases_[id].first + mapped, pages - mapped);
    if (mapped == 0) forget(id);
    throw;
  }
  return id;
}

/// Takes the host memory that one alias more of so many runs needs for its life, so that nothing
/// fails between calls that map and what is noted of them.
void Aliases::prepare(size_t runs) {
  if (free_ids_.empty()) {
    reserve_more(free_ids_, aliases_.size() + 1);
    aliases_.emplace_back();
    free_ids_.push_back(static_cast<AliasId>(aliases_.size() - 1));
  }
  Alias& next = aliases_[free_ids_.back()];
  next.runs.reserve(runs);
  next.primary_blocks.reserve(runs);
  // One by size and one by address for each; free addresses lie between aliases.
  nodes_.reserve(3 * aliases_.size() + 1);
}

AliasId Aliases::new_alias(uint64_t first) {
  const AliasId id = free_ids_.back();
  free_ids_.pop_back();
  aliases_[id].first = first;
  by_address_.emplace(first, id);
  return id;
}

void Aliases::append(AliasId id, PageRun run) {
  Alias& alias = aliases_[id];
  // Pages that move do so when they are occupied.
  if (backend_.aliasing()) {
    const uint64_t at = alias.first + alias.pages;
    pages_.need_alias(at, run);
    pages_.map_alias(at, run);
  }
  alias.runs.push_back(run);
  set_pages(id, alias.pages + run.count);
}

/// Unmaps all but the first `pages` pages, from the end; a failure leaves what is still mapped.
void Aliases::cut(AliasId id, uint64_t pages) {
  Alias& alias = aliases_[id];
  while (alias.pages > pages) {
    PageRun& run = alias.runs.back();
    const uint64_t count = std::min(run.count, alias.pages - pages);
    const uint64_t at = alias.first + alias.pages - count;
    pages_.unmap_alias(at, {run.first + run.count - count, count});
    give_back_address(at, count);
    backend_.give_back_mappings(count);
    set_pages(id, alias.pages - count);
    run.count -= count;
    if (run.count == 0) alias.runs.pop_back();
  }
}

void Aliases::set_pages(AliasId id, uint64_t pages) {
  Alias& alias = aliases_[id];
  by_pages_.erase({alias.pages, id});
  if (pages > 0) by_pages_.emplace(pages, id);
  mapped_pages_ += pages - alias.pages;
  alias.pages = pages;
}

void Aliases::forget(AliasId id) {
  by_address_.erase(aliases_[id].first);
  aliases_[id] = Alias{};
  free_ids_.push_back(id);
}

void Aliases::drop(AliasId id) {
  cut(id, 0);
  forget(id);
}

bool Aliases::has_address(uint64_t pages) const {
  if (pages <= layout_.alias_pages - next_address_) return true;
  return std::any_of(free_addresses_.begin(), free_addresses_.end(),
                     [pages](const auto& piece) { return piece.second >= pages; });
}

uint64_t Aliases::take_address(uint64_t pages) {
  const auto found = std::find_if(free_addresses_.begin(), free_addresses_.end(),
                                  [pages](const auto& piece) { return piece.second >= pages; });
  if (found == free_addresses_.end()) return std::exchange(next_address_, next_address_ + pages);
  const auto [first, count] = *found;
  free_addresses_.erase(found);
  if (count > pages) free_addresses_.emplace(first + pages, count - pages);
  return first;
}

void Aliases::give_back_address(uint64_t first, uint64_t pages) {
  if (!backend_.rebindable() || pages == 0) return;
  auto next = free_addresses_.lower_bound(first);
  if (next != free_addresses_.end() && next->first == first + pages) {
    pages += next->second;
    next = free_addresses_.erase(next);
  }
  if (next != free_addresses_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == first) {
      before->second += pages;
      return;
    }
  }
  free_addresses_.emplace(first, pages);
}

bool Aliases::has_room(uint64_t pages) const {
  return mapped_pages_ + pages <= backend_.max_alias_pages() && has_address(pages);
}

bool Aliases::could_make_room(uint64_t pages) const {
  uint64_t live = 0;
  each([&](AliasId, const Alias& alias) { live += alias.live() ? alias.pages : 0; });
  return live + pages <= backend_.max_alias_pages() &&
         (backend_.rebindable() || has_address(pages));
}

bool Aliases::make_room(uint64_t pages) {
  const uint64_t most = backend_.max_alias_pages();
  const uint64_t spare = most / 8;
  std::vector<AliasId> going = idle();
  std::sort(going.begin(), going.end(),
            [this](AliasId a, AliasId b) { return aliases_[a].last_use < aliases_[b].last_use; });
  for (const AliasId id : going) {
    if (has_address(pages) && mapped_pages_ + pages + spare <= most) break;
    drop(id);
  }
  return has_room(pages);
}

std::vector<AliasId> Aliases::idle() const {
  std::vector<AliasId> found;
  each([&](AliasId id, const Alias& alias) {
    if (!alias.live()) found.push_back(id);
  });
  return found;
}

void Aliases::occupy(AliasId id, uint64_t pages) {
  Alias& alias = aliases_[id];
  uint64_t at = alias.first;
  each_prefix_run(alias.runs, pages, [&](PageRun run) {
    pages_.need_alias(at, run);
    at += run.count;
    return true;
  });
  const uint64_t page_bytes = layout_.page_bytes;
  range_.prepare(alias.runs.size());
  each_prefix_run(alias.runs, pages, [&](PageRun run) {
    alias.primary_blocks.push_back(
        range_.take(run.first * page_bytes, run.count * page_bytes, BlockState::kAliased));
    return true;
  });
  alias.live_pages = pages;
  alias.last_use = ++clock_;
}

void Aliases::release(AliasId id, const Tag& tag, Streams& streams) {
  Alias& alias = aliases_[id];
  for (size_t i = 0; i < alias.primary_blocks.size(); ++i) {
    if (i > 0) streams.hold_uses(tag.uses);
    range_.release(alias.primary_blocks[i], tag);
  }
  alias.primary_blocks.clear();
  alias.live_pages = 0;
  alias.requested = 0;
  alias.stack_id = 0;
  alias.uses = 0;
}

void Aliases::drop_idle() {
  for (auto at = by_address_.begin(); at != by_address_.end();) {
    const AliasId id = at++->second;  // no list of them, which a destructor may have no memory for
    if (!aliases_[id].live()) drop(id);
  }
  for (const auto& [first, id] : by_address_) cut(id, aliases_[id].live_pages);
}

AliasId Aliases::at(uint64_t alias_page) const {
  auto it = by_address_.upper_bound(alias_page);
  if (it == by_address_.begin()) return 0;
  --it;
  return alias_page < it->first + aliases_[it->second].pages ? it->second : 0;
}

AliasId Aliases::starting_at(uint64_t alias_page) const {
  const auto found = by_address_.find(alias_page);
  return found != by_address_.end() ? found->second : 0;
}

uint64_t Aliases::metadata_bytes() const {
  constexpr uint64_t kNode = 64;
  uint64_t bytes = aliases_.capacity() * sizeof(Alias);
  each([&](AliasId, const Alias& alias) {
    bytes += 2 * kNode + alias.runs.capacity() * sizeof(PageRun);
  });
  return bytes;
}

}  // namespace vramkit
