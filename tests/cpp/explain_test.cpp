#include "pool/explain.h"

#include <gtest/gtest.h>

#include <vector>

#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = 64 * kKiB;

const char* stack_text(uint32_t id) { return id == 7 ? "    train.py:12" : "?"; }

std::string explain(Engine& engine, uint64_t wanted) {
  return explain_shortage(describe_shortage(engine, wanted), stack_text);
}

void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(text.find(word), std::string::npos) << "no '" << word << "' in:\n" << text;
  }
}

TEST(Explain, GivesTheNumbers) {
  Engine engine(config_of("null", 16 * kPage));
  engine.allocate(10 * kPage, 0, 7);
  engine.allocate(3 * kPage, 0, 0);
  expect_words(explain(engine, 5 * kPage),
               {"vramkit pool on test is out of memory", "Wanted 320.0 KiB (327,680 bytes)",
                "capacity 1.0 MiB", "live 832.0 KiB in 2 blocks", "free 192.0 KiB",
                "largest free block 192.0 KiB", "less is free than was wanted",
                "at least 128KiB more", "pool.resize(1179648)", "overflow=\"native\"",
                "The 2 largest live blocks:", "640.0 KiB at ", "train.py:12"});
}

TEST(Explain, TellsPagesThatArePartlyInUse) {
  Engine engine(config_of("null", 8 * kPage));
  std::vector<uint64_t> blocks;
  for (int i = 0; i < 16; ++i) blocks.push_back(engine.allocate(kPage / 2, 0, 0));
  for (size_t i = 0; i < 16; i += 2) engine.release(blocks[i]);
  ASSERT_EQ(engine.allocate(2 * kPage, 0, 0), 0U);
  expect_words(explain(engine, 2 * kPage),
               {"joins wholly free pages of 64.0 KiB, and of these there are 0 B",
                "the request needs 128.0 KiB", "the other 256.0 KiB"});
}

TEST(Explain, TellsMemoryThatWaitsForOtherStreams) {
  JudgedEngine pool(8);
  const uint64_t address = pool.allocate(4 * kPage, 0);
  pool.record_stream(address, 1);
  pool.free(address);
  const std::string text = explain_shortage(describe_shortage(*pool.operator->(), kMiB), nullptr);
  expect_words(text, {"256.0 KiB wait for work on other streams"});
}

TEST(Explain, ListsTheTenLargest) {
  Engine engine(config_of("null", 64 * kPage));
  for (uint64_t i = 1; i <= 12; ++i) engine.allocate(kPage + i * 1024, 0, 0);
  const Shortage shortage = describe_shortage(engine, kGiB);
  ASSERT_EQ(shortage.largest_blocks.size(), 10U);
  EXPECT_EQ(shortage.largest_blocks.front().requested, kPage + 12 * 1024);
  EXPECT_EQ(shortage.largest_blocks.back().requested, kPage + 3 * 1024);
}

TEST(Explain, SaysWhenTheRequestIsLargerThanThePool) {
  Engine engine(config_of("null", 8 * kPage));
  expect_words(explain(engine, 9 * kPage), {"larger than the whole pool", "at least 64KiB more"});
}

TEST(Explain, CountsOneBlock) {
  Engine engine(config_of("null", 4 * kPage));
  engine.allocate(3 * kPage, 0, 0);
  expect_words(explain(engine, 2 * kPage), {"in 1 block,", "The largest live block:"});
}

TEST(Explain, TellsSizesApartThatLookTheSame) {
  Engine engine(config_of("null", 512 * kPage));
  expect_words(
      explain(engine, 512 * kPage + 1),
      {"Wanted 32.0 MiB (33,554,433 bytes)", "capacity 32.0 MiB (33,554,432 bytes)",
       "free 32.0 MiB (33,554,432 bytes)", "largest free block 32.0 MiB (33,554,432 bytes)"});
}

TEST(Explain, AdvisesAResizeOnlyWhereItCanBe) {
  Shortage shortage = describe_shortage(Engine(config_of("null", 8 * kPage)), 16 * kPage);
  EXPECT_NE(explain_shortage(shortage, nullptr).find("pool.resize(1048576)"), std::string::npos);
  shortage.most_capacity = 15 * kPage;
  const std::string fixed = explain_shortage(shortage, nullptr);
  EXPECT_EQ(fixed.find("resize"), std::string::npos) << fixed;
  expect_words(fixed, {"or make a new pool of at least 1MiB; or let"});
  shortage.machine = 15 * kPage;
  const std::string small = explain_shortage(shortage, nullptr);
  EXPECT_EQ(small.find("at least"), std::string::npos) << small;
}

TEST(Explain, DoesNotAdviseImpossibleCapacities) {
  Engine engine(config_of("null", 8 * kPage));
  for (const uint64_t size : {~uint64_t{0}, uint64_t{1} << 63, ~uint64_t{0} - 65535}) {
    const std::string text = explain(engine, size);
    expect_words(text, {"larger than the whole pool", "it may be negative"});
    EXPECT_EQ(text.find("resize"), std::string::npos) << text;
  }
}

TEST(Explain, NamesTheLimitOfMappings) {
  Shortage s;
  s.wanted = kMiB;
  s.free = 4 * kMiB;
  s.free_pages = 4 * kMiB;
  s.capacity = 8 * kMiB;
  s.page = 64 * kKiB;
  s.alias_limit = "the kernel allows this process 65530 mappings (vm.max_map_count)";
  EXPECT_NE(explain_shortage(s, nullptr)
                .find("Stitching did not help: the kernel allows this process 65530 mappings"),
            std::string::npos);
}

}  // namespace
}  // namespace vramkit
