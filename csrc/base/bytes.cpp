#include "base/bytes.h"

#include "base/error.h"

namespace vramkit {

std::string mib(uint64_t bytes) {
  return format("%.2f MiB", static_cast<double>(bytes) / static_cast<double>(kMiB));
}

}  // namespace vramkit
