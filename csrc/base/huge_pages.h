// Advice to the kernel about large memory that is accessed at random.
#pragma once

#include <cstdint>

namespace vramkit {

/// Asks for huge pages in memory that nothing has touched yet. Where the kernel has none, nothing
/// happens.
void prefer_huge_pages(char* data, uint64_t bytes);

}  // namespace vramkit
