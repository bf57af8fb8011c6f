"""The core's part for Python processes (csrc/bind/python/python.h).

What must not be cut short by an exception of a signal handler is native: entering and leaving
pools, and all that the core calls while a request is served.
"""

import atexit
import contextvars
import ctypes
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from vramkit._core._library import CORE_LIBRARY, EXCEPTIONS, library
from vramkit._core._structs import Status
from vramkit.errors import ArgumentTypeError, ScopeError

# CPython's functions that the core calls, in the order of the header.
API_FUNCTIONS = (
    "PyGILState_Ensure",
    "PyGILState_Release",
    "PyGILState_GetThisThreadState",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "Py_IncRef",
    "Py_DecRef",
    "PyErr_SetString",
    "PyErr_Fetch",
    "PyErr_Restore",
    "PyErr_Clear",
    "PyErr_Occurred",
    "PyObject_GetAttr",
    "PyObject_GetAttrString",
    "PyObject_CallObject",
    "PyLong_AsUnsignedLongLong",
    "PyLong_FromUnsignedLongLong",
    "PyTuple_New",
    "PyTuple_Size",
    "PyTuple_GetItem",
    "PyTuple_SetItem",
    "PyDict_GetItem",
    "PyDict_SetItem",
    "PyDict_DelItem",
    "PyUnicode_FromString",
    "PyUnicode_AsEncodedString",
    "PyBytes_AsString",
    "PyCapsule_New",
    "PyCapsule_GetPointer",
    "PyContextVar_Get",
    "PyContextVar_Set",
    "PyEval_GetFrame",
    "PyFrame_GetBack",
    "PyFrame_GetCode",
    "PyFrame_GetLasti",
    "PyCode_Addr2Line",
    "PyGC_IsEnabled",
    "PyGC_Collect",
)
_METH_FASTCALL = 0x80

_T = TypeVar("_T")

# The open tokens of this thread or asyncio task, of all pools, oldest first. One variable for all
# pools, because context variables are never collected.
open_tokens: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar(
    "vramkit_scopes", default=()
)


class PythonApi(ctypes.Structure):
    """``vramkit_python_api``."""

    none: object
    route_name: str
    tokens: object
    exit_error: type[BaseException]
    type_error: type[BaseException]
    status_errors: "ctypes.Array[ctypes.py_object[type[BaseException]]]"
    _fields_ = (
        *((name, ctypes.c_void_p) for name in API_FUNCTIONS),
        ("none", ctypes.py_object),
        ("route_name", ctypes.py_object),
        ("tokens", ctypes.py_object),
        ("exit_error", ctypes.py_object),
        ("type_error", ctypes.py_object),
        ("status_errors", ctypes.py_object * len(Status)),
    )


class Route(ctypes.Structure):
    """``vramkit_route``."""

    pool: int | None
    device: int
    reserved: int
    owner: int
    _fields_ = (
        ("pool", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
        ("owner", ctypes.c_uint64),
    )


class _MethodDef(ctypes.Structure):
    """CPython's ``PyMethodDef``."""

    _fields_ = (
        ("ml_name", ctypes.c_char_p),
        ("ml_meth", ctypes.c_void_p),
        ("ml_flags", ctypes.c_int),
        ("ml_doc", ctypes.c_char_p),
    )


_ROUTE = ctypes.POINTER(Route)

# Result type and argument types. These functions touch Python's objects, so they keep the GIL.
GIL_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "vramkit_python_new_route": (ctypes.py_object, [ctypes.c_int32, ctypes.POINTER(_ROUTE)]),
    "vramkit_python_frames": (ctypes.py_object, [ctypes.c_uint32]),
    "vramkit_python_set_library_paths": (ctypes.c_int, [ctypes.c_char_p]),
    "vramkit_python_stacks": (ctypes.c_uint64, []),
}
FREE_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "vramkit_python_start": (ctypes.c_int, [ctypes.POINTER(PythonApi)]),
    "vramkit_python_stop": (None, []),
    "vramkit_python_open_scopes": (ctypes.c_uint64, [_ROUTE]),
    "vramkit_python_close_scopes": (ctypes.c_uint64, [_ROUTE]),
    "vramkit_python_record_stacks": (ctypes.c_int, [ctypes.c_void_p]),
}
# Called by the interpreter and by other libraries.
METHODS = {"__enter__": "vramkit_python_enter", "__exit__": "vramkit_python_exit"}
CALLBACKS = ("rmm_allocate", "rmm_free", "cupy_allocate", "cupy_free")
_SIGNATURES = {"__enter__": "($self, /)", "__exit__": "($self, kind, error, traceback, /)"}

# What the core holds addresses of.
_kept: list[object] = []


@functools.cache
def python_part() -> ctypes.PyDLL:
    """The functions that keep the GIL; the interpreter's are handed over at the first call.

    Raises:
        NativeLibraryError: The core is missing or is of another version than this Python code.
    """
    core = library()
    locked = ctypes.PyDLL(str(CORE_LIBRARY))
    for functions, handle in ((FREE_FUNCTIONS, core), (GIL_FUNCTIONS, locked)):
        for name, (result, arguments) in functions.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
    api = PythonApi()
    for name in API_FUNCTIONS:
        setattr(api, name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p))
    api.none, api.route_name, api.tokens = None, "_route", open_tokens
    api.exit_error, api.type_error = ScopeError, ArgumentTypeError
    for status in Status:
        api.status_errors[status] = EXCEPTIONS.get(status, RuntimeError)
    _kept.append(api)
    core.vramkit_python_start(ctypes.byref(api))
    # Threads may allocate while the interpreter is torn down; none may enter it then.
    atexit.register(core.vramkit_python_stop)
    return locked


def open_scopes(route: "ctypes._Pointer[Route]") -> int:
    """Number of scopes that were opened through the struct of :func:`new_route`."""
    return int(library().vramkit_python_open_scopes(route))


def close_scopes(route: "ctypes._Pointer[Route]") -> int:
    """End the scopes that were opened through the struct; returns how many there were."""
    return int(library().vramkit_python_close_scopes(route))


def record_stacks(handle: int) -> int:
    """Note the Python stack of each allocation that is routed to the pool; returns the status."""
    return int(library().vramkit_python_record_stacks(handle))


def new_route(device: int) -> "tuple[object, ctypes._Pointer[Route]]":
    """A capsule that opens scopes, and owns the pool that is put in its struct.

    When the capsule goes its scopes end, and its pool closes, now or with its last block.

    Args:
        device: Whose allocations go to no pool, while the struct names none.
    """
    route = _ROUTE()
    capsule = python_part().vramkit_python_new_route(device, ctypes.byref(route))
    return capsule, route


def frames(stack_id: int) -> tuple[str, ...]:
    """The stack as ``file:line in function``, innermost first; empty for an unknown number.

    Args:
        stack_id: As the core wrote it into a block.
    """
    found: tuple[str, ...] = python_part().vramkit_python_frames(stack_id)
    return found


def stacks_kept() -> int:
    """Number of distinct stacks that are remembered."""
    return int(python_part().vramkit_python_stacks())


def set_library_paths(paths: list[str]) -> None:
    """Tell which files are no user's code, by the first part of their paths."""
    lines = "\n".join(paths).encode("utf-8", "backslashreplace")
    python_part().vramkit_python_set_library_paths(lines)


# A function object of our own: ctypes.pythonapi's is shared by the whole process.
_new_method = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.POINTER(_MethodDef))(
    ("PyDescr_NewMethod", ctypes.pythonapi)
)
_new_function = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p
)(("PyCFunction_NewEx", ctypes.pythonapi))


@functools.cache
def _method(function: str, name: str, doc: str) -> _MethodDef:
    address = ctypes.cast(getattr(python_part(), function), ctypes.c_void_p)
    # The interpreter keeps its address: the cache never lets go of it.
    return _MethodDef(name.encode(), address, _METH_FASTCALL, doc.encode())


def callback(name: str, memory: object) -> "Callable[..., Any]":
    """A native callback for another library, which keeps ``memory`` alive.

    Args:
        name: One of ``CALLBACKS``.
        memory: What the header says of the object that the callback works on.
    """
    made: Callable[..., Any] = _new_function(
        ctypes.byref(_method(f"vramkit_python_{name}", name, "")), memory, None
    )
    return made


def natively_entered(cls: type[_T]) -> type[_T]:
    """Give a class the native ``__enter__`` and ``__exit__`` in place of those that it declares.

    Its objects have the capsule of :func:`new_route` in their attribute ``_route``.
    """
    for name, function in METHODS.items():
        declared = inspect.getdoc(getattr(cls, name)) or ""
        doc = f"{name}{_SIGNATURES[name]}\n--\n\n{declared}"
        setattr(cls, name, _new_method(cls, ctypes.byref(_method(function, name, doc))))
    return cls
