#include "ops/embedding/store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "ops/embedding/batches.h"
#include "ops/embedding/row_codec.h"
#include "support.h"
#include "tables.h"

namespace vramkit::embedding {
namespace {

struct Batch {
  std::vector<uint32_t> inverse;
  std::vector<int64_t> keys;
  std::vector<int64_t> slots;
};

Batch insert(Store& store, const std::vector<int64_t>& ids) {
  Batch batch{std::vector<uint32_t>(ids.size()), std::vector<int64_t>(ids.size()),
              std::vector<int64_t>(ids.size())};
  const int64_t unique = store.insert(ids.data(), static_cast<int64_t>(ids.size()), in_two_threads,
                                      batch.inverse.data(), batch.keys.data(), batch.slots.data());
  batch.keys.resize(static_cast<size_t>(unique));
  batch.slots.resize(static_cast<size_t>(unique));
  store.check_valid();
  return batch;
}

bool has(const Store& store, int64_t key) {
  uint32_t slot;
  store.find(&key, 1, &slot);
  return slot != kMissing;
}

/// A dictionary that evicts as the store must.
class Model {
 public:
  Model(WhenFull when_full, size_t capacity) : when_full_(when_full), capacity_(capacity) {}

  void insert(const std::vector<int64_t>& ids) {
    ++clock_;
    const std::set<int64_t> batch(ids.begin(), ids.end());
    size_t fresh = 0;
    for (const int64_t id : batch) {
      const auto found = rows_.find(id);
      if (found == rows_.end()) {
        ++fresh;
      } else {
        found->second = {clock_, found->second.frequency + 1};
      }
    }
    while (rows_.size() + fresh > capacity_) rows_.erase(victim());
    for (const int64_t id : batch) rows_.try_emplace(id, Use{clock_, 1});
  }
  std::set<int64_t> keys() const {
    std::set<int64_t> keys;
    for (const auto& [key, use] : rows_) keys.insert(key);
    return keys;
  }

 private:
  struct Use {
    uint64_t used;
    uint64_t frequency;
  };
  std::pair<uint64_t, uint64_t> rank(const Use& use) const {
    if (when_full_ == WhenFull::kEvictLfu) return {use.frequency, use.used};
    return {use.used, 0};
  }
  int64_t victim() const {
    int64_t best = 0;
    std::pair<uint64_t, uint64_t> lowest{UINT64_MAX, 0};
    for (const auto& [key, use] : rows_) {
      if (use.used == clock_ || rank(use) >= lowest) continue;
      lowest = rank(use);
      best = key;
    }
    return best;
  }

  WhenFull when_full_;
  size_t capacity_;
  uint64_t clock_ = 0;
  std::map<int64_t, Use> rows_;
};

TEST(Store, GrowsAndKeepsEveryRow) {
  const uint64_t seed = stress_seed();
  std::mt19937_64 random(seed);
  Store store(config_for(RowType::kBFloat16, Rule::kRowwiseAdagrad, 5), from_heap);
  std::map<int64_t, float> written;
  for (int round = 0; round < 40; ++round) {
    std::vector<int64_t> ids(1 + random() % 6000);
    for (int64_t& id : ids) id = static_cast<int64_t>(random() % 50'000) - 25'000;
    const Batch batch = insert(store, ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(batch.keys[batch.inverse[i]], ids[i]) << replay_with(seed);
    }
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      Meta& meta = store.meta(static_cast<uint32_t>(batch.slots[i]));
      ASSERT_EQ(meta.key, batch.keys[i]) << replay_with(seed);
      const auto [found, is_new] = written.try_emplace(meta.key, static_cast<float>(round));
      if (is_new) meta.sum = static_cast<float>(round);
      ASSERT_EQ(meta.sum, found->second) << replay_with(seed);
    }
  }
  EXPECT_EQ(store.size(), written.size());
  EXPECT_EQ(store.facts().capacity, -1);
}

TEST(Store, AlignsWhatItKeepsOfARow) {
  for (const int64_t rows : {1, 2, 3}) {
    for (const uint32_t dim : {1, 4, 12, 70'000}) {
      StoreConfig config = config_for(RowType::kFloat32, Rule::kSgd, dim);
      config.num_rows = rows;
      Store store(config, from_heap);
      std::vector<int64_t> ids(static_cast<size_t>(rows));
      std::iota(ids.begin(), ids.end(), 0);
      insert(store, ids);
      for (uint32_t slot = 0; slot < store.size(); ++slot) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(&store.meta(slot)) % alignof(Meta), 0);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(store.row(slot)) % 16, 0);
      }
    }
  }
}

TEST(Store, EvictsAsADictionaryModel) {
  const uint64_t seed = stress_seed();
  std::mt19937_64 random(seed);
  for (const WhenFull when_full : {WhenFull::kEvictLru, WhenFull::kEvictLfu}) {
    StoreConfig config = config_for(RowType::kFloat32, Rule::kSgd, 8);
    config.budget_bytes = 16 * kKiB;
    config.when_full = when_full;
    Store store(config, from_heap);
    const auto capacity = static_cast<size_t>(store.facts().capacity);
    ASSERT_GT(capacity, 100U);
    Model model(when_full, capacity);
    for (int round = 0; round < 2000; ++round) {
      // One id at a time has a unique order.
      const std::vector<int64_t> ids{static_cast<int64_t>(random() % (2 * capacity))};
      insert(store, ids);
      model.insert(ids);
    }
    std::set<int64_t> found;
    for (uint32_t slot = 0; slot < store.size(); ++slot) found.insert(store.key_of(slot));
    EXPECT_EQ(found, model.keys()) << replay_with(seed);
    EXPECT_LE(static_cast<uint64_t>(store.facts().bytes), config.budget_bytes);
    EXPECT_GT(store.facts().evictions, 0);
  }
}

TEST(Store, ABatchIsNeverEvictedByItself) {
  StoreConfig config = config_for(RowType::kFloat32, Rule::kSgd, 8);
  config.budget_bytes = 16 * kKiB;
  config.when_full = WhenFull::kEvictLfu;
  Store store(config, from_heap);
  std::vector<int64_t> ids(static_cast<size_t>(store.facts().capacity));
  for (int64_t round = 0; round < 3; ++round) {
    std::iota(ids.begin(), ids.end(), 1000 * round);
    insert(store, ids);
    for (const int64_t id : ids) ASSERT_TRUE(has(store, id));
  }
  ids.push_back(-1);
  expect_error(Status::kOutOfMemory, "the table is full", [&] { insert(store, ids); });
  EXPECT_FALSE(has(store, -1));
}

TEST(Store, RefusesWhatDoesNotFit) {
  StoreConfig config = config_for(RowType::kFloat32, Rule::kAdam, 64);
  config.budget_bytes = 500;
  expect_error(Status::kInvalidArgument, "raise it", [&] { Store store(config, from_heap); });
  config.budget_bytes = 0;
  config.num_rows = 3;
  Store store(config, from_heap);
  EXPECT_THROW(insert(store, {0, 3}), std::out_of_range);
  EXPECT_THROW(insert(store, {-1}), std::out_of_range);
  EXPECT_EQ(store.size(), 0U);
}

TEST(Store, MemoryThatFailsChangesNothing) {
  int left = 2;
  Store store(config_for(RowType::kFloat32, Rule::kSgd, 4), [&](uint64_t bytes) {
    if (left-- == 0) throw std::bad_alloc();
    return from_heap(bytes);
  });
  insert(store, {1, 2, 3});
  std::vector<int64_t> many(100'000);
  std::iota(many.begin(), many.end(), 10);
  EXPECT_THROW(insert(store, many), std::bad_alloc);
  EXPECT_EQ(store.size(), 3U);
  store.check_valid();
  left = 1000;
  insert(store, many);
  EXPECT_EQ(store.size(), 100'003U);
}

TEST(Store, InitialRowsDependOnKeyAndSeedOnly) {
  StoreConfig config = config_for(RowType::kFloat32, Rule::kSgd, 64);
  config.padding = 9;
  Store store(config, from_heap);
  alignas(16) char row[512];
  Meta meta;
  double sum = 0;
  double squares = 0;
  for (int64_t key = 100; key < 1100; ++key) {
    store.write_initial(key, row, meta);
    for (int i = 0; i < 64; ++i) {
      const double value = values_of<Float32>(row)[i];
      sum += value;
      squares += value * value;
    }
  }
  EXPECT_NEAR(sum / 64'000, 0, 0.02);
  EXPECT_NEAR(squares / 64'000, 1, 0.03);
  store.write_initial(9, row, meta);
  EXPECT_EQ(values_of<Float32>(row)[0], 0);
}

TEST(Gradients, TwoBatchesAreOneUpdate) {
  Store store(config_for(RowType::kFloat32, Rule::kSgd, 2), from_heap);
  const std::vector<int64_t> first{5, 6, 5};
  const std::vector<int64_t> second{6};
  const Batch one = insert(store, first);
  const Batch two = insert(store, second);
  const std::vector<float> grads{1, 2, 3, 4, 5, 6};
  const auto made = [&](const std::vector<int64_t>& ids, const Batch& batch) {
    const auto count = static_cast<int64_t>(ids.size());
    return GradientBatch{{ids.data(), count, nullptr, count, 1, Mode::kNone, false, nullptr},
                         RowType::kFloat32,
                         grads.data(),
                         batch.inverse.data(),
                         batch.keys.data(),
                         batch.slots.data(),
                         static_cast<int64_t>(batch.keys.size()),
                         0,
                         nullptr,
                         false};
  };
  const Gradients gradients(store, {made(first, one), made(second, two)});
  EXPECT_NEAR(gradients.norm(in_two_threads), std::sqrt(36.0 + 64 + 16 + 36), 1e-9);
  const auto value = [&](int64_t key) {
    uint32_t slot;
    store.find(&key, 1, &slot);
    return values_of<Float32>(store.row(slot))[0];
  };
  const float five = value(5);
  const float six = value(6);
  gradients.apply(store, {0.5F, 0, 0, 0}, 1, 1, in_two_threads);
  EXPECT_FLOAT_EQ(value(5), five - 0.5F * 6);
  EXPECT_FLOAT_EQ(value(6), six - 0.5F * 4);
}

}  // namespace
}  // namespace vramkit::embedding
