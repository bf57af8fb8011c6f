#include "loader/gather.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "gather_task.h"
#include "loader/gather_copy.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

Gatherer::Ticket submit(Gatherer& gatherer, const Task& task) {
  return gatherer.submit(task.plan(), task.destinations(), task.indices());
}

/// One dense array of 64-byte rows, and what a job on it needs; large enough for threads.
struct Simple {
  explicit Simple(uint64_t rows = 64 * 1024, uint64_t bytes = 64)
      : memory(rows * bytes), copied(rows * bytes, kUntouched), indices(rows) {
    for (size_t at = 0; at + 4 <= memory.size(); at += 4) {
      const auto word = static_cast<uint32_t>(at * 2654435761U);
      std::memcpy(memory.data() + at, &word, sizeof(word));
    }
    for (uint64_t k = 0; k < rows; ++k) indices[k] = static_cast<int64_t>(rows - 1 - k);
    const Segment segment = {address_of(memory.data()), 0, rows};
    const PieceSpec spec = {{&segment, 1}, bytes, bytes};
    plan = std::make_shared<const GatherPlan>(std::span(&spec, 1));
  }
  Gatherer::Ticket submit(Gatherer& gatherer) const {
    const uint64_t destination = address_of(copied.data());
    return gatherer.submit(plan, {&destination, 1}, indices);
  }
  Bytes memory;
  Bytes copied;
  Indices indices;
  std::shared_ptr<const GatherPlan> plan;
};

class Gather : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Threads, Gather, testing::Values(0U, 1U, 3U));

TEST_P(Gather, EqualsAPlainLoop) {
  Gatherer gatherer(GetParam());
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Task task(random, seed % 10 == 0 ? 300 * kKiB : 8 * kKiB);
    EXPECT_TRUE(gatherer.wait(submit(gatherer, task), std::nullopt));
    task.expect_copied();
  }
}

TEST_P(Gather, RowsLargerThanAChunkAreSplit) {
  Gatherer gatherer(GetParam());
  for (const uint64_t bytes :
       {kChunkBytes, 2 * kChunkBytes - 1, 2 * kChunkBytes, 3 * kChunkBytes + 5}) {
    const Simple simple(4, bytes);
    EXPECT_TRUE(gatherer.wait(simple.submit(gatherer), std::nullopt));
    for (size_t row = 0; row < 4; ++row) {
      EXPECT_EQ(std::memcmp(simple.copied.data() + row * bytes,
                            simple.memory.data() + (3 - row) * bytes, bytes),
                0);
    }
  }
}

TEST_P(Gather, ManyJobsOfManyThreads) {
  Gatherer gatherer(GetParam());
  std::vector<std::thread> threads;
  for (uint32_t number = 0; number < 4; ++number) {
    threads.emplace_back([&gatherer, number] {
      std::mt19937 random(100 + number);
      std::vector<Task> tasks;
      std::vector<Gatherer::Ticket> tickets;
      for (int i = 0; i < 12; ++i) tasks.emplace_back(random, 16 * kKiB);
      for (const Task& task : tasks) tickets.push_back(submit(gatherer, task));
      for (size_t i = tasks.size(); i-- > 0;) {
        EXPECT_TRUE(gatherer.wait(tickets[i], std::nullopt));
        tasks[i].expect_copied();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(Gather, BadIndicesAreNamedAndNothingIsCopied) {
  Gatherer gatherer(GetParam());
  for (const size_t position : {size_t{0}, size_t{40'000}, size_t{64 * 1024 - 1}}) {
    for (const int64_t index : {int64_t{-1}, int64_t{64 * 1024}, INT64_MIN, INT64_MAX}) {
      Simple simple(64 * 1024, 16);
      simple.indices[position] = index;
      expect_error(Status::kInvalidArgument,
                   format("index %lld at position %zu is out of range: piece 0 has 65536 rows",
                          static_cast<long long>(index), position),
                   [&] { simple.submit(gatherer); });
      EXPECT_EQ(std::count(simple.copied.begin(), simple.copied.end(), kUntouched),
                static_cast<ptrdiff_t>(simple.copied.size()));
    }
  }
}

TEST(Gather, AnEmptyArrayHasNoRow) {
  Gatherer gatherer(1);
  const PieceSpec spec = {{}, 8, 8};
  const auto plan = std::make_shared<const GatherPlan>(std::span(&spec, 1));
  const uint64_t destination = 0;
  EXPECT_EQ(gatherer.submit(plan, {&destination, 1}, {}), Gatherer::kDone);
  const Indices indices = {0};
  expect_error(Status::kInvalidArgument,
               "index 0 at position 0 is out of range: piece 0 has 0 rows", [&] {
                 gatherer.submit(plan, {&destination, 1}, indices);
               });
}

TEST(Gather, TheShortestPieceCounts) {
  Gatherer gatherer(0);
  const uint64_t memory[4] = {};
  const Segment segments[] = {{address_of(memory), 0, 4}, {address_of(memory), 0, 3}};
  const PieceSpec specs[] = {{{&segments[0], 1}, 8, 8}, {{&segments[1], 1}, 8, 8}};
  const auto plan = std::make_shared<const GatherPlan>(specs);
  uint64_t copied[2] = {};
  const uint64_t destinations[] = {address_of(copied), address_of(copied + 1)};
  expect_error(Status::kInvalidArgument,
               "index 3 at position 0 is out of range: piece 1 has 3 rows",
               [&] { gatherer.submit(plan, destinations, Indices{3}); });
  expect_error(Status::kInvalidArgument, "the plan has 2 pieces, got 1 destinations", [&] {
    gatherer.submit(plan, {destinations, 1}, Indices{0});
  });
}

void expect_refused(const std::string& text, std::vector<Segment> segments, uint64_t row_bytes,
                    uint64_t stride) {
  const PieceSpec spec = {segments, row_bytes, stride};
  expect_error(Status::kInvalidArgument, text, [&] { GatherPlan plan({&spec, 1}); });
}

TEST(GatherPlan, RefusesWhatCannotBe) {
  expect_refused("begins at row 5, but the segments before it end at row 4",
                 {{64, 0, 4}, {64, 5, 1}}, 8, 8);
  expect_refused("begins at row 3, but the segments before it end at row 4",
                 {{64, 0, 4}, {64, 3, 1}}, 8, 8);
  expect_refused("begins at row 1, but", {{64, 1, 4}}, 8, 8);
  expect_refused("of 8 bytes cannot begin at address 0x0", {{0, 0, 1}}, 8, 8);
  expect_refused("exceeds 64 bits", {{64, 0, uint64_t{1} << 40}}, 8, uint64_t{1} << 40);
  expect_refused("cannot begin at address", {{UINT64_MAX - 64, 0, 10}}, 8, 8);
  expect_refused("cannot begin at address", {{64, 0, 1}}, UINT64_MAX, 8);
  expect_refused("more rows than an int64 index can name", {{64, 0, UINT64_MAX}}, 0, 0);
  expect_refused("more rows than", {{64, 0, INT64_MAX}, {64, INT64_MAX, 1}}, 0, 0);
}

TEST(Gather, RefusesDestinationsThatCannotBe) {
  Gatherer gatherer(1);
  Simple simple(4, 8);
  for (const uint64_t destination : {uint64_t{0}, UINT64_MAX - 8}) {
    expect_error(Status::kInvalidArgument, "a destination of 32 bytes cannot begin at address",
                 [&] {
                   gatherer.submit(simple.plan, {&destination, 1}, simple.indices);
                 });
  }
}

TEST(Gather, TicketsAreWaitedForOnce) {
  Gatherer gatherer(2);
  const Simple simple;
  const Gatherer::Ticket ticket = simple.submit(gatherer);
  EXPECT_NE(ticket, Gatherer::kDone);
  EXPECT_TRUE(gatherer.wait(ticket, std::nullopt));
  for (const Gatherer::Ticket unknown : {ticket, ticket + 1}) {
    expect_error(Status::kInvalidArgument, "the gatherer has no ticket",
                 [&] { gatherer.wait(unknown, 0); });
    expect_error(Status::kInvalidArgument, "the gatherer has no ticket",
                 [&] { gatherer.done(unknown); });
  }
  EXPECT_TRUE(gatherer.done(Gatherer::kDone));
  EXPECT_TRUE(gatherer.wait(Gatherer::kDone, 0));
}

TEST(Gather, SmallJobsAreOverAtOnce) {
  Gatherer gatherer(2);
  const Simple small(kSmallJobBytes / 64 - 1);
  EXPECT_EQ(small.submit(gatherer), Gatherer::kDone);
  EXPECT_EQ(small.copied.back(), small.memory[63]);
}

TEST(Gather, JobsGetDoneWithoutTheWaiter) {
  Gatherer gatherer(1);
  const Simple simple;
  const Gatherer::Ticket ticket = simple.submit(gatherer);
  while (!gatherer.done(ticket)) std::this_thread::yield();
  EXPECT_TRUE(gatherer.wait(ticket, 0));
}

TEST(Gather, AWaitEndsInTime) {
  Gatherer gatherer(1);
  const Simple large(400, 64 * kKiB);
  const Simple other(400, 64 * kKiB);
  bool ended_early = false;
  // On a busy machine a job may be over before this thread runs again.
  for (uint64_t attempt = 0; attempt < 200 && !ended_early; ++attempt) {
    const Gatherer::Ticket first = large.submit(gatherer);
    const Gatherer::Ticket second = other.submit(gatherer);
    ended_early = !gatherer.wait(second, attempt % 2 * 1000);
    if (ended_early) {
      EXPECT_TRUE(gatherer.wait(second, 100 * kSecondNs));
    }
    EXPECT_TRUE(gatherer.wait(first, UINT64_MAX));
  }
  EXPECT_TRUE(ended_early);
}

TEST(Gather, ClosingWakesWaitersAndRefusesMore) {
  for (int round = 0; round < 12; ++round) {
    Gatherer gatherer(2);
    const Simple one(48, 64 * kKiB);
    const Simple other(48, 64 * kKiB);
    std::atomic<int> begun = 0;
    const auto wait = [&](const Simple& simple) {
      try {
        const Gatherer::Ticket ticket = simple.submit(gatherer);
        ++begun;
        EXPECT_TRUE(gatherer.wait(ticket, std::nullopt));
      } catch (const Error& error) {
        EXPECT_EQ(error.status(), Status::kClosed);
        EXPECT_STREQ(error.what(), "the gatherer has been closed");
      }
    };
    std::thread first(wait, std::ref(one));
    std::thread second(wait, std::ref(other));
    while (begun < round % 3) std::this_thread::yield();
    gatherer.close();
    gatherer.close();
    const Bytes before = one.copied;
    expect_error(Status::kClosed, "has been closed", [&] { one.submit(gatherer); });
    expect_error(Status::kClosed, "has been closed", [&] { gatherer.done(1000); });
    EXPECT_TRUE(one.copied == before);
    first.join();
    second.join();
  }
}

TEST(Gather, IsDestroyedWithJobsInFlight) {
  for (int round = 0; round < 12; ++round) {
    const Simple simple(48, 64 * kKiB);
    Simple untouched(48, 64 * kKiB);
    {
      Gatherer gatherer(3);
      simple.submit(gatherer);
      untouched.submit(gatherer);
      untouched.plan.reset();  // the job holds its own
    }
  }
}

TEST(Gather, AForkedChildHasNoGatherer) {
  auto gatherer = std::make_unique<Gatherer>(2);
  const Simple simple;
  const Gatherer::Ticket ticket = simple.submit(*gatherer);
  const pid_t child = ::fork();
  if (child == 0) {
    int faults = 0;
    const auto refused = [&](const std::function<void()>& body) {
      try {
        body();
        ++faults;
      } catch (const Error& error) {
        faults += error.status() == Status::kForked ? 0 : 1;
      }
    };
    refused([&] { simple.submit(*gatherer); });
    refused([&] { gatherer->wait(ticket, std::nullopt); });
    refused([&] { gatherer->done(ticket); });
    refused([&] { gatherer->close(); });
    gatherer.reset();
    ::_exit(faults);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(gatherer->wait(ticket, std::nullopt));
}

TEST(Gather, TooManyThreads) {
  expect_error(Status::kInvalidArgument, "at most 1024 threads, got 1025",
               [] { Gatherer gatherer(1025); });
}

/// The value of a line of /proc/self/task/<id>/status, of each thread with the Gatherer's name.
std::vector<std::string> of_gather_threads(const std::string& line) {
  std::vector<std::string> found;
  DIR* const tasks = ::opendir("/proc/self/task");
  while (const dirent* const entry = ::readdir(tasks)) {
    std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/status");
    std::string name;
    for (std::string text; std::getline(file, text);) {
      if (text.starts_with("Name:")) name = text.substr(6);
      if (text.starts_with(line) && name == "vramkit-gather") found.push_back(text);
    }
  }
  ::closedir(tasks);
  return found;
}

bool leaves_signals_to_others(const std::string& line) {
  const uint64_t blocked = std::stoull(line.substr(8), nullptr, 16);
  const auto blocks = [blocked](int signal) { return (blocked >> (signal - 1) & 1) == 1; };
  return blocks(SIGINT) && blocks(SIGTERM) && blocks(SIGCHLD) && blocks(SIGALRM) &&
         !blocks(SIGSEGV) && !blocks(SIGBUS);
}

TEST(Gather, ThreadsAreNamedAndLeaveSignalsToOthers) {
  const Gatherer gatherer(3);
  std::vector<std::string> masks;
  // A thread that is about to start has every signal blocked.
  for (int attempt = 0; attempt < 500; ++attempt) {
    masks = of_gather_threads("SigBlk:");
    if (std::all_of(masks.begin(), masks.end(), leaves_signals_to_others)) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_EQ(masks.size(), 3U);
  for (const std::string& mask : masks) EXPECT_TRUE(leaves_signals_to_others(mask)) << mask;
}

TEST(Gather, IdleThreadsUseNoCpu) {
  Gatherer gatherer(3);
  const Simple simple;
  gatherer.wait(simple.submit(gatherer), std::nullopt);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto cpu_ns = [] {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<uint64_t>(now.tv_sec) * kSecondNs + static_cast<uint64_t>(now.tv_nsec);
  };
  const uint64_t before = cpu_ns();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(cpu_ns() - before, kSecondNs / 50);
}

}  // namespace
}  // namespace vramkit
