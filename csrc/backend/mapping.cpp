#include "backend/mapping.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {

namespace {

/// The limit named in a control group's file; nothing there, or "max", is no limit.
uint64_t limit_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t limit = 0;
  return file >> limit ? limit : ~uint64_t{0};
}

/// Version 2 groups limit their children: each folder up to the root counts.
uint64_t group_limit() {
  uint64_t limit = limit_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::")) continue;
    std::string folder = line.substr(3);
    while (true) {
      limit = std::min(limit, limit_in("/sys/fs/cgroup" + folder + "/memory.max"));
      const size_t slash = folder.rfind('/');
      if (slash == std::string::npos || folder.size() <= 1) break;
      folder.resize(slash);
    }
    limit = std::min(limit, limit_in("/sys/fs/cgroup/memory.max"));
  }
  return limit;
}

/// What counts against `ulimit -v`.
uint64_t addresses_in_use() {
  std::ifstream file("/proc/self/statm");
  uint64_t pages = 0;
  file >> pages;
  return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

[[noreturn]] void refuse_addresses(uint64_t bytes) {
  const std::string reason = std::strerror(errno);
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    throw_error(Status::kSystem, "cannot reserve %s of address space: %s", mib(bytes).c_str(),
                reason.c_str());
  }
  throw_error(
      Status::kSystem,
      "cannot reserve %s of address space: %s; the process may have %s (`ulimit -v`) and has %s: "
      "make a smaller pool, or raise the limit",
      mib(bytes).c_str(), reason.c_str(), mib(limit.rlim_cur).c_str(),
      mib(addresses_in_use()).c_str());
}

}  // namespace

uint64_t machine_memory() {
  const auto pages = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES));
  return std::min(pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)), group_limit());
}

uint64_t address_allowance() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return ~uint64_t{0};
  const uint64_t used = addresses_in_use();
  return limit.rlim_cur > used ? (limit.rlim_cur - used) / 2 : 0;
}

void throw_mapping_error(const char* what, uint64_t bytes) {
  if (errno != ENOMEM) throw_errno("cannot %s %s", what, mib(bytes).c_str());
  throw_error(
      Status::kOutOfMemory,
      "cannot %s %s: the kernel has no memory for it, or this process has too many mappings: %llu "
      "of the %llu that vm.max_map_count allows",
      what, mib(bytes).c_str(), static_cast<unsigned long long>(count_mappings()),
      static_cast<unsigned long long>(mapping_limit()));
}

AddressRange::AddressRange(uint64_t bytes, uint64_t alignment, uint64_t lead_bytes)
    : bytes_(bytes), lead_bytes_(lead_bytes) {
  const uint64_t padded = bytes + alignment + lead_bytes;
  void* address =
      ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) refuse_addresses(padded);
  const uint64_t start = reinterpret_cast<uint64_t>(address);
  base_ = align_up(start + lead_bytes, alignment);
  const uint64_t first = base_ - lead_bytes;
  if (first > start) ::munmap(address, first - start);
  ::munmap(pointer(base_ + bytes), start + padded - base_ - bytes);
}

AddressRange::~AddressRange() {
  if (bytes_ > 0 && ::munmap(pointer(base_ - lead_bytes_), lead_bytes_ + bytes_) != 0) {
    report("munmap(%p, %llu) failed", pointer(base_), static_cast<unsigned long long>(bytes_));
  }
}

void AddressRange::swap(AddressRange& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  std::swap(lead_bytes_, other.lead_bytes_);
}

}  // namespace vramkit
