// What the core does for a Python process.
//
// Python runs signal handlers between any two bytecodes, and each of them may raise. A context
// manager's exit or a callback that is written in Python can therefore end before its first line,
// and what a callback raises is lost. So the code that must not be cut short is native. The core
// still links to no Python: the process hands over the functions of its interpreter.
//
// Functions that take or return a vramkit_object need the GIL; the others release nothing and may
// be called without it.
#pragma once

#include <stdint.h>

#include "bind/c/vramkit.h"

#if defined(__cplusplus)
extern "C" {
#endif

typedef struct vramkit_object vramkit_object;  // CPython's PyObject

// CPython's functions under their own names, then the objects that native code cannot make itself.
typedef struct vramkit_python_api {
  int (*PyGILState_Ensure)(void);
  void (*PyGILState_Release)(int);
  void* (*PyGILState_GetThisThreadState)(void);
  void* (*PyEval_SaveThread)(void);
  void (*PyEval_RestoreThread)(void*);
  void (*Py_IncRef)(vramkit_object*);
  void (*Py_DecRef)(vramkit_object*);
  void (*PyErr_SetString)(vramkit_object*, const char*);
  void (*PyErr_Fetch)(vramkit_object**, vramkit_object**, vramkit_object**);
  void (*PyErr_Restore)(vramkit_object*, vramkit_object*, vramkit_object*);
  void (*PyErr_Clear)(void);
  vramkit_object* (*PyErr_Occurred)(void);
  vramkit_object* (*PyObject_GetAttr)(vramkit_object*, vramkit_object*);
  vramkit_object* (*PyObject_GetAttrString)(vramkit_object*, const char*);
  vramkit_object* (*PyObject_CallObject)(vramkit_object*, vramkit_object*);
  uint64_t (*PyLong_AsUnsignedLongLong)(vramkit_object*);
  vramkit_object* (*PyLong_FromUnsignedLongLong)(unsigned long long);
  vramkit_object* (*PyTuple_New)(intptr_t);
  intptr_t (*PyTuple_Size)(vramkit_object*);
  vramkit_object* (*PyTuple_GetItem)(vramkit_object*, intptr_t);
  int (*PyTuple_SetItem)(vramkit_object*, intptr_t, vramkit_object*);
  vramkit_object* (*PyDict_GetItem)(vramkit_object*, vramkit_object*);
  int (*PyDict_SetItem)(vramkit_object*, vramkit_object*, vramkit_object*);
  int (*PyDict_DelItem)(vramkit_object*, vramkit_object*);
  vramkit_object* (*PyUnicode_FromString)(const char*);
  vramkit_object* (*PyUnicode_AsEncodedString)(vramkit_object*, const char*, const char*);
  char* (*PyBytes_AsString)(vramkit_object*);
  vramkit_object* (*PyCapsule_New)(void*, const char*, void (*)(vramkit_object*));
  void* (*PyCapsule_GetPointer)(vramkit_object*, const char*);
  int (*PyContextVar_Get)(vramkit_object*, vramkit_object*, vramkit_object**);
  vramkit_object* (*PyContextVar_Set)(vramkit_object*, vramkit_object*);
  vramkit_object* (*PyEval_GetFrame)(void);
  vramkit_object* (*PyFrame_GetBack)(vramkit_object*);
  vramkit_object* (*PyFrame_GetCode)(vramkit_object*);
  int (*PyFrame_GetLasti)(vramkit_object*);
  int (*PyCode_Addr2Line)(vramkit_object*, int);
  int (*PyGC_IsEnabled)(void);
  intptr_t (*PyGC_Collect)(void);

  vramkit_object* none;
  vramkit_object* route_name;         // the text "_route"
  vramkit_object* tokens;             // a ContextVar: the open tokens of this thread or task
  vramkit_object* exit_error;         // raised by an exit without a scope
  vramkit_object* type_error;         // raised by a call with the wrong number of arguments
  vramkit_object* status_errors[10];  // the exception for each vramkit_status
} vramkit_python_api;

// Copies the table, whose objects must never be freed. Call it once, before anything below.
VRAMKIT_API vramkit_status vramkit_python_start(const vramkit_python_api* api);

// The interpreter is about to end: no thread enters it from the core any more. Waits a moment for
// threads that are inside; call it without the GIL.
VRAMKIT_API void vramkit_python_stop(void);

// ---- scopes --------------------------------------------------------------------------------

// Who opens scopes: a pool, or nobody's ("outside") while `pool` is null. It belongs to a capsule;
// when that goes, its scopes end, and its pool is released as by vramkit_pool_release.
typedef struct vramkit_route {
  vramkit_pool* pool;
  int32_t device;  // of a null pool
  uint32_t reserved;
  uint64_t owner;  // tells its scopes from those of others
} vramkit_route;

// A new capsule, of which `route` receives the content; null with an exception set.
VRAMKIT_API vramkit_object* vramkit_python_new_route(int32_t device, vramkit_route** route);

// Number of its open scopes.
VRAMKIT_API uint64_t vramkit_python_open_scopes(const vramkit_route* route);

// Ends its scopes, whoever opened them; returns how many there were.
VRAMKIT_API uint64_t vramkit_python_close_scopes(const vramkit_route* route);

// The methods __enter__ and __exit__ (METH_FASTCALL) of a class whose objects have a capsule in
// their attribute _route. An exit ends the scope that its own thread or task opened last, else the
// latest one.
VRAMKIT_API vramkit_object* vramkit_python_enter(vramkit_object* self,
                                                 vramkit_object* const* arguments, intptr_t count);
VRAMKIT_API vramkit_object* vramkit_python_exit(vramkit_object* self,
                                                vramkit_object* const* arguments, intptr_t count);

// ---- stacks --------------------------------------------------------------------------------

// Notes the Python stack of each allocation that is routed to the pool.
VRAMKIT_API vramkit_status vramkit_python_record_stacks(vramkit_pool* pool);

// Files whose paths start with one of these, one a line, are no user's code.
VRAMKIT_API vramkit_status vramkit_python_set_library_paths(const char* paths);

// The frames of a stack as a tuple of texts, innermost first; empty for an unknown number.
VRAMKIT_API vramkit_object* vramkit_python_frames(uint32_t stack_id);

// Number of stacks that are kept.
VRAMKIT_API uint64_t vramkit_python_stacks(void);

// ---- memory for RMM and CuPy ---------------------------------------------------------------

// Callbacks (METH_FASTCALL) on an object whose attribute _route has a pool's capsule; those for
// CuPy also read `ordinal`, `current_stream` (a callable), and `streams` (a dict, for them alone).
// RMM: (size, stream) and (address, size, stream). CuPy: (size, device) and (address, device).
VRAMKIT_API vramkit_object* vramkit_python_rmm_allocate(vramkit_object* self,
                                                        vramkit_object* const* arguments,
                                                        intptr_t count);
VRAMKIT_API vramkit_object* vramkit_python_rmm_free(vramkit_object* self,
                                                    vramkit_object* const* arguments,
                                                    intptr_t count);
VRAMKIT_API vramkit_object* vramkit_python_cupy_allocate(vramkit_object* self,
                                                         vramkit_object* const* arguments,
                                                         intptr_t count);
VRAMKIT_API vramkit_object* vramkit_python_cupy_free(vramkit_object* self,
                                                     vramkit_object* const* arguments,
                                                     intptr_t count);

#if defined(__cplusplus)
}
#endif
