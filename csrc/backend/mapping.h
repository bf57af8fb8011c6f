// Helpers of the two backends that stand on mmap.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace vramkit {

/// An owned piece of address space without memory behind it, aligned to `alignment`.
class AddressRange {
 public:
  AddressRange() = default;
  AddressRange(uint64_t bytes, uint64_t alignment);
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;
  AddressRange(AddressRange&& other) noexcept { swap(other); }
  AddressRange& operator=(AddressRange&& other) noexcept {
    swap(other);
    return *this;
  }
  ~AddressRange();

  uint64_t base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(AddressRange& other) noexcept;
  uint64_t base_ = 0;
  uint64_t bytes_ = 0;
};

inline void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

/// A quarter of the kernel's limit on mappings of one process: the rest is the program's.
uint64_t mapping_allowance();

/// Memory of this machine, or less where this process's control group may use less.
uint64_t machine_memory();

/// A backend whose work is done when its calls return: one stream, every event is passed.
class SynchronousBackend : public Backend {
 public:
  uint64_t memory_limit() const override { return machine_memory(); }
  bool events_allowed() const override { return true; }
  Event record_event(uint64_t) override { return 0; }
  bool event_done(Event) override { return true; }
  void stream_wait(uint64_t, Event) override {}
  void synchronize(Event) override {}
  void synchronize_all() override {}
  void release_event(Event) override {}
};

}  // namespace vramkit
