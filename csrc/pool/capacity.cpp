#include "pool/capacity.h"

#include <algorithm>

#include "backend/mapping.h"
#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

void check_capacity(const std::string& label, uint64_t capacity_bytes, uint64_t page_bytes,
                    const Backend& backend) {
  if (capacity_bytes < page_bytes) {
    throw_error(Status::kInvalidArgument, "%s: a capacity of %s is less than one page of %s",
                label.c_str(), mib_apart(capacity_bytes, page_bytes).c_str(),
                mib_apart(page_bytes, capacity_bytes).c_str());
  }
  if (capacity_bytes > backend.memory_limit()) {
    throw_error(Status::kInvalidArgument,
                "%s: a capacity of %s is more than the %s that the machine has; ask for less",
                label.c_str(), mib_apart(capacity_bytes, backend.memory_limit()).c_str(),
                mib_apart(backend.memory_limit(), capacity_bytes).c_str());
  }
}

/// Retired pages that may be used again.
uint64_t Capacity::revivable_pages() const {
  return backend_.rebindable() ? pages_.count() - capacity_pages_ : 0;
}

uint64_t Capacity::spare_pages() const {
  return layout_.primary_pages - pages_.count() + revivable_pages();
}

void Capacity::refuse_growth(uint64_t pages) const {
  const uint64_t bytes = spare_pages() * layout_.page_bytes;
  const char* const why = address_allowance() != ~uint64_t{0} && backend_.takes_address_space()
                              ? " within the limit of this process (`ulimit -v`)"
                              : "";
  throw_error(
      Status::kInvalidArgument,
      "%s: cannot grow by %s to %s: the pool reserved its addresses when it was made%s and has "
      "addresses for %s more, up to a capacity of %s; make a new pool of the size that you need",
      label_.c_str(), mib(pages * layout_.page_bytes).c_str(),
      mib((capacity_pages_ + pages) * layout_.page_bytes).c_str(), why, mib(bytes).c_str(),
      mib((capacity_pages_ + spare_pages()) * layout_.page_bytes).c_str());
}

void Capacity::grow(uint64_t pages) {
  const uint64_t retired = revivable_pages();
  if (pages > spare_pages()) refuse_growth(pages);
  const uint64_t fresh = pages > retired ? pages - retired : 0;
  pages_.prepare(fresh);
  range_.prepare(2);  // what is revived ends in one piece more, and the range in another
  backend_.create_physical({pages_.count(), fresh});
  const uint64_t revived = revive(std::min(pages, retired));
  if (pages > revived) {
    pages_.extend(pages - revived);
    range_.extend((pages - revived) * layout_.page_bytes);
  }
  capacity_pages_ += pages;
  if (!backend_.has_own_addresses()) pages_.need_primary({0, pages_.count()});  // it is all there
}

/// Takes retired pages into use again, at most `pages`; returns how many.
uint64_t Capacity::revive(uint64_t pages) {
  uint64_t revived = 0;
  for (BlockId id = range_.first(); id != 0 && revived < pages;) {
    const BlockId next = range_[id].next;
    if (range_[id].state == BlockState::kRetired) {
      const uint64_t offset = range_[id].offset;
      const uint64_t size = range_[id].size;
      const uint64_t part = std::min(size / layout_.page_bytes, pages - revived);
      range_.release(id, Tag{});
      if (part * layout_.page_bytes < size) {
        range_.take(offset + part * layout_.page_bytes, size - part * layout_.page_bytes,
                    BlockState::kRetired);
      }
      revived += part;
    }
    id = next;
  }
  return revived;
}

void Capacity::shrink(uint64_t pages) {
  aliases_.drop_idle();
  std::vector<PageRun> runs = memory_.whole_pages();
  uint64_t found = 0;
  for (const PageRun& run : runs) found += run.count;
  if (found < pages) {
    throw_error(
        Status::kBusy,
        "%s: cannot shrink by %s: only %s of whole pages are free, the rest holds live blocks; "
        "free tensors first or shrink less",
        label_.c_str(), mib_apart(pages * layout_.page_bytes, found * layout_.page_bytes).c_str(),
        mib_apart(found * layout_.page_bytes, pages * layout_.page_bytes).c_str());
  }
  // From the end, where memory was used least.
  for (auto run = runs.rbegin(); pages > 0; ++run) {
    const uint64_t count = std::min(run->count, pages);
    retire({run->first + run->count - count, count});
    pages -= count;
  }
}

/// Piece by piece, so that after a failure no address is in use that has lost its memory.
void Capacity::retire(PageRun run) {
  const uint64_t end = run.first + run.count;
  for (uint64_t page = run.first; page < end;) {
    const uint64_t first = page++;
    while (page < end && pages_.backed(page) == pages_.backed(first)) ++page;
    const uint64_t count = page - first;
    range_.prepare(1);  // or an address would stay in use that has lost its memory
    pages_.drop({first, count});
    range_.take(first * layout_.page_bytes, count * layout_.page_bytes, BlockState::kRetired);
    capacity_pages_ -= count;
  }
}

uint64_t Capacity::trim() {
  aliases_.drop_idle();
  Returned returned;
  for (const PageRun& run : memory_.whole_pages()) give_back(run, returned);
  if (returned.refused > 0) {
    report(
        "%s: trim() gave %s back and left %s that the system refuses to take (%s); memory locked "
        "with mlock() can be taken back after munlock()",
        label_.c_str(), mib(returned.pages * layout_.page_bytes).c_str(),
        mib(returned.refused * layout_.page_bytes).c_str(), returned.reason.c_str());
  }
  return returned.pages;
}

/// Page by page where the system refuses all of them together. What no attempt helps is counted.
void Capacity::give_back(PageRun run, Returned& returned) {
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
bool Capacity::can_be_given_back(uint64_t page) const {
  return pages_.backed(page) && range_[range_.block_at(page * layout_.page_bytes)].is_free();
}

/// Gives the memory of free pages back, and their addresses up where those cannot be backed again.
uint64_t Capacity::give_back(PageRun run) {
  if (backend_.rebindable()) return pages_.drop(run);
  uint64_t dropped = 0;
  for (uint64_t page = run.first; page < run.first + run.count;) {
    uint64_t end = page;
    while (end < run.first + run.count && pages_.backed(end)) ++end;
    if (end == page) {
      // Never mapped: nothing can know the address, which stays in use.
      dropped += backend_.release_physical({page++, 1});
      continue;
    }
    const uint64_t count = end - page;
    if (count > layout_.primary_pages - pages_.count()) return dropped;  // no fresh addresses left
    pages_.prepare(count);
    range_.prepare(3);
    retire({page, count});
    pages_.extend(count);
    range_.extend(count * layout_.page_bytes);
    capacity_pages_ += count;
    dropped += count;
    page = end;
  }
  return dropped;
}

}  // namespace vramkit
