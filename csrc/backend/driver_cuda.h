// The CUDA driver, opened at run time: no CUDA header and no CUDA library is needed to build or
// load the pool core. The declarations follow the driver's documented interface, which
// tests/cpp/driver_cuda_test.cpp compares with the toolkit's cuda.h where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace vramkit::cuda {

using Result = int;
using Device = int;
using Context = void*;
using Stream = void*;
using EventHandle = void*;
using Address = unsigned long long;
using MemoryHandle = unsigned long long;

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kDeinitialized = 4;
inline constexpr Result kNotReady = 600;
inline constexpr Result kHostMemoryAlreadyRegistered = 712;
inline constexpr Result kHostMemoryNotRegistered = 713;
inline constexpr Result kCaptureUnsupported = 900;

struct Location {
  int type;  // 1: device
  int id;
};
struct AllocationProperties {
  int type;          // 1: pinned
  int handle_types;  // 1: POSIX file descriptor
  Location location;
  void* windows_metadata;
  struct {
    unsigned char compression;
    unsigned char gpu_direct_rdma;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
struct AccessDescription {
  Location location;
  int flags;  // 3: read and write
};

struct CopyAttributes {
  int source_access_order;  // 1: in stream order
  Location source_hint;
  Location destination_hint;
  unsigned flags;
};

inline constexpr int kLocationDevice = 1;
inline constexpr int kAllocationPinned = 1;
inline constexpr int kPosixFileDescriptor = 1;
inline constexpr int kReadWrite = 3;
inline constexpr int kCaptureRelaxed = 2;
inline constexpr int kSourceInStreamOrder = 1;
inline constexpr unsigned kEventWithoutTiming = 2;
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostRegisterReadOnly = 8;
inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributePosixHandles = 103;
inline constexpr int kAttributeRdmaWithVirtualMemory = 110;

/// One pointer for each driver function in use.
struct Driver {
  Result (*init)(unsigned);
  Result (*error_name)(Result, const char**);
  Result (*device_get)(Device*, int);
  Result (*device_count)(int*);
  Result (*device_attribute)(int*, int, Device);
  Result (*device_memory)(size_t*, Device);
  Result (*memory_info)(size_t*, size_t*);
  Result (*context_retain)(Context*, Device);
  Result (*context_release)(Device);
  Result (*context_state)(Device, unsigned*, int*);
  Result (*can_access_peer)(int*, Device, Device);
  Result (*context_push)(Context);
  Result (*context_pop)(Context*);
  Result (*context_synchronize)();
  Result (*exchange_capture_mode)(int*);
  Result (*stream_is_capturing)(Stream, int*);
  Result (*address_reserve)(Address*, size_t, size_t, Address, unsigned long long);
  Result (*address_free)(Address, size_t);
  Result (*granularity)(size_t*, const AllocationProperties*, int);
  Result (*memory_create)(MemoryHandle*, size_t, const AllocationProperties*, unsigned long long);
  Result (*memory_release)(MemoryHandle);
  Result (*memory_map)(Address, size_t, size_t, MemoryHandle, unsigned long long);
  Result (*memory_unmap)(Address, size_t);
  Result (*memory_access)(Address, size_t, const AccessDescription*, size_t);
  Result (*host_register)(void*, size_t, unsigned);
  Result (*host_unregister)(void*);
  // Both are optional: drivers have the first since CUDA 13.0, the second since 12.8.
  Result (*copy_batch)(Address* to, Address* from, size_t* sizes, size_t count,
                       CopyAttributes* attributes, size_t* first_copies, size_t attribute_count,
                       Stream);
  Result (*copy_batch_12)(Address* to, Address* from, size_t* sizes, size_t count,
                          CopyAttributes* attributes, size_t* first_copies, size_t attribute_count,
                          size_t* failed_copy, Stream);
  Result (*event_create)(EventHandle*, unsigned);
  Result (*event_destroy)(EventHandle);
  Result (*event_record)(EventHandle, Stream);
  Result (*event_query)(EventHandle);
  Result (*event_synchronize)(EventHandle);
  Result (*stream_wait)(Stream, EventHandle, unsigned);
};

/// Opens and initialises the driver at the first call. Throws `Error` where there is none.
const Driver& driver();

/// For tests on machines without a GPU: what `driver` returns from now on. It is borrowed for ever.
void use_driver(const Driver& stand_in);

/// "CUDA_ERROR_OUT_OF_MEMORY".
const char* name_of(Result result);

/// Throws unless the call succeeded; running out of memory becomes Status::kOutOfMemory.
void check(Result result, const char* call);

/// For what runs in destructors: reports a failed call. At process exit the driver is gone before
/// us, and its memory with it: that is none.
void warn_on_failure(Result result, const char* call, unsigned long long what) noexcept;

/// Makes the device's primary context current for a scope, and lets captures of other threads live:
/// frees come from threads that have no context, and a call in the default capture mode would
/// invalidate any graph capture of the process.
class Entered {
 public:
  explicit Entered(Context context);
  /// For destructors: false, after a report, where the context is gone.
  Entered(Context context, const std::nothrow_t&) noexcept;
  explicit operator bool() const { return pushed_; }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;
  ~Entered();

 private:
  bool pushed_ = false;
  int mode_ = kCaptureRelaxed;
};

}  // namespace vramkit::cuda
