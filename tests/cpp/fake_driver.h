// Stands in for the CUDA driver on any machine: it keeps books and judges.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
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

  struct Copy {
    uint64_t to;
    uint64_t from;
    uint64_t bytes;
  };
  struct Batch {
    uint64_t stream;
    std::vector<Copy> copies;
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
  bool read_only = false;                     // whether the last memory was registered so
  cuda::Result registering = cuda::kSuccess;  // what the driver answers
  std::vector<Batch> batches;                 // of copies, none of them done
  cuda::Result copying = cuda::kSuccess;      // what the driver answers
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
  /// What `cuda::driver()` returns. Who changes it puts it right again.
  static cuda::Driver& table() {
    static cuda::Driver functions_in_use = functions();
    return functions_in_use;
  }
  /// How often the thread has made a context current.
  static int& entered() {
    thread_local int depth = 0;
    return depth;
  }
  /// Does the copies, the last ones first: a batch has no order.
  void run_batches() {
    for (const Batch& batch : batches) {
      for (auto copy = batch.copies.rbegin(); copy != batch.copies.rend(); ++copy) {
        std::memcpy(reinterpret_cast<void*>(copy->to), reinterpret_cast<const void*>(copy->from),
                    copy->bytes);
      }
    }
    batches.clear();
  }

  /// As new. Whatever was made on it before must be gone.
  static FakeGpu& fresh() {
    cuda::use_driver(table());
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
  static void add_copies(cuda::Driver& d);
  static cuda::Result queue(const cuda::Address* to, const cuda::Address* from, const size_t* sizes,
                            size_t count, const cuda::CopyAttributes& attributes,
                            cuda::Stream stream);
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
  d.context_push = [](cuda::Context) {
    if (instance().context_gone) return 201;
    ++entered();
    return cuda::kSuccess;
  };
  d.context_pop = [](cuda::Context*) {
    --entered();
    return cuda::kSuccess;
  };
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
    EXPECT_EQ(flags & ~cuda::kHostRegisterReadOnly, cuda::kHostRegisterPortable);
    FakeGpu& gpu = instance();
    gpu.read_only = (flags & cuda::kHostRegisterReadOnly) != 0;
    if (gpu.registering != cuda::kSuccess) return gpu.registering;
    const bool fresh = gpu.registered.emplace(number_of(address), bytes).second;
    return fresh ? cuda::kSuccess : cuda::kHostMemoryAlreadyRegistered;
  };
  d.host_unregister = [](void* address) {
    const bool known = instance().registered.erase(number_of(address)) == 1;
    return known ? cuda::kSuccess : cuda::kHostMemoryNotRegistered;
  };
}

inline cuda::Result FakeGpu::queue(const cuda::Address* to, const cuda::Address* from,
                                   const size_t* sizes, size_t count,
                                   const cuda::CopyAttributes& attributes, cuda::Stream stream) {
  EXPECT_GT(count, 0U);
  EXPECT_GT(entered(), 0);
  EXPECT_EQ(attributes.source_access_order, cuda::kSourceInStreamOrder);
  EXPECT_EQ(attributes.flags, 0U);
  FakeGpu& gpu = instance();
  if (gpu.copying != cuda::kSuccess) return gpu.copying;
  if (number_of(stream) <= 1) return kInvalidValue;
  if (gpu.capturing.contains(number_of(stream))) return cuda::kCaptureUnsupported;
  Batch& batch = gpu.batches.emplace_back(Batch{number_of(stream), {}});
  for (size_t i = 0; i < count; ++i) {
    if (to[i] == 0 || from[i] == 0 || sizes[i] == 0) return kInvalidValue;
    batch.copies.push_back({to[i], from[i], sizes[i]});
  }
  return cuda::kSuccess;
}

inline void FakeGpu::add_copies(cuda::Driver& d) {
  d.copy_batch = [](cuda::Address* to, cuda::Address* from, size_t* sizes, size_t count,
                    cuda::CopyAttributes* attributes, size_t* first_copies, size_t attribute_count,
                    cuda::Stream stream) {
    const bool for_all = attribute_count == 1 && first_copies[0] == 0;
    return for_all ? queue(to, from, sizes, count, *attributes, stream) : kInvalidValue;
  };
  d.copy_batch_12 = [](cuda::Address* to, cuda::Address* from, size_t* sizes, size_t count,
                       cuda::CopyAttributes* attributes, size_t* first_copies,
                       size_t attribute_count, size_t* failed_copy, cuda::Stream stream) {
    const bool for_all = attribute_count == 1 && first_copies[0] == 0;
    *failed_copy = count;
    return for_all ? queue(to, from, sizes, count, *attributes, stream) : kInvalidValue;
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
  add_copies(d);
  return d;
}

}  // namespace vramkit
