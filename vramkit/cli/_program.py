"""Runs a Python program as ``__main__``, as ``python`` itself would."""

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from vramkit.errors import InvalidArgumentError

Program = Callable[[], None]

_HOME = Path(__file__).parent


def find(words: list[str]) -> Program:
    """Find what to run, without running any of it; sets ``sys.argv`` and ``sys.path``.

    Args:
        words: ``-m``, a module and its arguments; or a script, a folder or archive with a
            ``__main__`` module, or ``-`` for standard input, and its arguments.

    Raises:
        InvalidArgumentError: There is no such program.
    """
    first, *rest = words
    if first == "-m":
        return _module(rest)
    if first == "-":
        sys.argv = words
        sys.path.insert(0, "")
        return lambda: _execute(compile(sys.stdin.read(), "<stdin>", "exec"))
    path = Path(first)
    if not path.exists():
        raise InvalidArgumentError(f"there is no file {first!r} in {Path.cwd()}")
    if not os.access(path, os.R_OK):
        raise InvalidArgumentError(f"the file {first!r} cannot be read; check its permissions")
    sys.argv = words
    absolute = str(path.absolute())
    if pkgutil.get_importer(absolute) is not None:
        sys.path.insert(0, absolute)
        return lambda: _run_spec(PathFinder.find_spec("__main__", [absolute]), absolute)
    sys.path.insert(0, str(path.resolve().parent))
    return lambda: _run_file(absolute)


def hide_frames_of_vramkit() -> None:
    """Let the traceback that ends the process begin with the program, as under ``python``."""
    show = sys.excepthook

    def show_program(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        shown = _from_program(traceback)
        show(kind, error.with_traceback(shown), shown)

    sys.excepthook = show_program


def _from_program(traceback: TracebackType | None) -> TracebackType | None:
    """What follows the frames of this command, and those of an import that it began."""
    first = step = traceback
    while step is not None:
        if Path(step.tb_frame.f_code.co_filename).parent == _HOME:
            first = step.tb_next
        if step.tb_frame.f_code is _execute.__code__:
            return first
        step = step.tb_next
    while first is not None and first.tb_frame.f_code.co_filename.startswith("<frozen "):
        first = first.tb_next
    return first


def _module(words: list[str]) -> Program:
    if not words:
        raise InvalidArgumentError("-m needs the name of a module")
    name = words[0]
    sys.path.insert(0, str(Path.cwd()))
    top = name.partition(".")[0]
    try:
        found = importlib.util.find_spec(top)  # of a package on top: this imports nothing
    except (ImportError, ValueError) as err:
        raise InvalidArgumentError(f"no module named {name!r}: {err}") from err
    if found is None:
        raise InvalidArgumentError(f"no module named {name!r}; it is looked for from {Path.cwd()}")
    sys.argv = words

    def run() -> None:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
        _run_spec(spec, name, renames=True)

    return run


def _run_spec(spec: ModuleSpec | None, name: str, *, renames: bool = False) -> None:
    loader = spec.loader if spec is not None else None
    get_code = getattr(loader, "get_code", None)  # archives' loader is no InspectLoader
    code: CodeType | None = get_code(spec.name) if spec is not None and get_code else None
    if spec is None or code is None:
        raise ImportError(f"no module named {name!r} that can be run")
    if renames and spec.origin is not None:
        sys.argv[0] = spec.origin
    _execute(code, spec=spec, file=spec.origin, loader=loader)


def _run_file(path: str) -> None:
    if path.endswith(".pyc"):
        loader = SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
        assert code is not None
        _execute(code, file=path, loader=loader)
        return
    code = compile(Path(path).read_bytes(), path, "exec")
    _execute(code, file=path, loader=SourceFileLoader("__main__", path))


def _execute(
    code: CodeType,
    *,
    spec: ModuleSpec | None = None,
    file: str | None = None,
    loader: object = None,
) -> None:
    """Run code in a ``__main__`` module that stays until the process ends.

    So exit handlers, other processes, and whatever was pickled by reference find it.
    """
    main = ModuleType("__main__")
    names = main.__dict__
    names["__builtins__"] = __builtins__
    names["__loader__"] = loader
    if file is not None:
        names["__file__"] = file
        names["__cached__"] = spec.cached if spec is not None else None
    if spec is not None:
        names["__spec__"] = spec
        names["__package__"] = spec.parent
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # multiprocessing has remembered what was there before
        sys.modules["__mp_main__"] = main
    exec(code, names)
