#include "ops/embedding/device/insert.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "ops/embedding/device/gradients.h"
#include "ops/embedding/device/host.h"
#include "ops/embedding/device/store.h"
#include "support.h"

namespace vramkit::embedding::device {
namespace {

/// A table whose kernels run on the host.
class Emulated {
 public:
  explicit Emulated(const StoreConfig& config) : store_(config) {}

  std::vector<uint32_t> insert(const std::vector<int64_t>& ids) {
    std::vector<uint32_t> slots(ids.size());
    const Batch batch =
        store_.batch(ids.data(), static_cast<int64_t>(ids.size()), false, slots.data());
    Counts counts{};
    host_.run(batch.positions, store_.find(batch, &counts, nullptr, &mailbox_.alarm(), nullptr));
    DeviceStore<Host>::Fresh fresh;
    const Found found(counts);
    if (found.missing != 0) fresh = store_.distinct(host_, batch, &counts, found);
    store_.insert(host_, batch, fresh, Found(counts), nullptr, true);
    store_.check_valid(host_);
    return slots;
  }

  /// Subtracts the sum of each id's gradients.
  void train(const std::vector<int64_t>& ids, const std::vector<float>& grads) {
    const std::vector<uint32_t> slots = insert(ids);
    GradientPart part{};
    part.bags.ids = ids.data();
    part.bags.positions = part.bags.bags = static_cast<int64_t>(ids.size());
    part.slots = slots.data();
    part.grad = grads.data();
    Gradients<Host> gradients(host_, {{&store_, {part}, RowType::kFloat32, nullptr}});
    gradients.apply({{{1, 0, 0, 0}, 1, 0}});
  }

  std::vector<float> read(const std::vector<int64_t>& ids) {
    const uint32_t dim = store_.layout().dim;
    std::vector<float> output(ids.size() * dim);
    Lookup of{};
    of.rows = store_.rows();
    of.index = store_.index();
    of.initial = store_.initial();
    of.num_rows = store_.config().num_rows;
    of.bags.ids = ids.data();
    of.bags.positions = of.bags.bags = static_cast<int64_t>(ids.size());
    of.output = output.data();
    of.alarm = &mailbox_.alarm();
    host_.run_groups(Gather<Float32, 4>{of}, 1);
    return output;
  }

  const DeviceStore<Host>& store() const { return store_; }

 private:
  Host::Mailbox mailbox_{-1};
  Host host_{-1, mailbox_};
  DeviceStore<Host> store_;
};

StoreConfig config_of_eight() {
  StoreConfig config;
  config.layout = {RowType::kFloat32, Rule::kSgd, 8};
  config.deviation = 0;
  return config;
}

std::vector<int64_t> random_ids(std::mt19937_64& random, size_t most, uint64_t space) {
  std::vector<int64_t> ids(1 + random() % most);
  for (int64_t& id : ids) {
    // One id is in a third of the places: its gradient has many parts.
    id = random() % 3 == 0 ? 1 : static_cast<int64_t>(random() % space);
  }
  return ids;
}

TEST(Insert, TrainsAsADictionary) {
  const uint64_t seed = stress_seed();
  std::mt19937_64 random(seed);
  for (const int64_t rows : {int64_t{-1}, int64_t{3000}}) {
    StoreConfig config = config_of_eight();
    config.num_rows = rows;
    Emulated table(config);
    std::map<int64_t, float> model;
    for (int round = 0; round < 25; ++round) {
      const std::vector<int64_t> ids = random_ids(random, 2000, 3000);
      std::vector<float> grads(ids.size() * 8);
      for (size_t i = 0; i < ids.size(); ++i) {
        const auto grad = static_cast<float>(random() % 16);
        std::fill_n(grads.begin() + static_cast<std::ptrdiff_t>(8 * i), 8, grad);
        model[ids[i]] -= grad;
      }
      table.train(ids, grads);
    }
    std::vector<int64_t> keys;
    for (const auto& [key, value] : model) keys.push_back(key);
    const std::vector<float> found = table.read(keys);
    for (size_t i = 0; i < keys.size(); ++i) {
      ASSERT_EQ(found[8 * i + i % 8], model[keys[i]]) << replay_with(seed);
    }
    EXPECT_EQ(table.store().size(), model.size());
  }
}

TEST(Insert, StaysInItsBudget) {
  const uint64_t seed = stress_seed();
  std::mt19937_64 random(seed);
  for (const WhenFull when_full : {WhenFull::kEvictLru, WhenFull::kEvictLfu}) {
    StoreConfig config = config_of_eight();
    config.budget_bytes = 64 * kKiB;
    config.when_full = when_full;
    Emulated table(config);
    const auto capacity = static_cast<size_t>(table.store().facts().capacity);
    ASSERT_GT(capacity, 300U);
    for (int round = 0; round < 200; ++round) {
      const std::vector<int64_t> ids = random_ids(random, capacity, 4 * capacity);
      const std::vector<uint32_t> slots = table.insert(ids);
      for (size_t i = 0; i < ids.size(); ++i) {
        ASSERT_EQ(table.store().rows().meta(slots[i]).key, ids[i]) << replay_with(seed);
      }
    }
    EXPECT_LE(static_cast<uint64_t>(table.store().facts().bytes), config.budget_bytes);
    EXPECT_GT(table.store().facts().evictions, 0);
  }
}

TEST(Insert, ABatchThatDoesNotFitChangesNoRow) {
  StoreConfig config = config_of_eight();
  config.budget_bytes = 16 * kKiB;
  config.when_full = WhenFull::kError;
  Emulated table(config);
  const int64_t capacity = table.store().facts().capacity;
  std::vector<int64_t> ids(static_cast<size_t>(capacity));
  for (int64_t i = 0; i < capacity; ++i) ids[static_cast<size_t>(i)] = i;
  table.train(ids, std::vector<float>(ids.size() * 8, 1));
  expect_error(Status::kOutOfMemory, "the table is full", [&] { table.insert({1, -1}); });
  EXPECT_EQ(table.store().size(), capacity);
  EXPECT_EQ(table.read({1, -1})[0], -1);
}

}  // namespace
}  // namespace vramkit::embedding::device
