#include "backend/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

MemfdBackend::~MemfdBackend() {
  if (file_ >= 0) ::close(file_);
}

void MemfdBackend::reserve(const Layout& layout) {
  page_bytes_ = layout.page_bytes;
  AddressRange range((layout.primary_pages + layout.alias_pages) * page_bytes_, page_bytes_);
  file_ = ::memfd_create("vramkit", MFD_CLOEXEC);
  if (file_ < 0) throw_errno("cannot make a memory file");
  const uint64_t bytes = layout.primary_pages * page_bytes_;
  if (::ftruncate(file_, static_cast<off_t>(bytes)) != 0) {
    throw_errno("cannot size the memory file to %s", mib(bytes).c_str());
  }
  range_ = std::move(range);
}

void MemfdBackend::map_primary(PageRun run) { map_alias(primary_address(run.first), run); }

void MemfdBackend::unmap_and_release(PageRun run) {
  if (::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(run.first * page_bytes_),
                  static_cast<off_t>(run.count * page_bytes_)) != 0) {
    throw_errno("cannot give %s back", mib(run.count * page_bytes_).c_str());
  }
  close_address(primary_address(run.first), run.count);
}

void MemfdBackend::map_alias(uint64_t address, PageRun run) {
  void* got = ::mmap(pointer(address), run.count * page_bytes_, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED, file_, static_cast<off_t>(run.first * page_bytes_));
  if (got == MAP_FAILED) throw_mapping_error("map", run.count * page_bytes_);
}

void MemfdBackend::unmap_alias(uint64_t address, PageRun run) { close_address(address, run.count); }

void MemfdBackend::close_address(uint64_t address, uint64_t pages) {
  void* got = ::mmap(pointer(address), pages * page_bytes_, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (got == MAP_FAILED) throw_mapping_error("unmap", pages * page_bytes_);
}

}  // namespace vramkit
