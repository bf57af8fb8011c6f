// Entering and leaving pools. No bytecode runs in here, so no signal handler and no asynchronous
// exception can come between a scope and the record of it.

#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "bind/python/python_runtime.h"
#include "pool/registry.h"

namespace vramkit::python {
namespace {

constexpr const char* kRoute = "vramkit.route";
constexpr int kExitArguments = 3;

using Tokens = std::vector<uint64_t>;

Pool* pool_of(const vramkit_route& route) { return reinterpret_cast<Pool*>(route.pool); }

void set_error(Status status, const char* text) {
  api.PyErr_SetString(api.status_errors[static_cast<size_t>(status)], text);
}

/// Runs `body` without the GIL. Its failure, then told in Python's terms, is the answer false.
template <typename Body>
bool without_gil(Body body) {
  std::optional<Error> failed;
  {
    const Released released;
    try {
      body();
    } catch (const Error& error) {
      failed = error;
    } catch (const std::exception& error) {
      failed = Error(Status::kSystem, error.what());
    }
  }
  if (failed) set_error(failed->status(), failed->what());
  return !failed;
}

/// The open tokens of this thread or task, oldest first.
Tokens tokens_of_this_task() {
  Tokens tokens;
  Object* value = nullptr;
  if (api.PyContextVar_Get(api.tokens, nullptr, &value) != 0) api.PyErr_Clear();
  const Ref tuple(value);
  if (!tuple) return tokens;
  const intptr_t size = api.PyTuple_Size(tuple.get());
  for (intptr_t i = 0; i < size; ++i) {
    tokens.push_back(api.PyLong_AsUnsignedLongLong(api.PyTuple_GetItem(tuple.get(), i)));
  }
  return tokens;
}

/// False with an exception set.
bool set_tokens_of_this_task(const Tokens& tokens) {
  const Ref tuple(api.PyTuple_New(static_cast<intptr_t>(tokens.size())));
  if (!tuple) return false;
  intptr_t i = 0;
  for (const uint64_t token : tokens) {
    Object* const number = api.PyLong_FromUnsignedLongLong(token);
    if (number == nullptr || api.PyTuple_SetItem(tuple.get(), i++, number) != 0) return false;
  }
  const Ref undo(api.PyContextVar_Set(api.tokens, tuple.get()));
  return static_cast<bool>(undo);
}

/// Refuses a closed pool, and in a forked child the parent's pools.
void check_open(Pool& pool) {
  pool.inspect([](Engine&) {});
}

bool enter(const vramkit_route& route) {
  Registry& registry = Registry::instance();
  Tokens tokens = tokens_of_this_task();
  const bool opened = without_gil([&] {
    Pool* const pool = pool_of(route);
    if (pool != nullptr) check_open(*pool);
    registry.keep_open(tokens);
    tokens.reserve(tokens.size() + 1);
    const int device = pool != nullptr ? pool->device() : route.device;
    tokens.push_back(registry.open_scope(pool, device, route.owner));
  });
  if (!opened) return false;
  if (set_tokens_of_this_task(tokens)) return true;
  const SavedError saved;
  return without_gil([&] { registry.close_scope(tokens.back()); }) && false;
}

bool exit(const vramkit_route& route) {
  Registry& registry = Registry::instance();
  Tokens tokens = tokens_of_this_task();
  uint64_t closed = 0;
  const bool ran = without_gil([&] {
    closed = registry.close_latest(route.owner, tokens);
    registry.keep_open(tokens);
  });
  if (!ran) return false;
  if (closed == 0) {
    api.PyErr_SetString(api.exit_error, "MemoryPool: __exit__ without __enter__: no scope is open");
    return false;
  }
  // The scope is closed; that its token stays listed a while harms nobody.
  if (!set_tokens_of_this_task(tokens)) api.PyErr_Clear();
  return true;
}

/// Nobody is left who could close the scopes, or the pool.
void end(const vramkit_route& route) noexcept {
  try {
    Registry::instance().close_all_of(route.owner);
    if (route.pool != nullptr) pool_of(route)->orphan();
  } catch (const std::exception& error) {
    report("a pool stays open though its object is gone: %s", error.what());
  }
}

void destroy_capsule(Object* capsule) {
  const std::unique_ptr<vramkit_route> route(
      static_cast<vramkit_route*>(api.PyCapsule_GetPointer(capsule, kRoute)));
  // At the end of the process other threads may still use the memory; the system takes it back.
  if (!is_running()) return;
  const Released released;
  end(*route);
}

/// Like `guarded` of the C interface: a failure of the C++ library is an exception of Python.
template <typename Body>
Object* answered(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    set_error(Status::kSystem, error.what());
    return nullptr;
  }
}

}  // namespace

const vramkit_route* route_of(Object* object, Ref& capsule) {
  capsule = Ref(api.PyObject_GetAttr(object, api.route_name));
  if (!capsule) return nullptr;
  return static_cast<const vramkit_route*>(api.PyCapsule_GetPointer(capsule.get(), kRoute));
}

}  // namespace vramkit::python

namespace own = vramkit::python;

vramkit_object* vramkit_python_new_route(int32_t device, vramkit_route** route) {
  static std::atomic<uint64_t> last_owner = 0;
  return own::answered([&] {
    auto made = std::make_unique<vramkit_route>();
    made->device = device;
    made->owner = ++last_owner;
    vramkit_object* const capsule =
        own::api.PyCapsule_New(made.get(), own::kRoute, &own::destroy_capsule);
    *route = capsule != nullptr ? made.release() : nullptr;
    return capsule;
  });
}

uint64_t vramkit_python_open_scopes(const vramkit_route* route) {
  return vramkit::Registry::instance().open_scopes_of(route->owner);
}

uint64_t vramkit_python_close_scopes(const vramkit_route* route) {
  return vramkit::Registry::instance().close_all_of(route->owner);
}

vramkit_object* vramkit_python_enter(vramkit_object* self, vramkit_object* const*, intptr_t) {
  return own::answered([&]() -> vramkit_object* {
    own::Ref capsule;
    const vramkit_route* const route = own::route_of(self, capsule);
    if (route == nullptr || !own::enter(*route)) return nullptr;
    return own::Ref::to(self).release();
  });
}

vramkit_object* vramkit_python_exit(vramkit_object* self, vramkit_object* const*, intptr_t count) {
  return own::answered([&]() -> vramkit_object* {
    if (count != own::kExitArguments) {
      const std::string text =
          vramkit::format("__exit__() takes %d arguments (kind, error, traceback), got %d",
                          own::kExitArguments, static_cast<int>(count));
      own::api.PyErr_SetString(own::api.type_error, text.c_str());
      return nullptr;
    }
    own::Ref capsule;
    const vramkit_route* const route = own::route_of(self, capsule);
    if (route == nullptr || !own::exit(*route)) return nullptr;
    return own::Ref::to(own::api.none).release();
  });
}
