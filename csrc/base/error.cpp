#include "base/error.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace vramkit {
namespace {

std::string format_list(const char* pattern, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, again);
  va_end(again);
  std::string text(static_cast<size_t>(length > 0 ? length : 0), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  return text;
}

}  // namespace

std::string format(const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = format_list(pattern, arguments);
  va_end(arguments);
  return text;
}

void throw_error(Status status, const char* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = format_list(pattern, arguments);
  va_end(arguments);
  throw Error(status, std::move(text));
}

void throw_errno(const char* pattern, ...) {
  const int code = errno;
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = format_list(pattern, arguments);
  va_end(arguments);
  throw Error(Status::kSystem, text + ": " + std::strerror(code));
}

void report(const char* pattern, ...) noexcept {
  va_list arguments;
  va_start(arguments, pattern);
  std::fputs("vramkit: ", stderr);
  std::vfprintf(stderr, pattern, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
}

}  // namespace vramkit
