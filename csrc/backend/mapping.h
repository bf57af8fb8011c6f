// Helpers of the two backends that stand on mmap.
#pragma once

#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "backend/mapping_share.h"

namespace vramkit {

/// An owned piece of address space without memory behind it, aligned to `alignment`. `lead_bytes`
/// in front of it are owned too. The destructor unmaps all of it, whatever was mapped there since.
class AddressRange {
 public:
  AddressRange() = default;
  AddressRange(uint64_t bytes, uint64_t alignment, uint64_t lead_bytes = 0);
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
  uint64_t lead_bytes_ = 0;
};

inline void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

/// How many bytes of addresses a new pool may reserve: all, or half of what `ulimit -v` leaves.
uint64_t address_allowance();

/// For a call that has just failed to map memory: throws `Error`. Where the kernel may have refused
/// for the number of mappings, the text names their limit.
[[noreturn]] void throw_mapping_error(const char* what, uint64_t bytes);

/// Memory of this machine, or less where this process's control group may use less.
uint64_t machine_memory();

/// A backend whose work is done when its calls return: one stream, every event is passed.
class SynchronousBackend : public Backend {
 public:
  bool takes_address_space() const override { return true; }
  uint64_t memory_limit() const override { return machine_memory(); }
  uint64_t max_alias_pages() const override { return share_.most(); }
  bool take_mappings(uint64_t pages) override { return share_.take(pages); }
  void give_back_mappings(uint64_t pages) noexcept override { share_.give_back(pages); }
  std::string describe_mappings() const override { return share_.describe(); }
  bool events_allowed() const override { return true; }
  Event record_event(uint64_t) override { return 0; }
  bool event_done(Event) override { return true; }
  void stream_wait(uint64_t, Event) override {}
  void synchronize(Event) override {}
  void synchronize_all() override {}
  void release_event(Event) override {}

 private:
  MappingShare share_;
};

}  // namespace vramkit
