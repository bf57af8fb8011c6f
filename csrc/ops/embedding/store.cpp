#include "ops/embedding/store.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "ops/embedding/budget.h"
#include "ops/embedding/page_size.h"
#include "ops/embedding/row_codec.h"

namespace vramkit::embedding {
namespace {

// What the smallest table takes, besides its index.
constexpr uint64_t kPageBytes = 256 << 10;
// A slab grows with the table, so that huge pages can back it, up to 64 MiB and a 32nd part.
constexpr uint64_t kPagesInSlab = 256;
constexpr uint64_t kSlabsInTable = 32;
// Ids whose memory accesses are under way at the same time.
constexpr int64_t kInFlight = 32;
// Below, a thread costs more than it saves.
constexpr int64_t kIdsPerTask = 2048;

}  // namespace

Store::Store(const StoreConfig& config, Allocate allocate)
    : config_(config),
      allocate_(std::move(allocate)),
      stride_(config.layout.stride_bytes()),
      index_(config.num_rows) {
  shift_ = page_shift(config_, kPageBytes, stride_ + sizeof(Meta));
  mask_ = (1U << shift_) - 1;
  if (config_.num_rows >= 0) {
    max_rows_ = std::min(max_rows_, static_cast<uint64_t>(config_.num_rows));
  }
  if (config_.budget_bytes == 0) return;
  uint64_t pages = 0;
  while (((pages + 1) << shift_) < kMissing && bytes_at(pages + 1) <= config_.budget_bytes) ++pages;
  if (pages == 0) throw_small_budget(config_, bytes_at(1));
  max_rows_ = std::min(max_rows_, pages << shift_);
}

uint64_t Store::bytes_at(uint64_t pages) const {
  const uint64_t rows = pages << shift_;
  const uint64_t each = config_.evicts() ? sizeof(Candidate) : 0;
  return pages * page_bytes() + rows * each + index_.bytes_for(rows);
}

StoreFacts Store::facts() const {
  StoreFacts facts;
  facts.rows = size_;
  facts.bytes = static_cast<int64_t>(pages_.size() * page_bytes() + index_.bytes() +
                                     candidates_.capacity() * sizeof(Candidate));
  const bool limited = config_.num_rows >= 0 || config_.budget_bytes != 0;
  facts.capacity = limited ? static_cast<int64_t>(max_rows_) : -1;
  facts.evictions = evictions_;
  return facts;
}

void Store::check_id(int64_t id) const {
  if (config_.num_rows < 0 || (id >= 0 && id < config_.num_rows)) return;
  throw std::out_of_range(format("index out of range: got id %lld, the table has rows 0 to %lld",
                                 static_cast<long long>(id),
                                 static_cast<long long>(config_.num_rows - 1)));
}

void Store::find(const int64_t* ids, int64_t count, uint32_t* slots) const {
  if (const uint32_t* const direct = index_.direct(); direct != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      check_id(ids[i]);
      slots[i] = direct[ids[i]];
    }
    return;
  }
  const auto key_of_slot = [this](uint32_t slot) { return key_of(slot); };
  uint64_t hashes[kInFlight];
  for (int64_t begin = 0; begin < count; begin += kInFlight) {
    const int64_t in_flight = std::min(kInFlight, count - begin);
    for (int64_t i = 0; i < in_flight; ++i) {
      check_id(ids[begin + i]);
      hashes[i] = HashIndex::hash(ids[begin + i]);
      index_.prefetch(hashes[i]);
    }
    for (int64_t i = 0; i < in_flight; ++i) {
      const uint32_t slot = index_.guess(hashes[i]);
      if (slot != kMissing) __builtin_prefetch(&meta(slot));
    }
    for (int64_t i = 0; i < in_flight; ++i) {
      slots[begin + i] = index_.find(ids[begin + i], hashes[i], key_of_slot);
    }
  }
}

void Store::write_initial(int64_t key, char* row, Meta& meta) const {
  const uint32_t dim = config_.layout.dim;
  std::vector<float> values(dim);
  if (config_.padding != key && config_.deviation != 0) {
    const uint64_t base = mix(config_.seed, static_cast<uint64_t>(key));
    for (uint32_t i = 0; i < dim; ++i) values[i] = normal(mix(base + i)) * config_.deviation;
  }
  meta.key = key;
  const float largest = largest_magnitude(values.data(), dim);
  meta.scale = config_.layout.is_scaled() ? fitting_scale(0, largest) : 0;
  meta.sum = config_.initial_state;
  with_row_type(config_.layout.type, [&]<class Type>(Type) {
    encode_nearest<Type>(row, meta.scale, dim, values.data());
  });
  const float state = config_.layout.rule == Rule::kAdagrad ? config_.initial_state : 0.0F;
  auto* const states = reinterpret_cast<float*>(row + config_.layout.state_at());
  std::fill(states, states + config_.layout.state_count(), state);
}

int64_t Store::insert(const int64_t* ids, int64_t count, const Parallel& parallel,
                      uint32_t* inverse, int64_t* keys, int64_t* slots, bool with_padding) {
  const Inserting batch = prepare(ids, count, parallel, inverse, keys, slots, with_padding);
  commit(batch, parallel, keys, slots);
  return batch.unique;
}

Store::Inserting Store::prepare(const int64_t* ids, int64_t count, const Parallel& parallel,
                                uint32_t* inverse, int64_t* keys, int64_t* slots,
                                bool with_padding) {
  // `inverse` holds the slots of the ids at first.
  parallel(0, count, kIdsPerTask,
           [&](int64_t begin, int64_t end) { find(ids + begin, end - begin, inverse + begin); });
  Inserting batch;
  batch.unique = distinct(ids, count, inverse, keys, slots, batch.fresh, with_padding);
  const uint64_t fresh = batch.fresh.size();
  check_fits(config_, max_rows_, size_, static_cast<uint64_t>(batch.unique) - fresh, fresh);
  return batch;
}

void Store::commit(const Inserting& batch, const Parallel& parallel, const int64_t* keys,
                   int64_t* slots) {
  const std::vector<int64_t>& fresh = batch.fresh;
  const uint64_t wanted = size_ + fresh.size();
  reserve(std::min(wanted, max_rows_));
  if (wanted > max_rows_) free_.reserve(wanted - max_rows_);
  tick();
  for (int64_t i = 0; i < batch.unique; ++i) {
    if (i + kInFlight < batch.unique && slots[i + kInFlight] >= 0) {
      __builtin_prefetch(&meta(static_cast<uint32_t>(slots[i + kInFlight])), 1);
    }
    if (slots[i] >= 0) touch(static_cast<uint32_t>(slots[i]));
  }
  if (wanted > max_rows_) evict(wanted - max_rows_);
  for (const int64_t at : fresh) slots[at] = take(keys[at]);
  free_ = std::vector<uint32_t>();
  parallel(0, static_cast<int64_t>(fresh.size()), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = fresh[static_cast<size_t>(i)];
      const auto slot = static_cast<uint32_t>(slots[at]);
      write_initial(keys[at], row(slot), meta(slot));
    }
  });
}

int64_t Store::distinct(const int64_t* ids, int64_t count, uint32_t* inverse, int64_t* keys,
                        int64_t* slots, std::vector<int64_t>& fresh, bool with_padding) {
  constexpr int64_t kAhead = 16;
  std::unordered_map<int64_t, uint32_t> positions;
  int64_t unique = 0;
  const auto add = [&](int64_t key, int64_t slot) {
    keys[unique] = key;
    slots[unique] = slot;
    return static_cast<uint32_t>(unique++);
  };
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count && inverse[i + kAhead] != kMissing) {
      __builtin_prefetch(&meta(inverse[i + kAhead]), 1);
    }
    const uint32_t slot = inverse[i];
    if (!with_padding && config_.padding == ids[i]) {
      inverse[i] = kMissing;
    } else if (slot != kMissing) {
      // A mark of an earlier batch does not lead back to the slot.
      uint32_t& mark = meta(slot).mark;
      if (mark >= unique || slots[mark] != slot) mark = add(ids[i], slot);
      inverse[i] = mark;
    } else {
      const auto [found, is_new] = positions.try_emplace(ids[i], static_cast<uint32_t>(unique));
      if (is_new) fresh.push_back(add(ids[i], -1));
      inverse[i] = found->second;
    }
  }
  return unique;
}

void Store::reserve(uint64_t rows) {
  if (rows > index_.room()) {
    const uint64_t most = config_.budget_bytes != 0 ? max_rows_ : std::min(2 * rows, max_rows_);
    index_.rebuild(most, size_, allocate_, [this](uint32_t slot) { return key_of(slot); });
  }
  if (config_.evicts()) candidates_.reserve(config_.budget_bytes != 0 ? max_rows_ : rows);
  const uint64_t pages = (rows + mask_) >> shift_;
  const uint64_t most = (max_rows_ + mask_) >> shift_;
  while (pages_.size() < pages) {
    const uint64_t wanted = std::max(pages - pages_.size(), pages_.size() / kSlabsInTable);
    add_pages(std::min({wanted, kPagesInSlab, most - pages_.size()}));
  }
}

void Store::add_pages(uint64_t count) {
  slabs_.reserve(slabs_.size() + 1);
  pages_.reserve(pages_.size() + count);
  std::unique_ptr<Memory> slab = allocate_(count * page_bytes());
  const uint64_t rows = count << shift_;
  // They come first, as a single row may be less than they are aligned to.
  auto* const metas = reinterpret_cast<Meta*>(slab->data());
  char* const values = slab->data() + rows * sizeof(Meta);
  std::memset(metas, 0, rows * sizeof(Meta));
  for (uint64_t page = 0; page < count; ++page) {
    const uint64_t first = page << shift_;
    pages_.push_back({values + first * stride_, metas + first});
  }
  slabs_.push_back(std::move(slab));
}

void Store::touch(uint32_t slot) {
  Stamps& stamps = this->stamps(slot);
  stamps.used = clock_;
  ++stamps.frequency;
}

Store::Candidate Store::candidate(uint32_t slot) const {
  const Stamps& of = stamps(slot);
  if (config_.when_full == WhenFull::kEvictLfu) return {of.frequency, of.used, slot};
  return {of.used, 0, slot};
}

void Store::push_candidate(uint32_t slot) {
  candidates_.push_back(candidate(slot));
  std::push_heap(candidates_.begin(), candidates_.end(), std::greater<>{});
}

void Store::stamps_changed() {
  for (Candidate& of : candidates_) of = candidate(of.slot);
  std::make_heap(candidates_.begin(), candidates_.end(), std::greater<>{});
}

void Store::evict(uint64_t count) {
  std::vector<uint32_t> kept;
  while (count != 0) {
    std::pop_heap(candidates_.begin(), candidates_.end(), std::greater<>{});
    const Candidate oldest = candidates_.back();
    candidates_.pop_back();
    if (oldest != candidate(oldest.slot)) {
      push_candidate(oldest.slot);
    } else if (stamps(oldest.slot).used == clock_) {
      kept.push_back(oldest.slot);
    } else {
      const int64_t key = key_of(oldest.slot);
      index_.erase(key, [this](uint32_t slot) { return key_of(slot); });
      free_.push_back(oldest.slot);
      ++evictions_;
      --count;
    }
  }
  for (const uint32_t slot : kept) push_candidate(slot);
}

uint32_t Store::take(int64_t key) {
  uint32_t slot = size_;
  if (free_.empty()) {
    ++size_;
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  meta(slot).key = key;
  stamps(slot) = {clock_, clock_, 1};
  index_.insert(key, slot);
  if (config_.evicts()) push_candidate(slot);
  return slot;
}

void Store::check_valid() const {
  const auto key_of_slot = [this](uint32_t slot) { return key_of(slot); };
  for (uint32_t slot = 0; slot < size_; ++slot) {
    const int64_t key = key_of(slot);
    const uint32_t found = index_.find(key, HashIndex::hash(key), key_of_slot);
    if (found != slot) {
      throw_error(Status::kInvalidArgument, "slot %u has key %lld, which the index has in slot %u",
                  slot, static_cast<long long>(key), found);
    }
  }
  if (!free_.empty() || size_ > max_rows_ || (config_.evicts() && candidates_.size() != size_)) {
    throw_error(Status::kInvalidArgument, "%u rows, %zu free slots, %zu candidates, at most %llu",
                size_, free_.size(), candidates_.size(),
                static_cast<unsigned long long>(max_rows_));
  }
}

}  // namespace vramkit::embedding
