// Stands in for the CUDA driver on any machine: it keeps books and judges.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "backend/driver_cuda.h"
#include "base/bytes.h"

namespace vramkit {

/// One device of 100 pages of 2 MiB, and others that are only peers of it; work is done at once.
/// What a thread that maps in the background calls may be called beside everything else.
struct FakeGpu {
  static constexpr uint64_t kPage = 2 * kMiB;
  static constexpr cuda::Result kInvalidValue = 1;
  static constexpr cuda::Result kCapturedEvent = 907;

  struct Mapping {
    cuda::MemoryHandle handle;
    std::set<int> accessible_from;
  };

  uint64_t pages = 100;
  std::set<cuda::MemoryHandle> handles;
  std::map<uint64_t, Mapping> mappings;  // by address, a page each
  std::set<uint64_t> events;
  std::set<uint64_t> captured_events;  // recorded on a stream that is being captured
  std::set<uint64_t> capturing;        // streams
  std::set<uint64_t> destroyed;        // streams
  std::set<int> bad_peers;
  std::set<int> peers_in_use;                 // with a context
  std::set<int> distant_peers;                // without access
  std::map<uint64_t, size_t> registered;      // host memory: bytes by address
  cuda::Result registering = cuda::kSuccess;  // what the driver answers
  int contexts = 0;                           // retained and not released
  bool context_gone = false;
  uint64_t device_waits = 0;
  uint64_t last = 0;

  /// Of handles and mappings.
  static std::mutex& books() {
    static std::mutex mutex;
    return mutex;
  }
  /// The one that the driver functions act on.
  static FakeGpu& instance() {
    static FakeGpu gpu;
    return gpu;
  }
  /// As new. Whatever was made on it before must be gone.
  static FakeGpu& fresh() {
    static const cuda::Driver table = functions();
    cuda::use_driver(table);
    EXPECT_TRUE(instance().handles.empty());
    EXPECT_TRUE(instance().mappings.empty());
    return instance() = FakeGpu{};
  }

 private:
  static cuda::Driver functions();
  static void add_device(cuda::Driver& d);
  static void add_context(cuda::Driver& d);
  static void add_memory(cuda::Driver& d);
  static void add_mapping(cuda::Driver& d);
  static void add_events(cuda::Driver& d);
  static void add_host_memory(cuda::Driver& d);
};

inline uint64_t number_of(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

inline void FakeGpu::add_device(cuda::Driver& d) {
  d.init = [](unsigned) { return cuda::kSuccess; };
  d.error_name = [](cuda::Result, const char** name) {
    *name = "FAKE_ERROR";
    return cuda::kSuccess;
  };
  d.device_get = [](cuda::Device* device, int ordinal) {
    *device = ordinal;
    return cuda::kSuccess;
  };
  d.device_count = [](int* count) {
    *count = 5;
    return cuda::kSuccess;
  };
  d.device_attribute = [](int* value, int, cuda::Device) {
    *value = 1;
    return cuda::kSuccess;
  };
  d.device_memory = [](size_t* bytes, cuda::Device) {
    *bytes = instance().pages * kPage;
    return cuda::kSuccess;
  };
  d.memory_info = [](size_t* free, size_t* total) {
    *total = instance().pages * kPage;
    *free = *total - instance().handles.size() * kPage;
    return cuda::kSuccess;
  };
}

inline void FakeGpu::add_context(cuda::Driver& d) {
  d.context_retain = [](cuda::Context*, cuda::Device) {
    ++instance().contexts;
    return cuda::kSuccess;
  };
  d.context_release = [](cuda::Device) {
    --instance().contexts;
    return cuda::kSuccess;
  };
  d.context_state = [](cuda::Device device, unsigned*, int* active) {
    *active = device == 0 || instance().peers_in_use.contains(device) ? 1 : 0;
    return cuda::kSuccess;
  };
  d.can_access_peer = [](int* access, cuda::Device peer, cuda::Device) {
    *access = instance().distant_peers.contains(peer) ? 0 : 1;
    return cuda::kSuccess;
  };
  d.context_push = [](cuda::Context) { return instance().context_gone ? 201 : cuda::kSuccess; };
  d.context_pop = [](cuda::Context*) { return cuda::kSuccess; };
  d.context_synchronize = [] {
    ++instance().device_waits;
    return instance().capturing.empty() ? cuda::kSuccess : cuda::kCaptureUnsupported;
  };
  d.exchange_capture_mode = [](int*) { return cuda::kSuccess; };
  d.stream_is_capturing = [](cuda::Stream stream, int* status) {
    *status = instance().capturing.contains(number_of(stream)) ? 1 : 0;
    return cuda::kSuccess;
  };
}

inline void FakeGpu::add_memory(cuda::Driver& d) {
  d.address_reserve = [](cuda::Address* address, size_t, size_t, cuda::Address,
                         unsigned long long) {
    *address = uint64_t{1} << 40;
    return cuda::kSuccess;
  };
  d.address_free = [](cuda::Address, size_t) { return cuda::kSuccess; };
  d.granularity = [](size_t* bytes, const cuda::AllocationProperties*, int) {
    *bytes = kPage;
    return cuda::kSuccess;
  };
  d.memory_create = [](cuda::MemoryHandle* handle, size_t, const cuda::AllocationProperties*,
                       unsigned long long) {
    const std::lock_guard guard(books());
    FakeGpu& gpu = instance();
    if (gpu.handles.size() == gpu.pages) return cuda::kOutOfMemory;
    *handle = ++gpu.last;
    gpu.handles.insert(*handle);
    return cuda::kSuccess;
  };
  d.memory_release = [](cuda::MemoryHandle handle) {
    const std::lock_guard guard(books());
    return instance().handles.erase(handle) == 1 ? cuda::kSuccess : kInvalidValue;
  };
}

inline void FakeGpu::add_mapping(cuda::Driver& d) {
  d.memory_map = [](cuda::Address address, size_t, size_t, cuda::MemoryHandle handle,
                    unsigned long long) {
    const std::lock_guard guard(books());
    FakeGpu& gpu = instance();
    const bool fits = gpu.handles.contains(handle) && !gpu.mappings.contains(address);
    EXPECT_TRUE(fits);
    gpu.mappings[address] = {handle, {}};
    return fits ? cuda::kSuccess : kInvalidValue;
  };
  d.memory_unmap = [](cuda::Address address, size_t) {
    const std::lock_guard guard(books());
    return instance().mappings.erase(address) == 1 ? cuda::kSuccess : kInvalidValue;
  };
  d.memory_access = [](cuda::Address address, size_t bytes, const cuda::AccessDescription* access,
                       size_t count) {
    const std::lock_guard guard(books());
    FakeGpu& gpu = instance();
    for (size_t i = 0; i < count; ++i) {
      if (gpu.bad_peers.contains(access[i].location.id)) return kInvalidValue;
    }
    for (uint64_t at = address; at < address + bytes; at += kPage) {
      for (size_t i = 0; i < count; ++i) {
        gpu.mappings.at(at).accessible_from.insert(access[i].location.id);
      }
    }
    return cuda::kSuccess;
  };
}

inline void FakeGpu::add_events(cuda::Driver& d) {
  d.event_create = [](cuda::EventHandle* event, unsigned) {
    *event = reinterpret_cast<void*>(++instance().last);
    instance().events.insert(number_of(*event));
    return cuda::kSuccess;
  };
  d.event_destroy = [](cuda::EventHandle event) {
    return instance().events.erase(number_of(event)) == 1 ? cuda::kSuccess : kInvalidValue;
  };
  d.event_record = [](cuda::EventHandle event, cuda::Stream stream) {
    FakeGpu& gpu = instance();
    EXPECT_FALSE(gpu.destroyed.contains(number_of(stream))) << "this would crash";
    gpu.captured_events.erase(number_of(event));
    if (gpu.capturing.contains(number_of(stream))) gpu.captured_events.insert(number_of(event));
    return cuda::kSuccess;
  };
  const auto use = [](cuda::EventHandle event) {
    return instance().captured_events.contains(number_of(event)) ? kCapturedEvent : cuda::kSuccess;
  };
  d.event_query = use;
  d.event_synchronize = use;
  d.stream_wait = [](cuda::Stream stream, cuda::EventHandle, unsigned) {
    const bool capturing = instance().capturing.contains(number_of(stream));
    EXPECT_FALSE(capturing) << "this would end the capture";
    return capturing ? kInvalidValue : cuda::kSuccess;
  };
}

inline void FakeGpu::add_host_memory(cuda::Driver& d) {
  d.host_register = [](void* address, size_t bytes, unsigned flags) {
    EXPECT_EQ(flags, cuda::kHostRegisterPortable);
    FakeGpu& gpu = instance();
    if (gpu.registering != cuda::kSuccess) return gpu.registering;
    const bool fresh = gpu.registered.emplace(number_of(address), bytes).second;
    return fresh ? cuda::kSuccess : cuda::kHostMemoryAlreadyRegistered;
  };
  d.host_unregister = [](void* address) {
    const bool known = instance().registered.erase(number_of(address)) == 1;
    return known ? cuda::kSuccess : cuda::kHostMemoryNotRegistered;
  };
}

inline cuda::Driver FakeGpu::functions() {
  cuda::Driver d{};
  add_device(d);
  add_context(d);
  add_memory(d);
  add_mapping(d);
  add_events(d);
  add_host_memory(d);
  return d;
}

}  // namespace vramkit
