// A pool's memory for RMM and CuPy. Both call back for each block, from code that cannot handle the
// exception of a signal handler: a block would be lost, or the exception would come as another one.

#include <string>

#include "base/error.h"
#include "bind/c/retry.h"
#include "bind/python/python_runtime.h"

namespace vramkit::python {
namespace {

// Handles of CUDA's own streams.
constexpr uint64_t kDefault = 0;
constexpr uint64_t kLegacyDefault = 1;     // the same stream
constexpr uint64_t kPerThreadDefault = 2;  // another stream in each thread

constexpr auto kFailed = static_cast<uint64_t>(-1);  // CPython's answer beside an exception

Ref attribute(Object* object, const char* name) {
  return Ref(api.PyObject_GetAttrString(object, name));
}

/// The pool whose memory an object of Python hands out; null with an exception set.
vramkit_pool* pool_of(Object* memory) {
  Ref capsule;
  const vramkit_route* const route = route_of(memory, capsule);
  return route != nullptr ? route->pool : nullptr;
}

/// False with an exception set.
bool read(Object* object, uint64_t* number) {
  if (object == nullptr) return false;
  *number = api.PyLong_AsUnsignedLongLong(object);
  return *number != kFailed || api.PyErr_Occurred() == nullptr;
}

/// The handle of a stream of RMM, by CUDA's protocol. False with an exception set.
bool read_rmm_stream(Object* stream, uint64_t* handle) {
  const Ref method = attribute(stream, "__cuda_stream__");
  if (!method) return false;
  const Ref pair(api.PyObject_CallObject(method.get(), nullptr));
  if (!pair) return false;
  return read(api.PyTuple_GetItem(pair.get(), 1), handle);
}

bool read_cupy_stream(Object* stream, uint64_t* handle) {
  return read(attribute(stream, "ptr").get(), handle);
}

void set_error(vramkit_status status, const std::string& text) {
  api.PyErr_SetString(api.status_errors[status], text.c_str());
}

/// A block for the stream; null, with an exception set, when there is none.
Object* allocate(Object* memory, uint64_t size_bytes, uint64_t stream) {
  vramkit_pool* const pool = pool_of(memory);
  if (pool == nullptr) return nullptr;
  if (size_bytes == 0) return api.PyLong_FromUnsignedLongLong(0);
  if (stream == kPerThreadDefault) {
    set_error(VRAMKIT_INVALID_ARGUMENT,
              "a vramkit pool cannot serve CUDA's per-thread default stream, whose handle stands "
              "for another stream in each thread; use the default stream or one that you made");
    return nullptr;
  }
  if (stream == kLegacyDefault) stream = kDefault;
  void* address = nullptr;
  vramkit_status status = VRAMKIT_OK;
  std::string text;
  {
    const Released released;
    if (stream != kDefault) status = vramkit_declare_external_stream(pool, stream);
    if (status == VRAMKIT_OK) status = vramkit_alloc(pool, size_bytes, stream, 0, &address);
    if (status != VRAMKIT_OK) text = vramkit_last_error();
  }
  if (status != VRAMKIT_OK) {
    set_error(status, text);
    return nullptr;
  }
  return api.PyLong_FromUnsignedLongLong(reinterpret_cast<uint64_t>(address));
}

/// Who frees cannot handle an error: it is reported.
void free_block(Object* memory, uint64_t address, uint64_t stream) {
  vramkit_pool* const pool = address != 0 ? pool_of(memory) : nullptr;
  if (pool == nullptr) return;
  if (stream == kLegacyDefault) stream = kDefault;
  const Released released;
  vramkit_status status = VRAMKIT_OK;
  if (stream != kDefault) status = vramkit_declare_external_stream(pool, stream);
  if (status == VRAMKIT_OK) {
    status = vramkit_free_on(pool, reinterpret_cast<void*>(address), stream, nullptr);
  }
  if (status != VRAMKIT_OK) {
    report("freeing %#llx failed: %s", static_cast<unsigned long long>(address),
           vramkit_last_error());
  }
}

/// The answer None of a free, whatever went wrong: then its block is never used again.
Object* freed(bool understood, uint64_t address) {
  if (!understood || api.PyErr_Occurred() != nullptr) {
    api.PyErr_Clear();
    report("the block at %#llx is lost: its free cannot be understood",
           static_cast<unsigned long long>(address));
  }
  return Ref::to(api.none).release();
}

bool check_count(intptr_t count, intptr_t wanted) {
  if (count == wanted) return true;
  set_error(VRAMKIT_INVALID_ARGUMENT, "the callback takes " + std::to_string(wanted) +
                                          " arguments, got " + std::to_string(count));
  return false;
}

Object* cupy_allocate(Object* memory, Object* const* arguments) {
  uint64_t size_bytes = 0;
  uint64_t device = 0;
  uint64_t ordinal = 0;
  uint64_t handle = 0;
  if (!read(arguments[0], &size_bytes) || !read(arguments[1], &device) ||
      !read(attribute(memory, "ordinal").get(), &ordinal)) {
    return nullptr;
  }
  if (device != ordinal) {
    const std::string own = std::to_string(ordinal);
    set_error(VRAMKIT_INVALID_ARGUMENT, "the current device of CuPy is " + std::to_string(device) +
                                            ", and the pool is on cuda:" + own +
                                            "; allocate inside `with cupy.cuda.Device(" + own +
                                            "):`");
    return nullptr;
  }
  const Ref current = attribute(memory, "current_stream");
  const Ref streams = attribute(memory, "streams");
  if (!current || !streams) return nullptr;
  const Ref stream(api.PyObject_CallObject(current.get(), nullptr));
  if (!stream || !read_cupy_stream(stream.get(), &handle)) return nullptr;
  Ref address(allocate(memory, size_bytes, handle));
  if (!address) return nullptr;
  // CuPy destroys a stream with its object, arrays or not; the free shall name one that is there.
  if (api.PyDict_SetItem(streams.get(), address.get(), stream.get()) == 0) {
    return address.release();
  }
  const SavedError saved;
  free_block(memory, api.PyLong_AsUnsignedLongLong(address.get()), handle);
  return nullptr;
}

/// The block's own stream counts, as in CuPy's own pool: at a free the current one means nothing.
Object* cupy_free(Object* memory, Object* const* arguments) {
  uint64_t address = 0;
  uint64_t handle = kDefault;
  const Ref streams = attribute(memory, "streams");
  if (!read(arguments[0], &address) || !streams) return freed(false, address);
  const Ref stream = Ref::to(api.PyDict_GetItem(streams.get(), arguments[0]));
  if (stream) {
    // Taken out first: once it is free, another thread may get the address.
    if (api.PyDict_DelItem(streams.get(), arguments[0]) != 0) return freed(false, address);
    if (!read_cupy_stream(stream.get(), &handle)) return freed(false, address);
  }
  free_block(memory, address, handle);
  return freed(true, address);
}

}  // namespace
}  // namespace vramkit::python

namespace own = vramkit::python;

vramkit_object* vramkit_python_rmm_allocate(vramkit_object* self, vramkit_object* const* arguments,
                                            intptr_t count) {
  uint64_t size_bytes = 0;
  uint64_t stream = 0;
  if (!own::check_count(count, 2) || !own::read(arguments[0], &size_bytes) ||
      !own::read_rmm_stream(arguments[1], &stream)) {
    return nullptr;
  }
  return own::allocate(self, size_bytes, stream);
}

vramkit_object* vramkit_python_rmm_free(vramkit_object* self, vramkit_object* const* arguments,
                                        intptr_t count) {
  if (!own::check_count(count, 3)) return nullptr;
  uint64_t address = 0;
  uint64_t stream = 0;
  if (!own::read(arguments[0], &address) || !own::read_rmm_stream(arguments[2], &stream)) {
    return own::freed(false, address);
  }
  if (stream == own::kPerThreadDefault) {
    // The pool could not wait for it later: then the handle may stand for another one.
    const own::Ref method = own::attribute(arguments[2], "synchronize");
    if (!method) return own::freed(false, address);
    const own::Ref done(own::api.PyObject_CallObject(method.get(), nullptr));
    if (!done) return own::freed(false, address);
    stream = own::kDefault;
  }
  own::free_block(self, address, stream);
  return own::freed(true, address);
}

vramkit_object* vramkit_python_cupy_allocate(vramkit_object* self, vramkit_object* const* arguments,
                                             intptr_t count) {
  return own::check_count(count, 2) ? own::cupy_allocate(self, arguments) : nullptr;
}

vramkit_object* vramkit_python_cupy_free(vramkit_object* self, vramkit_object* const* arguments,
                                         intptr_t count) {
  return own::check_count(count, 2) ? own::cupy_free(self, arguments) : nullptr;
}
