#include "pool/pages.h"

#include <algorithm>

#include "base/error.h"

namespace vramkit {
namespace {

/// Calls act(run) for each maximal extent of pages in `run` for which wanted(page) and, between
/// neighbours, joined(page, page + 1).
template <typename Wanted, typename Joined, typename Act>
void each_run(PageRun run, Wanted wanted, Joined joined, Act act) {
  const uint64_t end = run.first + run.count;
  for (uint64_t page = run.first; page < end;) {
    if (!wanted(page)) {
      ++page;
      continue;
    }
    const uint64_t first = page++;
    while (page < end && wanted(page) && joined(page - 1, page)) ++page;
    act(PageRun{first, page - first});
  }
}

bool always(uint64_t, uint64_t) { return true; }

}  // namespace

Pages::~Pages() {
  finish_background_mapping();
  try {
    move_to_primary({0, count()});
    // Else all addresses go together, and with them pages that are locked and could not be dropped.
    if (!backend_.rebindable()) drop({0, count()});
  } catch (const std::exception& error) {
    report("closing a pool: %s", error.what());
  }
}

void Pages::prepare(uint64_t count) {
  backed_.reserve(backed_.size() + count);
  if (moves_) place_.reserve(backed_.size() + count);
}

void Pages::extend(uint64_t count) {
  prepare(count);
  backed_.resize(backed_.size() + count);
  if (moves_) place_.resize(backed_.size());
}

bool Pages::backed(PageRun run) const {
  const auto first = backed_.begin() + static_cast<ptrdiff_t>(run.first);
  return std::all_of(first, first + static_cast<ptrdiff_t>(run.count),
                     [](bool has) { return has; });
}

std::vector<PageRun> Pages::backed_parts(const std::vector<PageRun>& runs) const {
  std::vector<PageRun> parts;
  for (const PageRun& run : runs) {
    each_run(
        run, [this](uint64_t page) { return backed_[page]; }, always,
        [&](PageRun part) { parts.push_back(part); });
  }
  return parts;
}

void Pages::need_primary_slowly(PageRun run) {
  map_primary(run);
  if (away_count_ > 0) move_to_primary(run);
}

void Pages::map_primary(PageRun run) {
  if (background_ && background_->touches(run)) finish_background_mapping();
  each_run(
      run, [this](uint64_t page) { return !backed_[page]; }, always,
      [this](PageRun bare) {
        backend_.map_primary(bare);
        note_backed(bare);
      });
}

void Pages::note_backed(PageRun run) {
  ++mapping_calls_;
  std::fill_n(backed_.begin() + static_cast<ptrdiff_t>(run.first), run.count, true);
  backed_count_ += run.count;
  peak_backed_count_ = std::max(peak_backed_count_, backed_count_);
}

std::shared_ptr<BackgroundMapping> Pages::begin_background_mapping(PageRun run) {
  background_ = std::make_shared<BackgroundMapping>(backend_, run);
  return background_;
}

void Pages::finish_background_mapping() {
  if (!background_) return;
  background_->wait();
  if (!background_->failure()) note_backed(background_->run());
  background_.reset();
}

void Pages::move_to_primary(PageRun run) {
  if (!moves_) return;
  const auto neighbours = [this](uint64_t a, uint64_t b) { return place_[a] + 1 == place_[b]; };
  each_run(
      run, [this](uint64_t page) { return place_[page] != 0; }, neighbours,
      [this](PageRun away) {
        backend_.unmap_alias(alias_address(place_[away.first] - 1), away);
        ++mapping_calls_;
        std::fill_n(place_.begin() + static_cast<ptrdiff_t>(away.first), away.count, uint64_t{0});
        away_count_ -= away.count;
      });
}

void Pages::need_alias(uint64_t alias, PageRun run) {
  map_primary(run);
  if (!moves_) return;
  const auto elsewhere = [&](uint64_t page) { return !at_alias(page, alias + page - run.first); };
  each_run(run, elsewhere, always, [&](PageRun part) {
    move_to_primary(part);
    map_alias(alias + part.first - run.first, part);
  });
}

void Pages::map_alias(uint64_t alias, PageRun run) {
  backend_.map_alias(alias_address(alias), run);
  ++mapping_calls_;
  if (!moves_) return;
  for (uint64_t i = 0; i < run.count; ++i) place_[run.first + i] = alias + i + 1;
  away_count_ += run.count;
}

void Pages::unmap_alias(uint64_t alias, PageRun run) {
  if (moves_) {
    const auto here = [&](uint64_t page) { return at_alias(page, alias + page - run.first); };
    each_run(run, here, always, [this](PageRun part) { move_to_primary(part); });
    return;
  }
  backend_.unmap_alias(alias_address(alias), run);
  ++mapping_calls_;
}

uint64_t Pages::drop(PageRun run) {
  if (background_ && background_->touches(run)) finish_background_mapping();
  move_to_primary(run);
  uint64_t dropped = 0;
  each_run(
      run, [this](uint64_t page) { return backed_[page]; }, always,
      [&](PageRun part) {
        backend_.unmap_and_release(part);
        ++mapping_calls_;
        std::fill_n(backed_.begin() + static_cast<ptrdiff_t>(part.first), part.count, false);
        backed_count_ -= part.count;
        dropped += part.count;
      });
  // Here none is backed any more: what is left was committed only.
  return dropped + backend_.release_physical(run);
}

}  // namespace vramkit
