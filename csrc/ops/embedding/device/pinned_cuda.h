// Host memory that kernels read and write over the bus.
#pragma once

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/huge_pages.h"
#include "ops/embedding/device/pinned.h"
#include "ops/embedding/memory.h"

namespace vramkit::embedding::device {

/// Locked pages, huge ones where the kernel has them: fewer translations for the device, and faster
/// to lock. The destructor does not wait for kernels.
class PinnedMemory : public Memory {
 public:
  /// Throws Error(kOutOfMemory).
  explicit PinnedMemory(uint64_t bytes) : pages_(bytes), registration_(pages_) {}
  char* data() override { return registration_.device_address(); }

 private:
  class Pages {
   public:
    explicit Pages(uint64_t bytes)
        : bytes_(bytes),
          data_(
              ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
      if (data_ == MAP_FAILED) throw_unpinned(bytes, std::strerror(errno));
      prefer_huge_pages(static_cast<char*>(data_), bytes);
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() {
      if (::munmap(data_, bytes_) != 0) std::perror("vramkit: munmap failed");
    }
    uint64_t bytes() const { return bytes_; }
    void* data() const { return data_; }

   private:
    uint64_t bytes_;
    void* data_;
  };

  class Registration {
   public:
    explicit Registration(const Pages& pages) : data_(pages.data()) {
      const cudaError_t status =
          cudaHostRegister(data_, pages.bytes(), cudaHostRegisterMapped | cudaHostRegisterPortable);
      if (status == cudaSuccess) return;
      cudaGetLastError();  // else the next kernel would seem to have failed
      throw_unpinned(pages.bytes(), cudaGetErrorString(status));
    }
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;
    ~Registration() {
      const cudaError_t status = cudaHostUnregister(data_);
      if (status == cudaSuccess || status == cudaErrorCudartUnloading) return;
      std::fprintf(stderr, "vramkit: cudaHostUnregister(%p) failed: %s\n", data_,
                   cudaGetErrorString(status));
    }
    char* device_address() const {
      void* address = nullptr;
      const cudaError_t status = cudaHostGetDevicePointer(&address, data_, 0);
      if (status != cudaSuccess) throw_unpinned(0, cudaGetErrorString(status));
      return static_cast<char*>(address);
    }

   private:
    void* data_;
  };

  Pages pages_;
  Registration registration_;
};

}  // namespace vramkit::embedding::device
