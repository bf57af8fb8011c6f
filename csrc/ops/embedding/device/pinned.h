// Host memory that the device can read and write, as all kinds of devices report its absence.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit::embedding::device {

/// Throws Error(kOutOfMemory).
[[noreturn]] inline void throw_unpinned(uint64_t bytes, const char* reason) {
  throw_error(Status::kOutOfMemory,
              "cannot lock %s of host memory for rows: %s; free host memory, raise the limit of "
              "locked memory (ulimit -l), or use narrower rows",
              mib(bytes).c_str(), reason);
}

}  // namespace vramkit::embedding::device
