"""A context manager around each call of a function."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar, cast

from vramkit.errors import ArgumentTypeError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def decorated(
    scope: AbstractContextManager[object], function: Callable[_P, _R]
) -> Callable[_P, _R]:
    """Wrap a function or a coroutine function: each call runs inside ``scope``.

    Raises:
        ArgumentTypeError: A generator, or anything that is more than a function.
    """
    _refuse_what_is_no_function(function)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def scoped_coroutine(*args: _P.args, **kwargs: _P.kwargs) -> object:
            with scope:
                return await function(*args, **kwargs)

        return cast("Callable[_P, _R]", scoped_coroutine)

    @functools.wraps(function)
    def scoped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with scope:
            return function(*args, **kwargs)

    return scoped


def _refuse_what_is_no_function(function: object) -> None:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or repr(inner)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ArgumentTypeError(
            f"{name} is a generator: between its values the scope would stay open for the whole "
            "process; use `with pool:` inside it, around the work"
        )
    if isinstance(inner, type):
        raise ArgumentTypeError(
            f"{name} is a class, and a decorated class would be a mere function: no subclasses, no "
            "isinstance(); decorate its methods, or make its objects inside `with pool:`"
        )
    if isinstance(inner, staticmethod | classmethod):
        kind = type(inner).__name__
        raise ArgumentTypeError(
            f"the pool decorates functions, and {name} is a {kind} already: write @{kind} above "
            "the pool's line"
        )
    if isinstance(inner, functools._lru_cache_wrapper):
        raise ArgumentTypeError(
            f"{name} keeps its results in a cache, and the decorated function would lose "
            "cache_clear(): write @functools.cache or @functools.lru_cache above the pool's line. "
            "Tensors in the cache stay in the pool until you clear the cache"
        )
    if not inspect.isroutine(inner):
        raise ArgumentTypeError(
            f"the pool decorates functions and coroutine functions, got {inner!r} of type "
            f"{type(inner).__name__}, which would lose everything but its call; call it inside "
            "`with pool:`, or decorate a function that calls it"
        )
