// What is tried before a request is refused: the garbage collector of the process's language.
#pragma once

#include <cstdint>
#include <string>

#include "pool/pool.h"

namespace vramkit {

/// Frees what is unreachable; false when it may not run now. Called with no lock held.
using GarbageCollector = bool (*)();

/// Set once; null at first.
void set_garbage_collector(GarbageCollector collector);

/// What a collection brought to a pool that was full.
struct Collected {
  bool ran = false;
  uint64_t bytes = 0;
  uint64_t blocks = 0;
};

/// Runs a collection for a request that the pool has refused, unless the last one was in vain a
/// moment ago or none can help; false if it did not run. A collection may end the pool: its object
/// may be garbage too, and then this throws kClosed.
bool collect_for(Pool& pool, uint64_t size, Collected* collected);

/// As Pool::allocate; a full pool gets one collection and a second try.
Status allocate_or_collect(Pool& pool, uint64_t size, uint64_t stream, uint32_t stack_id,
                           uint64_t* address, Collected* collected);

/// The explanation of a full pool, with what the collection brought, if anything.
std::string explain_after(Pool& pool, uint64_t size, const Collected& collected);

}  // namespace vramkit
