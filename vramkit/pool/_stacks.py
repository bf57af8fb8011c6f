"""Python stacks of allocations: gathered by a callback of the core, kept once for each stack."""

import atexit
import ctypes
import itertools
import signal
import sys
import threading
import time
import weakref
from pathlib import Path
from types import CodeType

from vramkit._core import CorePool, StackHook, StackText

_MAX_FRAMES = 32
_TEXT_FRAMES = 6
_HOOKS_DONE_S = 0.05
_NO_FRAMES = "no Python frames (an autograd or worker thread)"

# A frame as it costs least to note: the code object and the offset of its instruction.
_Frame = tuple[CodeType, int]


class StackRecorder:
    """Gives each distinct stack a number.

    No lock: single operations on a dict are atomic under the GIL. A lock could be wanted by a
    finalizer that the garbage collector runs while its own thread holds it.
    """

    def __init__(self) -> None:
        """Start with no stack known."""
        self._numbers = itertools.count(1)
        self._ids: dict[tuple[int, ...], int] = {}
        self._stacks: dict[int, tuple[_Frame, ...]] = {}
        self._texts: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._thread = threading.local()

    def capture(self) -> int:
        """The number of the calling thread's stack; 0 when called from within itself."""
        if getattr(self._thread, "busy", False):
            return 0
        self._thread.busy = True
        try:
            return self._capture()
        except KeyboardInterrupt:
            # ctypes prints and drops what a callback raises. Repeated from here it would be
            # raised at once, and dropped again; so another thread does it a moment later.
            threading.Timer(_HOOKS_DONE_S, _interrupt_main_thread).start()
            return 0
        finally:
            self._thread.busy = False

    def frames(self, stack_id: int) -> tuple[str, ...]:
        """The stack as ``file:line in function``, innermost first; empty for 0."""
        if stack_id not in self._stacks:
            return ()
        return tuple(_describe(frame) for frame in self._stacks[stack_id]) or (_NO_FRAMES,)

    def text_address(self, stack_id: int) -> int:
        """Address of a zero-terminated line for the user's own frames; 0 for an unknown number."""
        if stack_id not in self._stacks:
            return 0
        if stack_id not in self._texts:
            self._texts[stack_id] = ctypes.create_string_buffer(self._line(stack_id).encode())
        return ctypes.addressof(self._texts[stack_id])

    def _capture(self) -> int:
        key: list[int] = []
        stack: list[_Frame] = []
        # Above this: capture(), and nothing else, since ctypes calls it without a frame.
        frame = sys._getframe(1).f_back
        while frame is not None and len(stack) < _MAX_FRAMES:
            code, offset = frame.f_code, frame.f_lasti
            key += (id(code), offset)
            stack.append((code, offset))
            frame = frame.f_back
        known = self._ids.get(tuple(key))
        if known is not None:
            return known
        # The stack, and with it the code objects whose ids are the key, is kept for ever.
        number = self._ids.setdefault(tuple(key), next(self._numbers))
        self._stacks.setdefault(number, tuple(stack))
        return number

    def _line(self, stack_id: int) -> str:
        stack = self._stacks[stack_id]
        own = [frame for frame in stack if not _is_library(frame[0].co_filename)] or stack
        return " <- ".join(_describe(frame) for frame in own[:_TEXT_FRAMES]) or _NO_FRAMES


def _interrupt_main_thread() -> None:
    # A true signal, since only that ends a wait in a system call.
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def _describe(frame: _Frame) -> str:
    code, offset = frame
    lines = (line for start, end, line in code.co_lines() if start <= offset < end)
    line = next(lines, None) or code.co_firstlineno
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def _is_library(filename: str) -> bool:
    torch = sys.modules.get("torch")
    homes = [str(Path(__file__).parent.parent)]
    if torch is not None and torch.__file__ is not None:
        homes.append(str(Path(torch.__file__).parent))
    return filename.startswith((*(home + "/" for home in homes), "<"))


recorder = StackRecorder()

# Never collected, so that a thread that is just calling one of them finds it there.
_HOOK = StackHook(recorder.capture)
_TEXT = StackText(recorder.text_address)
_recording: "weakref.WeakSet[CorePool]" = weakref.WeakSet()


def record_stacks_of(pool: CorePool) -> None:
    """Note the Python stack of each allocation that is routed to the pool."""
    pool.set_stack_hooks(_HOOK, _TEXT)
    _recording.add(pool)


@atexit.register
def _stop_all() -> None:
    # Threads may allocate while the interpreter is torn down; Python must not be entered then.
    pools = list(_recording)
    for pool in pools:
        pool.set_stack_hooks(None, None)
    if pools:
        # Lets threads that are already in a hook take the GIL and leave.
        time.sleep(_HOOKS_DONE_S)
