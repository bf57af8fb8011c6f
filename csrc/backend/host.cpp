#include "backend/host.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace vramkit {
namespace {

constexpr uint64_t kHugePage = 2 * kMiB;

/// Fresh readable and writable memory at a place inside the reserved range.
void make_accessible(uint64_t address, uint64_t bytes) {
  void* got = ::mmap(pointer(address), bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (got == MAP_FAILED) throw_mapping_error("map", bytes);
  ::madvise(got, bytes, MADV_HUGEPAGE);
}

}  // namespace

void HostBackend::reserve(const Layout& layout) {
  page_bytes_ = layout.page_bytes;
  const auto lead = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  AddressRange range((layout.primary_pages + layout.alias_pages) * page_bytes_,
                     std::max(page_bytes_, kHugePage), lead);
  make_accessible(range.base() - lead, lead);
  // The kernel ties an area to its address at its first fault: only then do pages that went away
  // and came back merge with their neighbours again. This page stands in front of the primary
  // addresses, where no huge page has room: a byte behind them would take one.
  *static_cast<volatile char*>(pointer(range.base() - lead)) = 0;
  range_ = std::move(range);
}

/// Not earlier: where the kernel overcommits nothing (vm.overcommit_memory=2), what is accessible
/// counts as used.
void HostBackend::create_physical(PageRun run) {
  const uint64_t end = run.first + run.count;
  if (end <= accessible_pages_) return;
  make_accessible(primary_address(accessible_pages_), (end - accessible_pages_) * page_bytes_);
  accessible_pages_ = end;
}

void HostBackend::map_primary(PageRun run) {
  create_physical(run);
}  // the memory comes at the first touch

void HostBackend::unmap_and_release(PageRun run) {
  if (::madvise(pointer(primary_address(run.first)), run.count * page_bytes_, MADV_DONTNEED) != 0) {
    throw_errno("cannot give %s back", mib(run.count * page_bytes_).c_str());
  }
}

void HostBackend::map_alias(uint64_t address, PageRun run) {
  if (move(primary_address(run.first), address, run)) return;
  make_accessible(address, run.count * page_bytes_);
  ::madvise(pointer(primary_address(run.first)), run.count * page_bytes_, MADV_DONTNEED);
}

void HostBackend::unmap_alias(uint64_t address, PageRun run) {
  const uint64_t bytes = run.count * page_bytes_;
  if (!move(address, primary_address(run.first), run)) {
    // Home faults fresh memory in, if the kernel has not unmapped it before it refused to move.
    if (::madvise(pointer(primary_address(run.first)), bytes, MADV_DONTNEED) != 0) {
      make_accessible(primary_address(run.first), bytes);
    }
    ::madvise(pointer(address), bytes, MADV_DONTNEED);
  }
  // One inaccessible area again, so that what the moves split merges.
  void* got = ::mmap(pointer(address), bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (got == MAP_FAILED) report("cannot close %p after its pages went back", pointer(address));
}

bool HostBackend::move(uint64_t from, uint64_t to, PageRun run) {
  // Moved before, these pages may be areas of their own. Kernels before 6.17 refuse to move several
  // at once, after they have unmapped the destination: a gap for whoever maps next.
  for (uint64_t offset = 0; offset < run.count * page_bytes_; offset += page_bytes_) {
    if (!can_move_ || !move_page(from + offset, to + offset)) return false;
  }
  return true;
}

bool HostBackend::move_page(uint64_t from, uint64_t to) {
  void* got = ::mremap(pointer(from), page_bytes_, page_bytes_,
                       MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, pointer(to));
  if (got == MAP_FAILED && errno == EINVAL) can_move_ = false;  // a kernel before 5.7
  return got != MAP_FAILED;
}

void HostBackend::discard_in_child(uint64_t address, uint64_t bytes) {
  ::madvise(pointer(address), bytes, MADV_DONTNEED);
}

}  // namespace vramkit
