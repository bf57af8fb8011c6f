// The memory of a table's slots, in pages: the first ones on the device, the others with their rows
// in host memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/embedding/device/rows.h"
#include "ops/embedding/memory.h"

namespace vramkit::embedding::device {

/// What a CUDA graph reads must stay where it is.
[[noreturn]] inline void throw_frozen() {
  throw_error(Status::kInvalidArgument,
              "the table cannot grow any more, as a CUDA graph reads it; train it first and then "
              "capture lookups, or copy it with copy.deepcopy() and train the copy");
}

/// Grows only. Not thread-safe.
template <class Device>
class Pages {
 public:
  static constexpr uint64_t kUnlimited = UINT32_MAX;

  /// Bytes of the rows and of the Metas of a page.
  void set_sizes(uint64_t row_bytes, uint64_t meta_bytes) {
    row_bytes_ = row_bytes;
    meta_bytes_ = meta_bytes;
  }
  void set_most_on_device(uint64_t pages) { most_on_device_ = pages; }

  uint64_t most_on_device() const { return most_on_device_; }
  uint64_t page_bytes() const { return row_bytes_ + meta_bytes_; }
  uint64_t device_bytes() const { return device_bytes_ + table_bytes_; }
  uint64_t host_bytes() const { return host_bytes_; }
  uint64_t size() const { return pages_.size(); }
  /// For kernels.
  const Page* table() const {
    return table_ == nullptr ? nullptr : reinterpret_cast<const Page*>(table_->data());
  }

  /// Makes so many pages, or some more, but at most `most`. Throws what allocations throw, or
  /// Error(kInvalidArgument) where the table would move that is frozen.
  void reserve(Device& device, uint64_t pages, uint64_t most, bool is_frozen) {
    while (pages_.size() < pages) {
      const uint64_t wanted = std::max(pages - pages_.size(), pages_.size() / kSlabsInTable);
      const bool on_host = pages_.size() >= most_on_device_;
      const uint64_t end = on_host ? most : std::min(most, most_on_device_);
      add(device, std::min({wanted, kPagesInSlab, end - pages_.size()}), on_host);
    }
    if (listed_ < pages_.size()) list(device, most, is_frozen);
  }

  /// Waits for the device where memory was last used on another stream than it came from.
  void release(Device& device, bool has_graphs) {
    for (std::unique_ptr<Memory>& slab : slabs_) device.retire(std::move(slab));
    if (!host_slabs_.empty()) device.retire_host(std::move(host_slabs_), has_graphs);
    device.retire(std::move(table_));
  }

  /// Throws Error(kInvalidArgument) where pages and counters contradict each other.
  void check_valid() const {
    const uint64_t on_device = std::min<uint64_t>(pages_.size(), most_on_device_);
    const uint64_t hosted = pages_.size() - on_device;
    if (host_bytes_ == hosted * row_bytes_ && listed_ <= pages_.size() &&
        device_bytes_ == on_device * row_bytes_ + pages_.size() * meta_bytes_) {
      return;
    }
    throw_error(Status::kInvalidArgument,
                "%zu pages, %llu of them in host memory, have %llu bytes on the device and %llu "
                "there",
                pages_.size(), static_cast<unsigned long long>(hosted),
                static_cast<unsigned long long>(device_bytes_),
                static_cast<unsigned long long>(host_bytes_));
  }

 private:
  // A slab grows with the table, up to 32 pages and a 32nd part.
  static constexpr uint64_t kPagesInSlab = 32;
  static constexpr uint64_t kSlabsInTable = 32;

  void add(Device& device, uint64_t count, bool on_host) {
    slabs_.reserve(slabs_.size() + 1);
    host_slabs_.reserve(host_slabs_.size() + 1);
    pages_.reserve(pages_.size() + count);
    const uint64_t host_bytes = on_host ? count * row_bytes_ : 0;
    const uint64_t step = on_host ? meta_bytes_ : page_bytes();
    std::unique_ptr<Memory> hosted = on_host ? device.allocate_host(host_bytes) : nullptr;
    std::unique_ptr<Memory> slab = device.allocate(count * step);
    for (uint64_t page = 0; page < count; ++page) {
      char* const at = slab->data() + page * step;
      char* const rows = on_host ? hosted->data() + page * row_bytes_ : at;
      pages_.push_back({rows, reinterpret_cast<Meta*>(on_host ? at : at + row_bytes_)});
    }
    slabs_.push_back(std::move(slab));
    if (on_host) host_slabs_.push_back(std::move(hosted));
    device_bytes_ += count * step;
    host_bytes_ += host_bytes;
  }

  void list(Device& device, uint64_t most, bool is_frozen) {
    if (table_ == nullptr || table_bytes_ < pages_.size() * sizeof(Page)) {
      if (is_frozen) throw_frozen();
      const uint64_t bytes = std::min<uint64_t>(most, 2 * pages_.size()) * sizeof(Page);
      std::unique_ptr<Memory> table = device.allocate(bytes);
      device.retire(std::move(table_));
      table_ = std::move(table);
      table_bytes_ = bytes;
    }
    device.write(table_->data(), pages_.data(), pages_.size() * sizeof(Page));
    listed_ = pages_.size();
  }

  uint64_t row_bytes_ = 0;
  uint64_t meta_bytes_ = 0;
  uint64_t most_on_device_ = kUnlimited;
  std::vector<std::unique_ptr<Memory>> slabs_;
  std::vector<std::unique_ptr<Memory>> host_slabs_;
  uint64_t device_bytes_ = 0;  // of the slabs
  uint64_t host_bytes_ = 0;
  std::vector<Page> pages_;
  std::unique_ptr<Memory> table_;  // the pages, for kernels
  uint64_t table_bytes_ = 0;
  uint64_t listed_ = 0;
};

}  // namespace vramkit::embedding::device
