#include "pool/aliases.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace vramkit {

Aliases::Aliases(Backend& backend, Pages& pages, Range& range, const Layout& layout)
    : backend_(backend), pages_(pages), range_(range), layout_(layout) {}

Aliases::~Aliases() {
  try {
    drop_idle();
  } catch (const Error& error) {
    report("closing a pool: %s", error.what());
  }
}

AliasId Aliases::create(std::vector<PageRun> runs) {
  Alias alias;
  alias.runs = std::move(runs);
  for (const PageRun& run : alias.runs) alias.pages += run.count;
  alias.first = take_address(alias.pages);
  try {
    map(alias);
  } catch (...) {
    if (backend_.rebindable()) free_addresses_.emplace(alias.pages, alias.first);
    throw;
  }
  if (free_ids_.empty()) {
    free_ids_.push_back(static_cast<AliasId>(aliases_.size()));
    aliases_.emplace_back();
  }
  const AliasId id = free_ids_.back();
  free_ids_.pop_back();
  mapped_pages_ += alias.pages;
  by_pages_.emplace(alias.pages, id);
  by_address_.emplace(alias.first, id);
  aliases_[id] = std::move(alias);
  return id;
}

void Aliases::map(const Alias& alias) {
  uint64_t at = alias.first;
  size_t mapped = 0;
  try {
    for (const PageRun& run : alias.runs) {
      pages_.need_alias(at, run);
      if (backend_.aliasing()) pages_.map_alias(at, run);
      at += run.count;
      ++mapped;
    }
  } catch (...) {
    for (size_t i = mapped; i-- > 0;) {
      at -= alias.runs[i].count;
      pages_.unmap_alias(at, alias.runs[i]);
    }
    throw;
  }
}

uint64_t Aliases::take_address(uint64_t pages) {
  const auto found = free_addresses_.find(pages);
  if (found != free_addresses_.end()) {
    const uint64_t first = found->second;
    free_addresses_.erase(found);
    return first;
  }
  if (next_address_ + pages > layout_.alias_pages) {
    fail(Status::kSystem,
         "the pool has used up its addresses for stitched blocks (%llu pages); make a new pool",
         static_cast<unsigned long long>(layout_.alias_pages));
  }
  return std::exchange(next_address_, next_address_ + pages);
}

bool Aliases::make_room(uint64_t pages) {
  const uint64_t cap = backend_.max_alias_pages();
  while (mapped_pages_ + pages > cap) {
    AliasId oldest = 0;
    each([&](AliasId id, const Alias& alias) {
      if (alias.live()) return;
      if (oldest == 0 || alias.last_use < aliases_[oldest].last_use) oldest = id;
    });
    if (oldest == 0) return false;
    drop(oldest);
  }
  return true;
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
  each_prefix_run(alias.runs, pages, [&](PageRun run) {
    alias.lent.push_back(
        range_.take(run.first * page_bytes, run.count * page_bytes, BlockState::kLent));
    return true;
  });
  alias.live_pages = pages;
  alias.last_use = ++clock_;
}

void Aliases::release(AliasId id, const Tag& tag, Streams& streams) {
  Alias& alias = aliases_[id];
  for (size_t i = 0; i < alias.lent.size(); ++i) {
    if (i > 0) streams.hold_uses(tag.uses);
    range_.release(alias.lent[i], tag);
  }
  alias.lent.clear();
  alias.live_pages = 0;
  alias.requested = 0;
  alias.stack_id = 0;
  alias.uses = 0;
}

void Aliases::drop_idle() {
  std::vector<AliasId> idle;
  each([&](AliasId id, const Alias& alias) {
    if (!alias.live()) idle.push_back(id);
  });
  for (const AliasId id : idle) drop(id);
}

void Aliases::drop(AliasId id) {
  Alias& alias = aliases_[id];
  uint64_t at = alias.first;
  for (const PageRun& run : alias.runs) {
    pages_.unmap_alias(at, run);
    at += run.count;
  }
  if (backend_.rebindable()) free_addresses_.emplace(alias.pages, alias.first);
  mapped_pages_ -= alias.pages;
  by_address_.erase(alias.first);
  const auto [low, high] = by_pages_.equal_range(alias.pages);
  by_pages_.erase(std::find_if(low, high, [id](const auto& item) { return item.second == id; }));
  alias = Alias{};
  free_ids_.push_back(id);
}

AliasId Aliases::at(uint64_t alias_page) const {
  auto it = by_address_.upper_bound(alias_page);
  if (it == by_address_.begin()) return 0;
  --it;
  return alias_page < it->first + aliases_[it->second].pages ? it->second : 0;
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
