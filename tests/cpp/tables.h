// What tests of embedding tables are built from.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>

#include "ops/embedding/memory.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

class HeapMemory : public Memory {
 public:
  explicit HeapMemory(uint64_t bytes) : data_(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  ~HeapMemory() override { std::free(data_); }
  char* data() override { return static_cast<char*>(data_); }

 private:
  void* data_;
};

inline std::unique_ptr<Memory> from_heap(uint64_t bytes) {
  return std::make_unique<HeapMemory>(bytes);
}

inline void in_two_threads(int64_t begin, int64_t end, int64_t grain, const Loop& loop) {
  if (end - begin <= grain) {
    if (begin < end) loop(begin, end);
    return;
  }
  const int64_t middle = begin + (end - begin) / 2;
  std::thread other([&] { loop(middle, end); });
  loop(begin, middle);
  other.join();
}

inline StoreConfig config_for(RowType type, Rule rule, uint32_t dim) {
  StoreConfig config;
  config.layout = {type, rule, dim};
  return config;
}

}  // namespace vramkit::embedding
