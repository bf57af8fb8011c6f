// The engine's capacity: growing, shrinking, giving memory back.
#include <algorithm>

#include "backend/mapping.h"
#include "base/bytes.h"
#include "base/error.h"
#include "pool/engine.h"

namespace vramkit {

/// Those that lie wholly in neighbouring free blocks for which wanted(block).
template <typename Wanted>
std::vector<PageRun> Engine::whole_pages(Wanted wanted) const {
  std::vector<PageRun> runs;
  range_.each_free_extent(wanted, [&](uint64_t offset, uint64_t size) {
    const uint64_t first = ceil_div(offset, page_bytes());
    const uint64_t end = (offset + size) / page_bytes();
    if (end > first) runs.push_back({first, end - first});
    return true;
  });
  return runs;
}

std::vector<PageRun> Engine::free_pages() const {
  return whole_pages([](const Block&) { return true; });
}

/// What a stream can have of them, after a wait perhaps.
std::vector<PageRun> Engine::obtainable_pages(StreamIndex stream) const {
  const bool may_wait = streams_.events_allowed();
  return whole_pages(
      [&](const Block& block) { return streams_.obtainable(stream, block.tag(), may_wait); });
}

uint64_t Engine::free_page_bytes() const {
  uint64_t pages = 0;
  for (const PageRun& run : free_pages()) pages += run.count;
  return pages * page_bytes();
}

void Engine::resize(uint64_t capacity_bytes) {
  const uint64_t pages = capacity_bytes / page_bytes();
  check_capacity(label_, capacity_bytes, page_bytes(), *backend_);
  finish_background_mapping();
  if (pages > capacity_pages_) grow(pages - capacity_pages_);
  if (pages < capacity_pages_) shrink(capacity_pages_ - pages);
}

/// Pages that the pool can grow by: those with addresses that are not used up.
uint64_t Engine::spare_pages() const {
  const uint64_t retired = backend_->rebindable() ? pages_.count() - capacity_pages_ : 0;
  return layout_.primary_pages - pages_.count() + retired;
}

uint64_t Engine::most_capacity_bytes() const {
  return (capacity_pages_ + spare_pages()) * page_bytes();
}

void Engine::refuse_growth(uint64_t pages) const {
  const uint64_t bytes = spare_pages() * page_bytes();
  const char* const why = address_allowance() != ~uint64_t{0} && backend_->takes_address_space()
                              ? " within the limit of this process (`ulimit -v`)"
                              : "";
  throw_error(
      Status::kInvalidArgument,
      "%s: cannot grow by %s to %s: the pool reserved its addresses when it was made%s and has "
      "addresses for %s more, up to a capacity of %s; make a new pool of the size that you need",
      label_.c_str(), mib(pages * page_bytes()).c_str(),
      mib((capacity_pages_ + pages) * page_bytes()).c_str(), why, mib(bytes).c_str(),
      mib(most_capacity_bytes()).c_str());
}

void Engine::grow(uint64_t pages) {
  const uint64_t retired = backend_->rebindable() ? pages_.count() - capacity_pages_ : 0;
  if (pages > spare_pages()) refuse_growth(pages);
  const uint64_t fresh = pages > retired ? pages - retired : 0;
  pages_.prepare(fresh);
  range_.prepare(2);  // what is revived ends in one piece more, and the range in another
  backend_->create_physical({pages_.count(), fresh});
  const uint64_t revived = revive(std::min(pages, retired));
  if (pages > revived) {
    pages_.extend(pages - revived);
    range_.extend((pages - revived) * page_bytes());
  }
  capacity_pages_ += pages;
  if (!backend_->has_own_addresses()) pages_.need_primary({0, pages_.count()});  // it is all there
}

/// Takes retired pages into use again, at most `pages`; returns how many.
uint64_t Engine::revive(uint64_t pages) {
  uint64_t revived = 0;
  for (BlockId id = range_.first(); id != 0 && revived < pages;) {
    const BlockId next = range_[id].next;
    if (range_[id].state == BlockState::kRetired) {
      const uint64_t offset = range_[id].offset;
      const uint64_t size = range_[id].size;
      const uint64_t part = std::min(size / page_bytes(), pages - revived);
      range_.release(id, Tag{});
      if (part * page_bytes() < size) {
        range_.take(offset + part * page_bytes(), size - part * page_bytes(), BlockState::kRetired);
      }
      revived += part;
    }
    id = next;
  }
  return revived;
}

void Engine::shrink(uint64_t pages) {
  drain();
  aliases_.drop_idle();
  std::vector<PageRun> runs = free_pages();
  uint64_t found = 0;
  for (const PageRun& run : runs) found += run.count;
  if (found < pages) {
    throw_error(
        Status::kBusy,
        "%s: cannot shrink by %s: only %s of whole pages are free, the rest holds live blocks; "
        "free "
        "tensors first or shrink less",
        label_.c_str(), mib_apart(pages * page_bytes(), found * page_bytes()).c_str(),
        mib_apart(found * page_bytes(), pages * page_bytes()).c_str());
  }
  // From the end, where memory was used least.
  for (auto run = runs.rbegin(); pages > 0; ++run) {
    const uint64_t count = std::min(run->count, pages);
    retire({run->first + run->count - count, count});
    pages -= count;
  }
}

/// Piece by piece, so that after a failure no address is in use that has lost its memory.
void Engine::retire(PageRun run) {
  const uint64_t end = run.first + run.count;
  for (uint64_t page = run.first; page < end;) {
    const uint64_t first = page++;
    while (page < end && pages_.backed(page) == pages_.backed(first)) ++page;
    const uint64_t count = page - first;
    range_.prepare(1);  // or an address would stay in use that has lost its memory
    pages_.drop({first, count});
    range_.take(first * page_bytes(), count * page_bytes(), BlockState::kRetired);
    capacity_pages_ -= count;
  }
}

/// In the order of their addresses; only pages that were never mapped.
std::shared_ptr<BackgroundMapping> Engine::next_background_mapping(uint64_t pages) {
  finish_background_mapping();
  if (!maps_in_background_) return nullptr;
  while (next_unmapped_ < pages_.count()) {
    const Block& block = range_[range_.block_at(next_unmapped_ * page_bytes())];
    const uint64_t end = std::min(block.end() / page_bytes(), pages_.count());
    if (block.state == BlockState::kRetired || pages_.backed(next_unmapped_)) {
      next_unmapped_ = block.state == BlockState::kRetired ? end : next_unmapped_ + 1;
      continue;
    }
    const uint64_t first = next_unmapped_++;
    const uint64_t most = std::min(first + pages, end);
    while (next_unmapped_ < most && !pages_.backed(next_unmapped_)) ++next_unmapped_;
    return pages_.begin_background_mapping({first, next_unmapped_ - first});
  }
  return nullptr;
}

void Engine::add_peer(int device) {
  finish_background_mapping();
  backend_->add_peer(device);
  try {
    for (uint64_t page = 0; page < pages_.count(); ++page) {
      if (pages_.backed(page)) backend_->grant_peers(base() + page * page_bytes(), 1);
    }
    aliases_.each([&](AliasId, const Alias& alias) {
      backend_->grant_peers(pages_.alias_address(alias.first), alias.pages);
    });
  } catch (...) {
    backend_->remove_peer(device);  // or nothing could be mapped any more
    throw;
  }
}

void Engine::add_peers_in_use() {
  for (const int peer : backend_->peers_in_use()) {
    try {
      pages_.need_primary({0, 1});  // or it would show only later that one cannot
      add_peer(peer);
    } catch (const Error& error) {
      report("%s: cuda:%d cannot access the pool's memory directly: %s", label_.c_str(), peer,
             error.what());
    }
  }
}

uint64_t Engine::trim() {
  if (!backend_->has_own_addresses()) return 0;  // its owner holds the memory
  drain();
  stop_background_mapping();  // or what is given back would be taken again
  aliases_.drop_idle();
  Returned returned;
  for (const PageRun& run : free_pages()) give_back(run, returned);
  if (returned.refused > 0) {
    report(
        "%s: trim() gave %s back and left %s that the system refuses to take (%s); memory locked "
        "with mlock() can be taken back after munlock()",
        label_.c_str(), mib(returned.pages * page_bytes()).c_str(),
        mib(returned.refused * page_bytes()).c_str(), returned.reason.c_str());
  }
  return returned.pages * page_bytes();
}

/// Page by page where the system refuses all of them together. What no attempt helps is counted.
void Engine::give_back(PageRun run, Returned& returned) {
  const uint64_t backed_before = pages_.backed_count();
  try {
    returned.pages += give_back(run);
    return;
  } catch (const Error& error) {
    if (error.status() != Status::kSystem && error.status() != Status::kOutOfMemory) throw;
    if (run.count == 1) {
      ++returned.refused;
      if (returned.reason.empty()) returned.reason = error.what();
      return;
    }
  }
  returned.pages += backed_before - pages_.backed_count();
  for (uint64_t i = 0; i < run.count; ++i) {
    if (can_be_given_back(run.first + i)) give_back({run.first + i, 1}, returned);
  }
}

/// The page is still a free one: a failure may have come after some were retired.
bool Engine::can_be_given_back(uint64_t page) const {
  return pages_.backed(page) && range_[range_.block_at(page * page_bytes())].is_free();
}

/// Gives the memory of free pages back, and their addresses up where those cannot be backed again.
uint64_t Engine::give_back(PageRun run) {
  if (backend_->rebindable()) return pages_.drop(run);
  uint64_t dropped = 0;
  for (uint64_t page = run.first; page < run.first + run.count;) {
    uint64_t end = page;
    while (end < run.first + run.count && pages_.backed(end)) ++end;
    if (end == page) {
      // Never mapped: nothing can know the address, which stays in use.
      dropped += backend_->release_physical({page++, 1});
      continue;
    }
    const uint64_t count = end - page;
    if (count > layout_.primary_pages - pages_.count()) return dropped;  // no fresh addresses left
    pages_.prepare(count);
    range_.prepare(3);
    retire({page, count});
    pages_.extend(count);
    range_.extend(count * page_bytes());
    capacity_pages_ += count;
    dropped += count;
    page = end;
  }
  return dropped;
}

}  // namespace vramkit
