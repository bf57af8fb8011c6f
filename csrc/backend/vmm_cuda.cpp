#include "backend/vmm_cuda.h"

#include <algorithm>
#include <new>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

using cuda::check;
using cuda::driver;
using cuda::Entered;
using cuda::warn_on_failure;

CudaVmmBackend::CudaVmmBackend(int device) : CudaDevice(device), wanted_(properties()) {
  if (attribute(cuda::kAttributeVirtualMemory) != 0) return;
  throw_error(
      Status::kInvalidArgument,
      "cuda:%d has no virtual memory management (a virtual GPU, or an old driver): no pool can be "
      "made on it",
      device);
}

CudaVmmBackend::~CudaVmmBackend() {
  const Entered entered(context(), std::nothrow);
  if (!entered) return;
  for (uint64_t page = 0; page < handles_.size(); ++page) {
    if (handles_[page] != 0) release_handle(page);
  }
  if (base_ != 0)
    warn_on_failure(driver().address_free(base_, address_bytes_), "cuMemAddressFree", base_);
}

cuda::AllocationProperties CudaVmmBackend::properties() const {
  cuda::AllocationProperties wanted{};
  wanted.type = cuda::kAllocationPinned;
  wanted.location = {cuda::kLocationDevice, device()};
  // Neither can be added to memory later: sharing with other processes, and network cards.
  wanted.handle_types =
      attribute(cuda::kAttributePosixHandles) != 0 ? cuda::kPosixFileDescriptor : 0;
  wanted.flags.gpu_direct_rdma = attribute(cuda::kAttributeRdmaWithVirtualMemory) != 0 ? 1 : 0;
  return wanted;
}

void CudaVmmBackend::reserve(const Layout& layout) {
  const Entered entered(context());
  size_t granularity = 0;
  check(driver().granularity(&granularity, &wanted_, 0), "cuMemGetAllocationGranularity");
  if (layout.page_bytes % granularity != 0) {
    throw_error(Status::kInvalidArgument,
                "cuda:%d: pages of %s are not a multiple of its granularity, %s", device(),
                mib(layout.page_bytes).c_str(), mib(granularity).c_str());
  }
  page_bytes_ = layout.page_bytes;
  address_bytes_ = (layout.primary_pages + layout.alias_pages) * page_bytes_;
  cuda::Address address = 0;
  check(driver().address_reserve(&address, address_bytes_, page_bytes_, 0, 0),
        "cuMemAddressReserve");
  base_ = address;
  handles_.resize(layout.primary_pages);
}

void CudaVmmBackend::create_physical(PageRun run) {
  const Entered entered(context());
  std::vector<uint64_t> made;
  made.reserve(run.count);
  for (uint64_t page = run.first; page < run.first + run.count; ++page) {
    cuda::MemoryHandle& handle = handles_[page];
    if (handle != 0) continue;
    const cuda::Result result = driver().memory_create(&handle, page_bytes_, &wanted_, 0);
    if (result == cuda::kSuccess) {
      made.push_back(page);
      ++held_;
      continue;
    }
    handle = 0;
    for (const uint64_t each : made) release_handle(each);
    size_t free = 0;
    size_t total = 0;
    driver().memory_info(&free, &total);
    if (result != cuda::kOutOfMemory) check(result, "cuMemCreate");
    throw_error(
        Status::kOutOfMemory,
        "cuda:%d has no memory for %s more: %s of its %s are free; ask for less, or free what "
        "other programs and PyTorch's own allocator hold (torch.cuda.empty_cache())",
        device(), mib(run.count * page_bytes_).c_str(), mib(free).c_str(), mib(total).c_str());
  }
}

uint64_t CudaVmmBackend::release_physical(PageRun run) {
  const Entered entered(context());
  uint64_t released = 0;
  for (uint64_t page = run.first; page < run.first + run.count; ++page) {
    if (handles_[page] == 0) continue;
    release_handle(page);
    ++released;
  }
  return released;
}

void CudaVmmBackend::map_primary(PageRun run) {
  create_physical(run);
  const Entered entered(context());
  map_pages(primary_address(run.first), run);
}

void CudaVmmBackend::unmap_and_release(PageRun run) {
  const Entered entered(context());
  unmap_pages(primary_address(run.first), run.count);
  for (uint64_t i = 0; i < run.count; ++i) release_handle(run.first + i);
}

void CudaVmmBackend::map_alias(uint64_t address, PageRun run) {
  const Entered entered(context());
  map_pages(address, run);
}

void CudaVmmBackend::unmap_alias(uint64_t address, PageRun run) {
  const Entered entered(context());
  unmap_pages(address, run.count);
}

void CudaVmmBackend::map_pages(uint64_t address, PageRun run) {
  const std::vector<cuda::AccessDescription> access = accesses();
  uint64_t mapped = 0;
  cuda::Result result = cuda::kSuccess;
  const char* call = "cuMemMap";
  for (; mapped < run.count && result == cuda::kSuccess; ++mapped) {
    result = driver().memory_map(address + mapped * page_bytes_, page_bytes_, 0,
                                 handles_[run.first + mapped], 0);
  }
  if (result == cuda::kSuccess) {
    call = "cuMemSetAccess";
    result = set_access(address, run.count, access);
    if (result == cuda::kSuccess) return;
  } else {
    --mapped;
  }
  unmap_pages(address, mapped);
  check(result, call);
}

void CudaVmmBackend::unmap_pages(uint64_t address, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = address + i * page_bytes_;
    warn_on_failure(driver().memory_unmap(at, page_bytes_), "cuMemUnmap", at);
  }
}

void CudaVmmBackend::release_handle(uint64_t page) {
  warn_on_failure(driver().memory_release(handles_[page]), "cuMemRelease", handles_[page]);
  handles_[page] = 0;
  --held_;
}

std::vector<cuda::AccessDescription> CudaVmmBackend::accesses() const {
  std::vector<cuda::AccessDescription> access;
  access.push_back({{cuda::kLocationDevice, device()}, cuda::kReadWrite});
  for (const int peer : peers_) access.push_back({{cuda::kLocationDevice, peer}, cuda::kReadWrite});
  return access;
}

cuda::Result CudaVmmBackend::set_access(uint64_t address, uint64_t pages,
                                        const std::vector<cuda::AccessDescription>& access) {
  return driver().memory_access(address, pages * page_bytes_, access.data(), access.size());
}

void CudaVmmBackend::add_peer(int device) {
  if (std::find(peers_.begin(), peers_.end(), device) == peers_.end()) peers_.push_back(device);
}

std::vector<int> CudaVmmBackend::peers_in_use() const {
  int count = 0;
  check(driver().device_count(&count), "cuDeviceGetCount");
  std::vector<int> peers;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cuda::Device peer = 0;
    unsigned flags = 0;
    int active = 0;
    int access = 0;
    check(driver().device_get(&peer, ordinal), "cuDeviceGet");
    if (peer == handle()) continue;
    check(driver().context_state(peer, &flags, &active), "cuDevicePrimaryCtxGetState");
    if (active == 0) continue;
    check(driver().can_access_peer(&access, peer, handle()), "cuDeviceCanAccessPeer");
    if (access != 0) peers.push_back(ordinal);
  }
  return peers;
}

void CudaVmmBackend::remove_peer(int device) { std::erase(peers_, device); }

void CudaVmmBackend::grant_peers(uint64_t address, uint64_t pages) {
  const Entered entered(context());
  check(set_access(address, pages, accesses()), "cuMemSetAccess");
}

}  // namespace vramkit
