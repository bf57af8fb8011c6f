#include "bind/python/python_runtime.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "backend/device_cuda.h"
#include "bind/c/retry.h"

namespace vramkit::python {

vramkit_python_api api{};

namespace {

std::atomic<bool> running = false;
std::atomic<int> visits = 0;

}  // namespace

bool is_running() { return running; }

Visit::Visit() {
  // Counted before it is asked, so that stop() sees either the visit or its refusal.
  ++visits;
  if (!running) return;
  ending = true;
  state_ = api.PyGILState_Ensure();
  ending = false;
  entered_ = true;
}

Visit::~Visit() {
  if (entered_) api.PyGILState_Release(state_);
  --visits;
}

std::string text_of(Object* object, const char* attribute) {
  const Ref text(api.PyObject_GetAttrString(object, attribute));
  if (text) {
    const Ref bytes(api.PyUnicode_AsEncodedString(text.get(), "utf-8", "backslashreplace"));
    if (bytes) return api.PyBytes_AsString(bytes.get());
  }
  api.PyErr_Clear();
  return "?";
}

bool collect_garbage() {
  thread_local bool collecting = false;
  // A thread that Python does not know may be waited for by the thread that has the GIL; and what
  // is collected may end CUDA graphs and events, which a capture does not allow.
  if (!running || collecting || api.PyGILState_GetThisThreadState() == nullptr ||
      is_capturing_anywhere()) {
    return false;
  }
  const Visit visit;
  if (!visit || api.PyGC_IsEnabled() == 0) return false;
  const SavedError saved;
  collecting = true;  // a finalizer may allocate
  api.PyGC_Collect();
  collecting = false;
  return true;
}

}  // namespace vramkit::python

using vramkit::python::running;
using vramkit::python::visits;

vramkit_status vramkit_python_start(const vramkit_python_api* api) {
  if (running) return VRAMKIT_OK;
  vramkit::python::api = *api;
  // The threads of the parent that were inside are not in a child.
  if (::pthread_atfork(nullptr, nullptr, [] { visits = 0; }) != 0) return VRAMKIT_SYSTEM;
  running = true;
  vramkit::set_garbage_collector(&vramkit::python::collect_garbage);
  return VRAMKIT_OK;
}

void vramkit_python_stop() {
  constexpr auto kStep = std::chrono::milliseconds(1);
  constexpr int kSteps = 1000;  // a thread that is stuck for longer must not keep the process
  running = false;
  for (int step = 0; visits > 0 && step < kSteps; ++step) std::this_thread::sleep_for(kStep);
}
