// How the core reports failure: an exception inside, a status and a text at the C interface.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace vramkit {

/// The same numbers as `vramkit_status` in bind/c/vramkit.h (checked there).
enum class Status : int32_t {
  kOk = 0,
  kInvalidArgument = 1,
  kOutOfMemory = 2,
  kForeignPointer = 3,
  kDoubleFree = 4,
  kClosed = 5,
  kBusy = 6,
  kSystem = 7,
  kForked = 8,
  kNotRouted = 9,
};

class Error : public std::exception {
 public:
  Error(Status status, std::string text) : status_(status), text_(std::move(text)) {}
  Status status() const { return status_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  Status status_;
  std::string text_;
};

/// printf into a string.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

/// Throws `Error` with a printf-style text.
[[noreturn]] void throw_error(Status status, const char* pattern, ...)
    __attribute__((format(printf, 2, 3)));

/// Same, with the text of `errno` appended.
[[noreturn]] void throw_errno(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

/// For destructors: prints to stderr, never throws.
void report(const char* pattern, ...) noexcept __attribute__((format(printf, 1, 2)));

}  // namespace vramkit
