// The rows of one table: which keys have one, where it is, and what happens when the budget is
// full.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/embedding/hash_index.h"
#include "ops/embedding/memory.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

/// What is kept of a row besides its values and the optimizer's state: apart, so that these are
/// aligned.
struct alignas(32) Meta {
  int64_t key;
  float scale;  // of int8 values
  float sum;    // row-wise Adagrad's state
  Stamps stamps;
  uint32_t mark;  // position among the distinct ids of the latest batch
};
static_assert(sizeof(Meta) == 32);

/// Rows lie in pages of slabs, so that growing copies none; slots 0 to size() - 1 are in use. Not
/// thread-safe; const functions may run at the same time as each other.
class Store {
 public:
  /// Throws Error(kInvalidArgument) where the budget is too small for a row.
  Store(const StoreConfig& config, Allocate allocate);

  const StoreConfig& config() const { return config_; }
  const RowLayout& layout() const { return config_.layout; }
  uint32_t size() const { return size_; }
  /// Changes whenever a slot gets another key.
  int64_t epoch() const { return evictions_; }
  uint32_t clock() const { return clock_; }
  void set_clock(uint32_t clock) { clock_ = clock; }
  StoreFacts facts() const;

  char* row(uint32_t slot) { return page(slot).rows + (slot & mask_) * stride_; }
  const char* row(uint32_t slot) const { return page(slot).rows + (slot & mask_) * stride_; }
  Meta& meta(uint32_t slot) { return page(slot).metas[slot & mask_]; }
  const Meta& meta(uint32_t slot) const { return page(slot).metas[slot & mask_]; }
  int64_t key_of(uint32_t slot) const { return meta(slot).key; }
  Stamps& stamps(uint32_t slot) { return meta(slot).stamps; }
  const Stamps& stamps(uint32_t slot) const { return meta(slot).stamps; }

  /// Fetches a row that is going to be changed; kMissing is allowed. Inlined always: GCC drops
  /// calls of functions that do nothing but fetch.
  [[gnu::always_inline]] void prefetch(uint32_t slot) const {
    if (slot == kMissing) return;
    __builtin_prefetch(&meta(slot), 1);
    for (uint32_t at = 0; at < stride_; at += 64) __builtin_prefetch(row(slot) + at, 1);
  }

  /// Writes the slot of each id, or kMissing. Throws std::out_of_range for ids that a fixed table
  /// has not.
  void find(const int64_t* ids, int64_t count, uint32_t* slots) const;

  /// Writes the row that an id has as long as nothing has changed it, and key, scale and sum.
  void write_initial(int64_t key, char* row, Meta& meta) const;

  /// A batch that is about to be inserted.
  struct Inserting {
    int64_t unique = 0;
    std::vector<int64_t> fresh{};  // those of the distinct ids that have no row
  };

  /// The first part of `insert`, which may throw Error(kOutOfMemory) and changes no row. Nothing
  /// else may change the store before `commit`, which gets the same arrays.
  Inserting prepare(const int64_t* ids, int64_t count, const Parallel& parallel, uint32_t* inverse,
                    int64_t* keys, int64_t* slots, bool with_padding = false);
  void commit(const Inserting& batch, const Parallel& parallel, const int64_t* keys,
              int64_t* slots);

  /// The distinct ids of a batch (padding ids too, if `with_padding`): ids[i] is keys[inverse[i]],
  /// in slots[inverse[i]]; padding ids have inverse kMissing. Returns their number. Ids without a
  /// row get one. Each array has `count` elements. `with_padding` treats padding ids as all others.
  /// Throws std::bad_alloc or Error(kOutOfMemory), and then has changed no row.
  int64_t insert(const int64_t* ids, int64_t count, const Parallel& parallel, uint32_t* inverse,
                 int64_t* keys, int64_t* slots, bool with_padding = false);

  /// To be called where stamps() has been given other values than those of the clock.
  void stamps_changed();

  /// Begins a change of rows, whose stamps get the clock's new value.
  uint32_t tick() { return ++clock_; }

  /// Throws Error(kInvalidArgument) where index, rows and counters contradict each other.
  void check_valid() const;

 private:
  struct Page {
    char* rows;
    Meta* metas;
  };
  struct Candidate {
    uint32_t first;
    uint32_t second;
    uint32_t slot;
    auto operator<=>(const Candidate&) const = default;
  };

  const Page& page(uint32_t slot) const { return pages_[slot >> shift_]; }

  void check_id(int64_t id) const;
  uint64_t page_bytes() const { return (uint64_t{mask_} + 1) * (stride_ + sizeof(Meta)); }
  uint64_t bytes_at(uint64_t pages) const;
  int64_t distinct(const int64_t* ids, int64_t count, uint32_t* inverse, int64_t* keys,
                   int64_t* slots, std::vector<int64_t>& fresh, bool with_padding);
  void reserve(uint64_t rows);
  void add_pages(uint64_t count);
  void touch(uint32_t slot);
  Candidate candidate(uint32_t slot) const;
  void push_candidate(uint32_t slot);
  void evict(uint64_t count);
  uint32_t take(int64_t key);

  StoreConfig config_;
  Allocate allocate_;
  uint32_t stride_;
  uint32_t shift_ = 0;
  uint32_t mask_ = 0;
  uint64_t max_rows_ = kMissing;
  std::vector<std::unique_ptr<Memory>> slabs_;
  std::vector<Page> pages_;
  HashIndex index_;
  uint32_t size_ = 0;
  uint32_t clock_ = 0;
  int64_t evictions_ = 0;
  std::vector<uint32_t> free_;  // only while a batch is inserted
  // A heap with one entry for each row; it may be older than the row's stamps, never newer.
  std::vector<Candidate> candidates_;
};

}  // namespace vramkit::embedding
