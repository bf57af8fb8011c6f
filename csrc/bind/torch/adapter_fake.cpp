// A pretended CUDA device: torch takes the decisions that it takes beside a GPU, without one.
//
// Under fake tensors no kernel runs, but torch still asks two singletons about the device: c10's
// registry of device guards, and at::CUDAHooksInterface. A build without CUDA, or a machine without
// a GPU, answers "there is none", and autograd, autocast and convolutions then fail or take the
// CPU's paths. While a scope is open, the answers are those of one target device; nothing touches a
// driver. Bound to one torch minor version, whose interfaces it derives from.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/headeronly/version.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "bind/c/vramkit.h"

namespace vramkit::adapter {
namespace {

constexpr auto kCuda = c10::DeviceType::CUDA;
constexpr auto kSlot = static_cast<std::size_t>(kCuda);

/// What torch is told of the device; written only while no scope is open.
struct Answers {
  long cudnn_version = 0;
};
Answers answers;

/// The stream that is current in this thread, 0 for the default one; autograd exchanges it, too.
thread_local c10::StreamId current_stream = 0;

/// One device with number 0. Its streams are numbers; nothing is ever queued on them.
class FakeGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kCuda; }
  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Device getDevice() const override { return device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const noexcept override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream exchangeStream(c10::Stream next) const noexcept override {
    return stream(std::exchange(current_stream, next.id()));
  }

  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}

 private:
  static c10::Device device() { return {kCuda, 0}; }
  static c10::Stream stream(c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, device(), id);
  }
};

/// What CPU code asks of CUDA. It has no data of its own, see kHooksBytes.
struct FakeHooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void init() const override {}
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}

  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasMAGMA() const override { return true; }
  bool hasCuSOLVER() const override { return true; }
  bool hasCuBLASLt() const override { return true; }
  bool hasCuDNN() const override { return has_cudnn(); }
  bool compiledWithCuDNN() const override { return has_cudnn(); }
  bool supportsDilatedConvolutionWithCuDNN() const override { return has_cudnn(); }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return has_cudnn(); }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return has_cudnn(); }
  bool supportsBFloat16RNNWithCuDNN() const override { return has_cudnn(); }
  long versionCuDNN() const override { return answers.cudnn_version; }
  long versionRuntimeCuDNN() const override { return answers.cudnn_version; }
  double batchnormMinEpsilonCuDNN() const override { return 1e-5; }
  std::string showConfig() const override { return "  - CUDA Runtime of an estimate\n"; }

 private:
  static bool has_cudnn() { return answers.cudnn_version > 0; }
};

// at::detail::getCUDAHooks() makes its object at first use, from a registry, and keeps it for ever
// without a way to set another; torch may have used it long ago. So the object itself gives way: a
// FakeHooks is constructed in its storage, and the object's bytes are put back afterwards. That
// needs all three classes to be of one size, that of their one pointer (libtorch_cuda's CUDAHooks
// has no data either), and that no call is under way in another thread.
constexpr std::size_t kHooksBytes = sizeof(at::CUDAHooksInterface);
static_assert(sizeof(FakeHooks) == kHooksBytes, "FakeHooks must hold no data");
static_assert(kHooksBytes == sizeof(void*), "at::CUDAHooksInterface must hold no data");

std::mutex scope_lock;
int open_scopes = 0;
const c10::impl::DeviceGuardImplInterface* previous_guard = nullptr;
std::array<std::byte, kHooksBytes> previous_hooks;

void* hooks_storage() { return const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks()); }

void take_over(long cudnn_version) {
  // Never destroyed: a stream guard of a thread that is still winding down may ask it.
  static const auto* const guard = new FakeGuard;
  answers.cudnn_version = cudnn_version;
  previous_guard = c10::impl::device_guard_impl_registry[kSlot].exchange(guard);
  std::memcpy(previous_hooks.data(), hooks_storage(), kHooksBytes);
  new (hooks_storage()) FakeHooks;
}

void give_back() {
  std::memcpy(hooks_storage(), previous_hooks.data(), kHooksBytes);
  c10::impl::device_guard_impl_registry[kSlot].store(previous_guard);
}

}  // namespace
}  // namespace vramkit::adapter

extern "C" {

// The torch release whose headers this library was compiled with.
VRAMKIT_API const char* vramkit_adapter_torch_version(void) { return TORCH_VERSION; }

// Pretends one CUDA device, in the whole process, until vramkit_fake_leave() has been called as
// often. `cudnn_version` is what torch.backends.cudnn.version() gives, 0 for no cuDNN; it counts
// for the outermost scope. No other thread may use torch on CUDA meanwhile.
VRAMKIT_API void vramkit_fake_enter(int64_t cudnn_version) {
  namespace own = vramkit::adapter;
  const std::lock_guard lock(own::scope_lock);
  if (own::open_scopes++ == 0) own::take_over(static_cast<long>(cudnn_version));
}

// Ends a scope; the last one restores what was there. Returns how many are still open.
VRAMKIT_API int32_t vramkit_fake_leave(void) {
  namespace own = vramkit::adapter;
  const std::lock_guard lock(own::scope_lock);
  if (own::open_scopes > 0 && --own::open_scopes == 0) own::give_back();
  return own::open_scopes;
}

// The number of the stream that is current in this thread; 0 for the default one.
VRAMKIT_API int64_t vramkit_fake_stream(void) { return vramkit::adapter::current_stream; }

// Makes another stream current in this thread, and returns the number of the one before.
VRAMKIT_API int64_t vramkit_fake_exchange_stream(int64_t number) {
  return std::exchange(vramkit::adapter::current_stream, number);
}

// What torch is told now: bit 0 whether a device guard for CUDA is registered, bit 1 whether there
// is CUDA, bit 2 whether there is cuDNN. Compiled against the headers alone, so an answer that does
// not match what was set says that the headers are of another torch.
VRAMKIT_API uint32_t vramkit_fake_answers(void) {
  const auto& hooks = at::detail::getCUDAHooks();
  const bool guard = c10::impl::hasDeviceGuardImpl(vramkit::adapter::kCuda);
  return static_cast<uint32_t>(guard) | static_cast<uint32_t>(hooks.hasCUDA()) << 1U |
         static_cast<uint32_t>(hooks.compiledWithCuDNN()) << 2U;
}

}  // extern "C"
