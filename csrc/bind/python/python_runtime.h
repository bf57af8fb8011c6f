// The interpreter as the core's Python part sees it.
#pragma once

#include <string>
#include <utility>

#include "bind/python/python.h"

namespace vramkit::python {

using Object = vramkit_object;

/// Filled by vramkit_python_start, before any other function of the Python part is called.
extern vramkit_python_api api;

/// A stay of a native thread in the interpreter, from anywhere and without the GIL; false when the
/// interpreter has not started or is about to end.
class Visit {
 public:
  Visit();
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit();
  explicit operator bool() const { return entered_; }

 private:
  bool entered_ = false;
  int state_ = 0;
};

/// Whether the interpreter has started and is not about to end.
bool is_running();

/// While this thread is ended by the interpreter, which happens where it asks for the GIL too late:
/// destructors run then, and must not touch Python.
inline thread_local bool ending = false;

/// For the time that a thread with the GIL waits for locks of the core. No exception may leave its
/// scope.
class Released {
 public:
  Released() : state_(api.PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
  ~Released() noexcept(false) {
    ending = true;
    api.PyEval_RestoreThread(state_);
    ending = false;
  }

 private:
  void* state_;
};

/// A reference that is ours.
class Ref {
 public:
  Ref() = default;
  explicit Ref(Object* owned) : object_(owned) {}
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr && !ending) api.Py_DecRef(object_);
  }

  static Ref to(Object* borrowed) {
    if (borrowed != nullptr) api.Py_IncRef(borrowed);
    return Ref(borrowed);
  }
  Object* get() const { return object_; }
  Object* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  Object* object_ = nullptr;
};

/// Keeps the exception that is being handled apart from what happens meanwhile.
class SavedError {
 public:
  SavedError() { api.PyErr_Fetch(&kind_, &value_, &traceback_); }
  SavedError(const SavedError&) = delete;
  SavedError& operator=(const SavedError&) = delete;
  ~SavedError() { api.PyErr_Restore(kind_, value_, traceback_); }

 private:
  Object* kind_ = nullptr;
  Object* value_ = nullptr;
  Object* traceback_ = nullptr;
};

/// The text attribute of an object, for people: what UTF-8 cannot hold is escaped.
std::string text_of(Object* object, const char* attribute);

/// The route in the attribute of an object, kept alive by `capsule`; null with an exception set.
const vramkit_route* route_of(Object* object, Ref& capsule);

/// Runs Python's garbage collector; false where it must not run now.
bool collect_garbage();

}  // namespace vramkit::python
