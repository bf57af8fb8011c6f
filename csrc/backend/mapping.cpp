#include "backend/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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

}  // namespace

uint64_t machine_memory() {
  const auto pages = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES));
  return std::min(pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)), group_limit());
}

AddressRange::AddressRange(uint64_t bytes, uint64_t alignment) : bytes_(bytes) {
  const uint64_t padded = bytes + alignment;
  void* address =
      ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    fail_errno("cannot reserve %s of address space; look at `ulimit -v`", mib(padded).c_str());
  }
  const uint64_t start = reinterpret_cast<uint64_t>(address);
  base_ = align_up(start, alignment);
  if (base_ > start) ::munmap(address, base_ - start);
  ::munmap(pointer(base_ + bytes), start + padded - base_ - bytes);
}

AddressRange::~AddressRange() {
  if (bytes_ > 0 && ::munmap(pointer(base_), bytes_) != 0) {
    report("munmap(%p, %llu) failed", pointer(base_), static_cast<unsigned long long>(bytes_));
  }
}

void AddressRange::swap(AddressRange& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
}

uint64_t mapping_allowance() {
  std::ifstream file("/proc/sys/vm/max_map_count");
  uint64_t limit = 65530;
  file >> limit;
  return std::max<uint64_t>(limit / 4, 16);
}

}  // namespace vramkit
