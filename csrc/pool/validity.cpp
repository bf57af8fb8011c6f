// Every invariant of the engine, checked in debug pools after each change.
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "pool/engine.h"

namespace vramkit {
namespace {

void require(bool holds, const char* what, uint64_t where) {
  if (holds) return;
  throw_error(Status::kSystem, "broken invariant: %s (at %llu)", what,
              static_cast<unsigned long long>(where));
}

}  // namespace

void Engine::check_valid() const {
  check_blocks();
  spans_.check_valid();
  check_aliases();
  check_totals();
}

void Engine::check_blocks() const {
  uint64_t at = 0;
  BlockId before = 0;
  for (BlockId id = range_.first(); id != 0; before = id, id = range_[id].next) {
    const Block& block = range_[id];
    require(block.offset == at, "blocks follow each other without a gap", block.offset);
    require(block.size > 0 && block.size % kAlignment == 0, "sizes are multiples of 512",
            block.offset);
    require(block.prev == before, "the list of blocks is doubly linked", block.offset);
    require(range_.block_at(block.offset) == id, "a block is found by its start", block.offset);
    require(range_.block_at(block.end() - 1) == id, "a block is found by its end", block.offset);
    at = block.end();
    if (block.is_free()) {
      require(range_.in_its_bin(id), "a free block is in its bin", block.offset);
      require(before == 0 || !range_.can_merge(range_[before], block),
              "free neighbours have merged", block.offset);
      continue;
    }
    require(block.state == BlockState::kChunk || range_.entry_at(block.offset) == id,
            "a block that is not free is in the address table", block.offset);
    if (block.state == BlockState::kRetired || block.state == BlockState::kAliased) continue;
    for (uint64_t page = block.offset / page_bytes(); page * page_bytes() < block.end(); ++page) {
      require(pages_.backed(page) && pages_.at_primary(page), "a live block's pages are there",
              page);
    }
  }
  require(at == range_.end(), "blocks cover the range", at);
  require(range_.extents_listed(), "free extents are listed", at);
}

void Engine::check_aliases() const {
  std::set<BlockId> aliased;
  aliases_.each([&](AliasId, const Alias& alias) {
    uint64_t at = alias.first;
    uint64_t left = alias.live_pages;
    size_t piece = 0;
    each_prefix_run(alias.runs, left, [&](PageRun run) {
      const Block& block = range_[alias.primary_blocks[piece]];
      require(block.state == BlockState::kAliased, "a stitched block's pages are aliased",
              run.first);
      require(block.offset == run.first * page_bytes() && block.size == run.count * page_bytes(),
              "aliased pages are those of the alias", run.first);
      require(aliased.insert(alias.primary_blocks[piece]).second,
              "no two stitched blocks share a page", run.first);
      for (uint64_t i = 0; i < run.count; ++i) {
        require(pages_.backed(run.first + i) && pages_.at_alias(run.first + i, at + i),
                "a stitched block's pages are there", run.first + i);
      }
      at += run.count;
      ++piece;
      return true;
    });
    require(piece == alias.primary_blocks.size(), "a stitched block has no other pages",
            alias.first);
  });
  for (BlockId id = range_.first(); id != 0; id = range_[id].next) {
    require(range_[id].state != BlockState::kAliased || aliased.contains(id),
            "aliased pages belong to a stitched block", range_[id].offset);
  }
}

void Engine::check_totals() const {
  uint64_t allocated = 0;
  uint64_t requested = 0;
  uint64_t blocks = 0;
  for (const BlockInfo& info : snapshot()) {
    if (info.state != BlockState::kLive) continue;
    allocated += info.size;
    requested += info.requested;
    ++blocks;
  }
  require(allocated == counters_.allocated_bytes, "allocated bytes add up", allocated);
  require(requested == counters_.live_bytes, "live bytes add up", requested);
  require(blocks == counters_.live_blocks, "live blocks are counted", blocks);
  uint64_t pages = 0;
  for (BlockId id = range_.first(); id != 0; id = range_[id].next) {
    if (range_[id].state != BlockState::kRetired) pages += range_[id].size;
  }
  require(pages == capacity_bytes(), "the range holds the capacity", pages);
  require(pages_.backed_count() <= capacity_.pages(), "no more memory than the capacity",
          pages_.backed_count());
}

}  // namespace vramkit
