// How every function of the C interface reports failure: a status, and a text for its thread.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "bind/c/vramkit.h"

namespace vramkit {

/// Leaves the text that vramkit_last_error() returns to this thread.
void tell(std::string text);

/// The same, and returns the status; without memory for the text, a fixed one says so.
vramkit_status failed(Status status, const char* text) noexcept;

/// Refuses null for an argument that must point to something.
void need(const void* argument, const char* name);

/// Runs `body`, which returns nothing or a Status.
template <typename Body>
vramkit_status guarded(Body body) {
  try {
    if constexpr (std::is_void_v<decltype(body())>) {
      body();
      return VRAMKIT_OK;
    } else {
      return static_cast<vramkit_status>(body());
    }
  } catch (const Error& error) {
    return failed(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return failed(Status::kSystem,
                  "the machine has no memory left for the pool's metadata; end other programs or "
                  "use less memory outside the pool, then try again");
  } catch (const std::exception& error) {
    return failed(Status::kSystem, error.what());
  }
}

}  // namespace vramkit
