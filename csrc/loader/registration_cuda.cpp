#include "loader/registration_cuda.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "backend/driver_cuda.h"
#include "base/bytes.h"
#include "base/error.h"
#include "loader/context_cuda.h"

namespace vramkit {
namespace {

using cuda::check;
using cuda::driver;

/// What is registered, by address. Never destroyed: the driver ends before static objects do.
struct Registrations {
  std::mutex mutex;
  std::map<uint64_t, PrimaryContext> held;
  std::atomic<pid_t> process = 0;  // the one that registered first

  static Registrations& instance() {
    static auto* const made = new Registrations;
    return *made;
  }

  /// Before the lock, which a child may find taken for ever.
  void check_process() const {
    const pid_t first = process;
    if (first != 0 && first != ::getpid()) {
      throw_error(
          Status::kForked,
          "host memory was registered by process %d, a parent of this forked process, where the "
          "CUDA driver does not work; start processes that use CUDA by spawn",
          static_cast<int>(first));
    }
  }
};

std::string locked_memory_limit() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : mib(limit.rlim_cur);
}

[[noreturn]] void refuse(cuda::Result result, uint64_t address, uint64_t bytes, int device) {
  if (result == cuda::kHostMemoryAlreadyRegistered) {
    throw_error(Status::kInvalidArgument,
                "%s of host memory at 0x%llx are registered already, or a part of them is",
                mib(bytes).c_str(), static_cast<unsigned long long>(address));
  }
  throw_error(
      Status::kSystem,
      "cuda:%d: the driver cannot register %s of host memory: %s (%d). The limit on locked memory "
      "(ulimit -l) is %s; raise it, or register less",
      device, mib(bytes).c_str(), cuda::name_of(result), result, locked_memory_limit().c_str());
}

}  // namespace

void host_register(uint64_t address, uint64_t bytes, int device, bool read_only) {
  uint64_t end = 0;
  if (address == 0 || bytes == 0 || __builtin_add_overflow(address, bytes, &end)) {
    throw_error(Status::kInvalidArgument,
                "cannot register %llu bytes of host memory at address 0x%llx",
                static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(address));
  }
  Registrations& registrations = Registrations::instance();
  registrations.check_process();
  driver();  // throws where there is none
  pid_t none = 0;
  registrations.process.compare_exchange_strong(none, ::getpid());
  const std::lock_guard guard(registrations.mutex);
  const auto [entry, fresh] = registrations.held.try_emplace(address, device);
  if (!fresh) refuse(cuda::kHostMemoryAlreadyRegistered, address, bytes, device);
  cuda::Result result = cuda::kSuccess;
  try {
    const cuda::Entered entered(entry->second.get());
    const unsigned access = read_only ? cuda::kHostRegisterReadOnly : 0;
    result = driver().host_register(reinterpret_cast<void*>(address), bytes,
                                    cuda::kHostRegisterPortable | access);
    if (result != cuda::kSuccess) refuse(result, address, bytes, device);
  } catch (...) {
    registrations.held.erase(entry);
    throw;
  }
}

void host_unregister(uint64_t address) {
  Registrations& registrations = Registrations::instance();
  registrations.check_process();
  const std::lock_guard guard(registrations.mutex);
  const auto entry = registrations.held.find(address);
  if (entry == registrations.held.end()) {
    throw_error(Status::kInvalidArgument, "no host memory was registered at address 0x%llx",
                static_cast<unsigned long long>(address));
  }
  {
    // Where the context is gone, at process exit or after a reset, the registration is gone too.
    const cuda::Entered entered(entry->second.get(), std::nothrow);
    if (entered) {
      const cuda::Result result = driver().host_unregister(reinterpret_cast<void*>(address));
      if (result != cuda::kDeinitialized) check(result, "cuMemHostUnregister");
    }
  }
  registrations.held.erase(entry);
}

}  // namespace vramkit
