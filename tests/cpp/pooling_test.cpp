#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ops/embedding/batches.h"
#include "ops/embedding/row_codec.h"
#include "support.h"
#include "tables.h"

namespace vramkit::embedding {
namespace {

/// The values of a row, stored or not, and what they are multiplied by.
struct Row {
  std::vector<float> values;
  float scale;
};

Row row_of(const Store& store, int64_t id) {
  const RowLayout layout = store.layout();
  uint32_t slot;
  store.find(&id, 1, &slot);
  std::vector<float> memory(layout.stride_bytes() / sizeof(float));
  auto* const initial = reinterpret_cast<char*>(memory.data());
  Meta meta{};
  if (slot == kMissing) store.write_initial(id, initial, meta);
  const char* const row = slot == kMissing ? initial : store.row(slot);
  Row result{std::vector<float>(layout.dim), 1};
  if (layout.is_scaled()) result.scale = slot == kMissing ? meta.scale : store.meta(slot).scale;
  with_row_type(layout.type, [&]<class Type>(Type) {
    for (uint32_t i = 0; i < layout.dim; ++i) {
      result.values[i] = Type::load(values_of<Type>(row)[i]);
    }
  });
  return result;
}

/// A bag of any mode but kNone, one element after the other.
std::vector<float> pooled(const Store& store, const Bags& bags, int64_t bag) {
  const uint32_t dim = store.layout().dim;
  std::vector<float> result(dim, 0.0F);
  int64_t members = 0;
  for (int64_t at = bags.begin_of(bag); at < bags.end_of(bag); ++at) {
    if (store.config().padding == bags.ids[at]) continue;
    const Row row = row_of(store, bags.ids[at]);
    const float factor = (bags.weights == nullptr ? 1.0F : bags.weights[at]) * row.scale;
    for (uint32_t i = 0; i < dim; ++i) {
      const float value = factor * row.values[i];
      if (bags.mode == Mode::kMax) {
        result[i] = members == 0 ? value : std::max(result[i], value);
      } else {
        result[i] += value;
      }
    }
    ++members;
  }
  if (bags.mode == Mode::kMean && members > 1) {
    for (float& value : result) value /= static_cast<float>(members);
  }
  return result;
}

/// Ids of which some have no row, and bags of up to some hundred of them.
struct Drawn {
  std::vector<int64_t> ids;
  std::vector<int64_t> bounds{0};
  std::vector<float> weights;
};

Drawn draw(std::mt19937_64& random, int64_t known, Mode mode) {
  Drawn drawn;
  const size_t bags = random() % 12;
  const uint64_t longest = 1 + random() % 150;
  const bool has_strangers = random() % 2 == 0;
  for (size_t bag = 0; bag < bags; ++bag) {
    for (uint64_t left = random() % longest; left != 0; --left) {
      const bool is_stranger = has_strangers && random() % 40 == 0;
      drawn.ids.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(known)) +
                          (is_stranger ? known : 0));
    }
    drawn.bounds.push_back(static_cast<int64_t>(drawn.ids.size()));
  }
  if (mode == Mode::kSum && random() % 2 == 0) {
    for (size_t i = 0; i < drawn.ids.size(); ++i) {
      drawn.weights.push_back(static_cast<float>(random() % 1000) / 500 - 1);
    }
  }
  return drawn;
}

Store random_store(std::mt19937_64& random, int64_t known) {
  const auto type = static_cast<RowType>(random() % 4);
  StoreConfig config =
      config_for(type, static_cast<Rule>(random() % 4), 1 + static_cast<uint32_t>(random() % 150));
  config.seed = random();
  if (random() % 2 == 0) config.padding = static_cast<int64_t>(random() % 8);
  if (random() % 2 == 0) config.num_rows = 2 * known;
  return {config, from_heap};
}

void insert_all(Store& store, int64_t known) {
  std::vector<int64_t> ids(static_cast<size_t>(known));
  for (int64_t id = 0; id < known; ++id) ids[static_cast<size_t>(id)] = known - 1 - id;
  std::vector<uint32_t> inverse(ids.size());
  std::vector<int64_t> keys(ids.size());
  std::vector<int64_t> slots(ids.size());
  store.insert(ids.data(), known, in_two_threads, inverse.data(), keys.data(), slots.data());
}

int64_t rows_among(const Store& store, const std::vector<int64_t>& ids) {
  std::vector<uint32_t> slots(ids.size());
  store.find(ids.data(), static_cast<int64_t>(ids.size()), slots.data());
  return std::count_if(slots.begin(), slots.end(), [](uint32_t slot) { return slot != kMissing; });
}

TEST(PoolBags, RandomBagsHaveTheBitsOfAPlainLoop) {
  const uint64_t seed = stress_seed();
  std::mt19937_64 random(seed);
  for (int round = 0; round < 150; ++round) {
    const std::string where = replay_with(seed) + ", round " + std::to_string(round);
    const auto known = static_cast<int64_t>(8 + random() % 500);
    Store store = random_store(random, known);
    insert_all(store, known);
    const Mode mode = std::array{Mode::kSum, Mode::kMean, Mode::kMax}[random() % 3];
    const Drawn drawn = draw(random, known, mode);
    const auto positions = static_cast<int64_t>(drawn.ids.size());
    const auto count = static_cast<int64_t>(drawn.bounds.size()) - 1;
    const Bags bags{drawn.ids.data(),
                    positions,
                    drawn.bounds.data(),
                    count,
                    0,
                    mode,
                    false,
                    drawn.weights.empty() ? nullptr : drawn.weights.data()};
    std::vector<uint32_t> slots(drawn.ids.size());
    store.find(drawn.ids.data(), positions, slots.data());
    const bool finds = random() % 2 == 0;
    const uint32_t dim = store.layout().dim;
    std::vector<float> output(static_cast<size_t>(count) * dim, -1.0F);
    std::vector<int64_t> argmax(output.size());
    const int64_t hits =
        pool_bags(store, bags, finds ? nullptr : slots.data(), {0, 2}, RowType::kFloat32,
                  output.data(), mode == Mode::kMax ? argmax.data() : nullptr, in_two_threads);
    ASSERT_EQ(hits, finds ? rows_among(store, drawn.ids) : 0) << where;
    for (int64_t bag = 0; bag < count; ++bag) {
      const std::vector<float> expected = pooled(store, bags, bag);
      for (uint32_t i = 0; i < dim; ++i) {
        ASSERT_EQ(output[static_cast<size_t>(bag) * dim + i], expected[i])
            << where << ", bag " << bag << ", column " << i;
      }
    }
  }
}

TEST(PoolBags, RowsOfAllTypesAreCopiedAsTheyAre) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 40; ++round) {
    Store store = random_store(random, 60);
    insert_all(store, 60);
    std::vector<int64_t> ids(random() % 100);
    for (int64_t& id : ids) id = static_cast<int64_t>(random() % 70);
    const auto count = static_cast<int64_t>(ids.size());
    const Bags bags{ids.data(), count, nullptr, count, 1, Mode::kNone, false, nullptr};
    const uint32_t dim = store.layout().dim;
    std::vector<float> output(ids.size() * dim);
    pool_bags(store, bags, nullptr, {0, 2}, RowType::kFloat32, output.data(), nullptr,
              in_two_threads);
    for (size_t i = 0; i < ids.size(); ++i) {
      const Row row = row_of(store, ids[i]);
      for (uint32_t j = 0; j < dim; ++j) {
        ASSERT_EQ(output[i * dim + j], row.values[j] * row.scale) << round << ", id " << ids[i];
      }
    }
  }
}

}  // namespace
}  // namespace vramkit::embedding
