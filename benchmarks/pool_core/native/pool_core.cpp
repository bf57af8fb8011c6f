// Times one allocator in a process of its own and prints one JSON object.
//
//   pool_core pairs  ALLOCATOR NAME LIVE_BLOCKS BATCHES BATCH_PAIRS SEED
//   pool_core replay ALLOCATOR NAME TRACE REPEATS CAPACITY_BYTES
//
// ALLOCATOR is "malloc" (NAME: part of the mapped library's file name), "pool" (NAME: path of the
// core library) or "loop" (no allocator: the loop's own cost; NAME is ignored).

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "allocators.h"
#include "workloads.h"

namespace {

using bench::Books;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void print_result(const char* unit, const std::vector<double>& samples, const Books& books) {
  std::printf("{\"unit\": \"%s\", \"samples\": [", unit);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    std::printf("%s%.6g", i == 0 ? "" : ", ", samples[i]);
  }
  std::printf("], \"capacity_bytes\": %llu, \"metadata_bytes\": %llu, ",
              static_cast<unsigned long long>(books.capacity_bytes),
              static_cast<unsigned long long>(books.metadata_bytes));
  std::printf("\"stitched_requests\": %llu, \"mapping_calls\": %llu}\n",
              static_cast<unsigned long long>(books.stitched_requests),
              static_cast<unsigned long long>(books.mapping_calls));
}

/// Calls `use(allocator)` with a new allocator of the wanted kind and destroys it afterwards.
template <class Use>
void with_allocator(const std::string& kind, const std::string& name, std::uint64_t capacity_bytes,
                    const Use& use) {
  if (kind == "malloc") {
    bench::MallocAllocator allocator(name);
    use(allocator);
  } else if (kind == "loop") {
    bench::NoAllocator allocator;
    use(allocator);
  } else if (kind == "pool") {
    bench::PoolAllocator allocator(name, capacity_bytes);
    use(allocator);
  } else {
    bench::fail("unknown allocator '" + kind + "'");
  }
}

template <class Allocator>
void replace(Allocator& allocator, std::vector<void*>& live, const bench::Replacement* from,
             std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    void*& block = live[from[i].slot];
    allocator.release(block);
    block = allocator.allocate(from[i].size_bytes, 0);
  }
}

/// Nanoseconds a pair, one sample a batch.
template <class Allocator>
std::vector<double> time_pairs(Allocator& allocator, const bench::PairSequence& sequence,
                               std::uint64_t warm_up, std::uint64_t batches, std::uint64_t pairs,
                               Books& books) {
  std::vector<void*> live;
  live.reserve(sequence.first_sizes.size());
  for (std::uint32_t size : sequence.first_sizes) live.push_back(allocator.allocate(size, 0));
  const bench::Replacement* next = sequence.replacements.data();
  replace(allocator, live, next, warm_up);
  next += warm_up;
  std::vector<double> samples;
  for (std::uint64_t batch = 0; batch < batches; ++batch, next += pairs) {
    const Clock::time_point start = Clock::now();
    replace(allocator, live, next, pairs);
    samples.push_back(seconds_since(start) * 1e9 / static_cast<double>(pairs));
  }
  books = allocator.books();
  for (void* block : live) allocator.release(block);
  return samples;
}

void run_pairs(const std::string& kind, const std::string& name, char** numbers) {
  const std::uint64_t live_blocks = std::stoull(numbers[0]);
  const std::uint64_t batches = std::stoull(numbers[1]);
  const std::uint64_t pairs = std::stoull(numbers[2]);
  // A block is replaced once on average before the clock starts: a settled heap, not a fresh one.
  constexpr std::uint64_t kLeastWarmUp = 20'000;
  const std::uint64_t warm_up = std::max(live_blocks, kLeastWarmUp);
  const bench::PairSequence sequence(live_blocks, warm_up + batches * pairs,
                                     std::stoull(numbers[3]));
  // With few blocks the spans of the size classes, not the blocks, decide what is needed.
  constexpr std::uint64_t kLeastCapacityBytes = 256ULL << 20;
  const std::uint64_t capacity_bytes = std::max(sequence.peak_bytes / 10 * 13, kLeastCapacityBytes);
  with_allocator(kind, name, capacity_bytes, [&](auto& allocator) {
    Books books;
    const auto samples = time_pairs(allocator, sequence, warm_up, batches, pairs, books);
    print_result("ns", samples, books);
  });
}

template <class Allocator>
void play(Allocator& allocator, const bench::Event* events, std::size_t count,
          std::vector<void*>& live) {
  for (std::size_t i = 0; i < count; ++i) {
    const bench::Event& event = events[i];
    if (event.is_free != 0) {
      allocator.release(live[event.block]);
      live[event.block] = nullptr;
    } else {
      live[event.block] = allocator.allocate(event.size_bytes, event.stream);
    }
  }
}

template <class Allocator>
void release_all(Allocator& allocator, std::vector<void*>& live) {
  for (void*& block : live) {
    if (block != nullptr) allocator.release(block);
    block = nullptr;
  }
}

/// One replay that stops often to read the books; keeps the largest.
template <class Allocator>
Books largest_books(Allocator& allocator, const bench::Trace& trace, std::vector<void*>& live) {
  constexpr std::size_t kStride = 256;
  Books most;
  for (std::size_t at = 0; at < trace.events.size(); at += kStride) {
    play(allocator, &trace.events[at], std::min(kStride, trace.events.size() - at), live);
    const Books now = allocator.books();
    if (now.metadata_bytes >= most.metadata_bytes) most = now;
  }
  const Books last = allocator.books();
  most.stitched_requests = last.stitched_requests;
  most.mapping_calls = last.mapping_calls;
  release_all(allocator, live);
  return most;
}

void run_replay(const std::string& kind, const std::string& name, char** arguments) {
  const bench::Trace trace(arguments[0]);
  const std::uint64_t repeats = std::stoull(arguments[1]);
  const std::uint64_t capacity_bytes = std::stoull(arguments[2]);
  std::vector<void*> live(trace.blocks, nullptr);
  std::vector<double> samples;
  for (std::uint64_t repeat = 0; repeat < repeats; ++repeat) {
    with_allocator(kind, name, capacity_bytes, [&](auto& allocator) {
      const Clock::time_point start = Clock::now();
      play(allocator, trace.events.data(), trace.events.size(), live);
      samples.push_back(static_cast<double>(trace.events.size()) / seconds_since(start));
      release_all(allocator, live);
    });
  }
  Books books;
  with_allocator(kind, name, capacity_bytes,
                 [&](auto& allocator) { books = largest_books(allocator, trace, live); });
  print_result("events/s", samples, books);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 3 ? argv[1] : "";
  if (mode == "pairs" && argc == 8) {
    run_pairs(argv[2], argv[3], argv + 4);
  } else if (mode == "replay" && argc == 7) {
    run_replay(argv[2], argv[3], argv + 4);
  } else {
    bench::fail("usage: see the head of pool_core.cpp");
  }
  return 0;
}
