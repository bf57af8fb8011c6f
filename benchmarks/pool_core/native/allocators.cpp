#include "allocators.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace bench {
namespace {

template <class Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) fail(std::string("the core library lacks ") + name);
  return reinterpret_cast<Function>(found);
}

void* open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(dlerror());
  return library;
}

bool is_mapped(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(name) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

void fail(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  std::exit(1);
}

MallocAllocator::MallocAllocator(const std::string& expected) {
  if (!is_mapped(expected)) fail("no file named like '" + expected + "' is mapped: not preloaded");
}

// Out of line, so that the compiler can neither remove a malloc+free pair nor see through it.
void* MallocAllocator::allocate(std::size_t size_bytes, std::uint64_t /*stream*/) {
  void* address = std::malloc(size_bytes);
  if (address == nullptr) fail("malloc of " + std::to_string(size_bytes) + " bytes failed");
  return address;
}

void MallocAllocator::release(void* address) { std::free(address); }

void* NoAllocator::allocate(std::size_t /*size_bytes*/, std::uint64_t /*stream*/) { return this; }

void NoAllocator::release(void* /*address*/) {}

PoolAllocator::PoolAllocator(const std::string& library_path, std::uint64_t capacity_bytes)
    : library_(open_library(library_path)),
      last_error_(symbol<decltype(last_error_)>(library_, "vramkit_last_error")),
      alloc_(symbol<decltype(alloc_)>(library_, "vramkit_alloc")),
      free_(symbol<decltype(free_)>(library_, "vramkit_free")) {
  vramkit_pool_config config = {};
  config.backend = "null";
  config.label = "bench";
  config.capacity_bytes = capacity_bytes;
  auto create = symbol<decltype(&vramkit_pool_create)>(library_, "vramkit_pool_create");
  if (create(&config, &pool_) != VRAMKIT_OK) fail(last_error_());
}

PoolAllocator::~PoolAllocator() {
  auto release = symbol<decltype(&vramkit_pool_release)>(library_, "vramkit_pool_release");
  if (release(pool_) != VRAMKIT_OK) fail(last_error_());
}

Books PoolAllocator::books() const {
  auto read = symbol<decltype(&vramkit_pool_stats)>(library_, "vramkit_pool_stats");
  vramkit_stats stats = {};
  if (read(pool_, &stats) != VRAMKIT_OK) fail(last_error_());
  return {stats.capacity_bytes, stats.metadata_bytes, stats.stitched_requests, stats.mapping_calls};
}

}  // namespace bench
