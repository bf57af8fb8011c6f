// Host memory that CUDA devices copy from and to at full speed, without a staging copy.
#pragma once

#include <cstdint>

namespace vramkit {

/// Locks [address, address + bytes) into memory and makes it known to the CUDA driver, for all
/// devices, in the primary context of `device`, which is retained until `host_unregister`. The
/// memory is borrowed: it must stay mapped until then. Thread-safe. Takes up to half a second for
/// each GiB, and kernel launches of other threads wait meanwhile. Memory that this process may not
/// write needs `read_only`, and devices may then copy from it only.
///
/// Throws kSystem where the driver refuses, with the bytes and the limit on locked memory,
/// kInvalidArgument for an empty range, one that wraps, or one that is registered already, and
/// kForked in a child of the process that first registered memory.
void host_register(uint64_t address, uint64_t bytes, int device, bool read_only = false);

/// Undoes `host_register` of that address. No copy from or to the memory may be under way. Throws
/// kInvalidArgument for an address that `host_register` was not given, and kForked as it does.
void host_unregister(uint64_t address);

}  // namespace vramkit
