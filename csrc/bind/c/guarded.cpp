#include "bind/c/guarded.h"

#include <utility>

namespace vramkit {
namespace {

thread_local std::string last_error;
thread_local const char* fixed_error = nullptr;  // where no memory was left for a text of its own

}  // namespace

void tell(std::string text) {
  last_error = std::move(text);
  fixed_error = nullptr;
}

vramkit_status failed(Status status, const char* text) noexcept {
  try {
    tell(text);
  } catch (const std::bad_alloc&) {
    fixed_error = "this call failed, and the machine has no memory left for the reason";
  }
  return static_cast<vramkit_status>(status);
}

void need(const void* argument, const char* name) {
  if (argument == nullptr) {
    fail(Status::kInvalidArgument, "the argument %s is a null pointer", name);
  }
}

}  // namespace vramkit

const char* vramkit_last_error() {
  return vramkit::fixed_error != nullptr ? vramkit::fixed_error : vramkit::last_error.c_str();
}
