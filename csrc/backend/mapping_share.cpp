#include "backend/mapping_share.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>

#include "base/error.h"

namespace vramkit {
namespace {

/// After so many pages the mappings of others are counted again.
constexpr uint64_t kCountEvery = 1024;

std::atomic<uint64_t> in_use = 0;                 // by all pools
std::atomic<uint64_t> others = 0;                 // mappings of the rest when last counted
std::atomic<uint64_t> since_count = kCountEvery;  // pages taken: the first one has others counted

/// Calls see(part) for the file's parts until it returns false. Allocates nothing.
template <typename See>
void read_file(const char* path, See see) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  std::array<char, 16384> buffer;
  ssize_t got = 0;
  do {
    got = ::read(file, buffer.data(), buffer.size());
  } while (got > 0 && see(buffer.data(), buffer.data() + got));
  ::close(file);
}

/// For all pools together.
uint64_t allowance(uint64_t limit) {
  const uint64_t taken = others.load(std::memory_order_relaxed) + limit / 8;
  return taken >= limit ? 0 : std::min(limit / 2, limit - taken);
}

}  // namespace

uint64_t mapping_limit() {
  uint64_t limit = 65530;  // the kernel's default
  read_file("/proc/sys/vm/max_map_count", [&](const char* from, const char* to) {
    std::from_chars(from, to, limit);
    return false;
  });
  return limit;
}

uint64_t count_mappings() {
  uint64_t count = 0;
  read_file("/proc/self/maps", [&](const char* from, const char* to) {
    count += static_cast<uint64_t>(std::count(from, to, '\n'));
    return true;
  });
  return count;
}

bool MappingShare::take(uint64_t pages) {
  const uint64_t limit = mapping_limit();
  if (held_ + pages > limit / 4) return false;
  if (since_count.fetch_add(pages) + pages > kCountEvery) {
    since_count.store(0);
    const uint64_t all = count_mappings();
    others.store(all - std::min(all, in_use.load()));
  }
  const uint64_t most = allowance(limit);
  uint64_t before = in_use.load();
  do {
    if (before + pages > most) return false;
  } while (!in_use.compare_exchange_weak(before, before + pages));
  held_ += pages;
  return true;
}

void MappingShare::give_back(uint64_t pages) noexcept {
  in_use -= pages;
  held_ -= pages;
}

uint64_t MappingShare::most() const {
  const uint64_t limit = mapping_limit();
  const uint64_t all = allowance(limit);
  const uint64_t left = all - std::min(all, in_use.load());
  return std::min(held_ + left, limit / 4);
}

std::string MappingShare::describe() const {
  const uint64_t limit = mapping_limit();
  const auto number = [](uint64_t value) { return static_cast<unsigned long long>(value); };
  return format(
      "the kernel allows this process %llu mappings (vm.max_map_count), and it has %llu; of these "
      "all pools may use %llu for stitched pages and use %llu, one pool may use %llu and this one "
      "uses %llu; raise the limit (sysctl vm.max_map_count), take a larger page_bytes, or close "
      "other pools",
      number(limit), number(count_mappings()), number(allowance(limit)), number(in_use.load()),
      number(limit / 4), number(held_));
}

void MappingShare::forget_parents() noexcept {
  in_use = 0;
  since_count = kCountEvery;
}

}  // namespace vramkit
