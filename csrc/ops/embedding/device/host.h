// A device for tests: kernels are loops of some threads, each row has one lane.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include "ops/embedding/device/lanes.h"
#include "ops/embedding/device/lanes_host.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/pinned.h"
#include "ops/embedding/memory.h"

namespace vramkit::embedding::device {

class Host {
 public:
  /// What kernels tell the host.
  class Mailbox {
   public:
    // Of three tables.
    static constexpr size_t kAnswerBytes = 640;
    explicit Mailbox(int /*device*/) {}
    Alarm& alarm() { return alarm_; }

   private:
    Alarm alarm_{};
  };

  /// Whether what kernels tell is known when they are started.
  static constexpr bool kIsImmediate = true;

  Host(int /*device*/, Mailbox& /*mailbox*/) {}
  Host(int /*device*/, const std::vector<Mailbox*>& /*mailboxes*/) {}

  bool is_capturing() const { return false; }
  void check_waiting(const char* /*what*/) const {}
  std::unique_ptr<Memory> allocate(uint64_t bytes) { return std::make_unique<Heap>(bytes); }
  void retire(std::unique_ptr<Memory> memory) { memory.reset(); }
  /// Memory that stands for the host's, whose sum is known and can be limited.
  std::unique_ptr<Memory> allocate_host(uint64_t bytes) { return std::make_unique<Pinned>(bytes); }
  void retire_host(std::vector<std::unique_ptr<Memory>> memory, bool /*has_graphs*/) {
    memory.clear();
  }
  static std::atomic<uint64_t>& pinned_bytes() {
    static std::atomic<uint64_t> bytes{0};
    return bytes;
  }
  static std::atomic<uint64_t>& most_pinned_bytes() {
    static std::atomic<uint64_t> most{UINT64_MAX};
    return most;
  }
  void fill(void* to, int byte, uint64_t bytes) { std::memset(to, byte, bytes); }
  void write(void* to, const void* from, uint64_t bytes) { std::memcpy(to, from, bytes); }
  void read(void* to, const void* from, uint64_t bytes) { std::memcpy(to, from, bytes); }

  void ask(const void* from, uint64_t /*bytes*/) { asked_ = from; }
  void answer(void* to, uint64_t bytes) { std::memcpy(to, asked_, bytes); }

  template <class F>
  void run(int64_t count, const F& f) {
    if (count < kFewItems) return loop(0, count, f);
    std::thread other([&] { loop(0, count / 2, f); });
    loop(count / 2, count, f);
    other.join();
  }
  template <class F>
  void run_groups(const F& f, uint32_t lanes) {
    if (most_lanes() > 1) return run_crew(f, lanes, 1);
    run(f.items(), [&](int64_t item) { f(item, OneLane()); });
  }
  template <class F>
  void run_teams(const F& f, uint32_t lanes) {
    if (most_lanes() > 1) return run_crew(f, lanes, 2);
    run(f.items(), [&](int64_t item) { f(item, OneLane()); });
  }
  /// A thread for each lane of a row, at most so many; 1 by default.
  static std::atomic<uint32_t>& most_lanes() {
    static std::atomic<uint32_t> most{1};
    return most;
  }

  uint64_t sort_bytes(int64_t /*count*/, int /*bits*/) const { return 0; }
  template <class Key>
  void sort(const Key* keys, Key* sorted_keys, const uint32_t* values, uint32_t* sorted_values,
            int64_t count, int /*bits*/ = 0, char* /*storage*/ = nullptr,
            uint64_t /*storage_bytes*/ = 0) {
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (size_t i = 0; i < order.size(); ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
  }
  void select(const uint8_t* flags, int64_t count, uint32_t* chosen, uint32_t* number) {
    *number = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (flags[i] != 0) chosen[(*number)++] = static_cast<uint32_t>(i);
    }
  }
  void sum(const double* values, int64_t count, double* total) {
    *total = std::accumulate(values, values + count, 0.0);
  }

 private:
  static constexpr int64_t kFewItems = 64;

  class Heap : public Memory {
   public:
    explicit Heap(uint64_t bytes) : data_(std::aligned_alloc(256, (bytes + 255) / 256 * 256)) {
      if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Heap() override { std::free(data_); }
    char* data() override { return static_cast<char*>(data_); }

   private:
    void* data_;
  };

  class Pinned : public Heap {
   public:
    explicit Pinned(uint64_t bytes) : Heap(bytes), bytes_(bytes) {
      if (pinned_bytes() + bytes > most_pinned_bytes()) throw_unpinned(bytes, "the test's limit");
      pinned_bytes() += bytes;
    }
    ~Pinned() override { pinned_bytes() -= bytes_; }

   private:
    uint64_t bytes_;
  };

  template <class F>
  static void run_crew(const F& f, uint32_t lanes, uint32_t groups) {
    const int64_t count = f.items();
    Crew crew(std::min(lanes, most_lanes().load()), groups);
    crew.run([&](const Crew::Lanes& of) {
      for (int64_t item = 0; item < count; ++item) f(item, of);
    });
  }
  template <class F>
  static void loop(int64_t begin, int64_t end, const F& f) {
    for (int64_t i = begin; i < end; ++i) f(i);
  }

  const void* asked_ = nullptr;
};

}  // namespace vramkit::embedding::device
