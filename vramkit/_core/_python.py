"""The core's part for Python processes (csrc/bind/python.h).

What must not be cut short by an exception of a signal handler is native: entering and leaving
pools, and all that the core calls while a request is served.
"""

import contextvars
import ctypes
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

from vramkit._core._structs import Status

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
    "PyObject_GetAttr",
    "PyObject_GetAttrString",
    "PyLong_AsUnsignedLongLong",
    "PyLong_FromUnsignedLongLong",
    "PyTuple_New",
    "PyTuple_Size",
    "PyTuple_GetItem",
    "PyTuple_SetItem",
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
    status_errors: "ctypes.Array[ctypes.py_object[type[BaseException]]]"
    _fields_ = (
        *((name, ctypes.c_void_p) for name in API_FUNCTIONS),
        ("none", ctypes.py_object),
        ("route_name", ctypes.py_object),
        ("tokens", ctypes.py_object),
        ("exit_error", ctypes.py_object),
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
# Called by the interpreter alone.
METHODS = {"__enter__": "vramkit_python_enter", "__exit__": "vramkit_python_exit"}
_SIGNATURES = {"__enter__": "($self, /)", "__exit__": "($self, kind, error, traceback, /)"}

# What the core or the interpreter holds addresses of.
_kept: list[object] = []
_started = SimpleNamespace(core=None, free=None)


def start(
    core: ctypes.CDLL, path: Path, status_errors: Mapping[Status, type[BaseException]]
) -> None:
    """Hand the interpreter's functions to the core; call it once, before anything else here."""
    locked = ctypes.PyDLL(str(path))
    for functions, handle in ((FREE_FUNCTIONS, core), (GIL_FUNCTIONS, locked)):
        for name, (result, arguments) in functions.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
    api = PythonApi()
    for name in API_FUNCTIONS:
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p)
        setattr(api, name, address)
    api.none, api.route_name, api.tokens = None, "_route", open_tokens
    api.exit_error = RuntimeError
    for status in Status:
        api.status_errors[status] = status_errors.get(status, RuntimeError)
    _kept.append(api)
    core.vramkit_python_start(ctypes.byref(api))
    _started.core, _started.free = locked, core


def open_scopes(route: "ctypes._Pointer[Route]") -> int:
    """Number of scopes that were opened through the struct of :func:`new_route`."""
    return int(_started.free.vramkit_python_open_scopes(route))


def close_scopes(route: "ctypes._Pointer[Route]") -> int:
    """End the scopes that were opened through the struct; returns how many there were."""
    return int(_started.free.vramkit_python_close_scopes(route))


def record_stacks(handle: int) -> int:
    """Note the Python stack of each allocation that is routed to the pool; returns the status."""
    return int(_started.free.vramkit_python_record_stacks(handle))


def new_route(device: int) -> "tuple[object, ctypes._Pointer[Route]]":
    """A capsule that opens scopes, and owns the pool that is put in its struct.

    When the capsule goes its scopes end, and its pool closes, now or with its last block.

    Args:
        device: Whose allocations go to no pool, while the struct names none.
    """
    route = _ROUTE()
    capsule = _started.core.vramkit_python_new_route(device, ctypes.byref(route))
    return capsule, route


def frames(stack_id: int) -> tuple[str, ...]:
    """The stack as ``file:line in function``, innermost first; empty for an unknown number.

    Args:
        stack_id: As the core wrote it into a block.
    """
    found: tuple[str, ...] = _started.core.vramkit_python_frames(stack_id)
    return found


def stacks_kept() -> int:
    """Number of distinct stacks that are remembered."""
    return int(_started.core.vramkit_python_stacks())


def set_library_paths(paths: list[str]) -> None:
    """Tell which files are no user's code, by the first part of their paths."""
    lines = "\n".join(paths).encode("utf-8", "backslashreplace")
    _started.core.vramkit_python_set_library_paths(lines)


# A function object of our own: ctypes.pythonapi's is shared by the whole process.
_new_method = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.POINTER(_MethodDef))(
    ("PyDescr_NewMethod", ctypes.pythonapi)
)


def natively_entered(cls: type[_T]) -> type[_T]:
    """Give a class the native ``__enter__`` and ``__exit__`` in place of those that it declares.

    Its objects have the capsule of :func:`new_route` in their attribute ``_route``.
    """
    for name, function in METHODS.items():
        declared = inspect.getdoc(getattr(cls, name)) or ""
        method = _MethodDef(
            name.encode(),
            ctypes.cast(getattr(_started.core, function), ctypes.c_void_p),
            _METH_FASTCALL,
            f"{name}{_SIGNATURES[name]}\n--\n\n{declared}".encode(),
        )
        _kept.append(method)
        setattr(cls, name, _new_method(cls, ctypes.byref(method)))
    return cls
