"""What vramkit raises on purpose is a VramkitError, as docs/errors.md says."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_CAUGHT = "never leaves vramkit: the caller turns it into a VramkitError or into an exit status"
_ALONE = "vramkit._build imports nothing else of vramkit; its callers turn this into a VramkitError"
_ITERATION = "Python's protocol of iteration"
_INVARIANT = "an invariant, as in PyTorch's iterators"
_INVARIANT_OF_FAKES = "an invariant: fake tensors never reach a kernel"
_TORCHS = "PyTorch's own type and text, which programs look for"
_NATIVE = "never runs: a native method replaces this one"
# Where a module raises or declares exceptions of its own that are no VramkitError, and why.
_ALLOWED = {
    "__init__.py": {"AttributeError": "Python's protocol for the attributes of modules"},
    "estimate/__init__.py": {"AttributeError": "Python's protocol for the attributes of modules"},
    "_build": {"BuildError": _ALONE, "UntrustedError": _ALONE, "OSError": _ALONE},
    "_build/_trust.py": {"NotADirectoryError": _ALONE},
    "cli/_arguments.py": {"ArgumentTypeError": _CAUGHT, "UsageError": _CAUGHT},
    "cli/_demo/_run.py": {"CommandError": _CAUGHT},
    "cli/_estimate.py": {"CommandError": _CAUGHT},
    "cli/_functions.py": {"CommandError": _CAUGHT},
    "cli/_output.py": {"OutputError": _CAUGHT},
    "cli/_program.py": {"ImportError": "belongs to the user's program, as under `python -m`"},
    "cli/_status.py": dict.fromkeys(("CommandError", "OutputError", "UsageError"), _CAUGHT),
    "estimate/_rewrites.py": {"AssertionError": _INVARIANT_OF_FAKES},
    "loader/_array_iterator.py": {"StopIteration": _ITERATION},
    "loader/_arrays.py": {"NotArraysError": _CAUGHT},
    "loader/_columns.py": {"NotArraysError": _CAUGHT},
    "loader/_hugging_face.py": {"NotArraysError": _CAUGHT},
    "loader/_batches.py": {
        "AttributeError": "Python's protocol for attributes",
        "StopIteration": _ITERATION,
    },
    "loader/_channels.py": {"AssertionError": _INVARIANT},
    "loader/_failures.py": {"AssertionError": _INVARIANT},
    "loader/_registered_rows.py": {"NotRegisteredError": _CAUGHT},
    "loader/_stream_collate.py": {"StopIteration": _ITERATION},
    "loader/_threads.py": {"RuntimeError": _TORCHS, "StopIteration": _ITERATION},
    "nn/_embedding": {"NoRateError": "an InvalidArgumentError that hasattr() understands"},
    "nn/_embedding/_base.py": {"AttributeError": "Python's protocol for attributes"},
    "nn/_survey.py": {"RefusedError": _CAUGHT},
    "nn/_tracer.py": {"TraceError": _CAUGHT, "UninitializedError": _CAUGHT},
    "pool/_memory_pool.py": {"NotImplementedError": _NATIVE},
    "pool/_scopes.py": {"NotImplementedError": _NATIVE},
    "simulate/_npy.py": {"NpyError": _CAUGHT},
    "simulate/_plain_pickle.py": {"PlainPickleError": _CAUGHT},
}


def foreign_exceptions(text: str) -> set[str]:
    """Return the exceptions that a module raises or declares and does not have from errors.py."""
    tree = ast.parse(text)
    own = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "vramkit.errors"
        for name in node.names
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(_is_exception(base) for base in node.bases):
            found.add(node.name)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            # errors.X and EXCEPTIONS[status] have only errors of errors.py; a variable has been
            # caught or made elsewhere.
            if _is_exception(raised) and not (
                isinstance(raised, ast.Attribute) and ast.unparse(raised.value) == "errors"
            ):
                found.add(_last_name(raised))
    return found - own


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def _is_exception(node: ast.expr) -> bool:
    name = _last_name(node)
    known = getattr(builtins, name, None)
    return name.endswith("Error") or (isinstance(known, type) and issubclass(known, BaseException))


def _allowed(path: str) -> set[str]:
    return {
        name
        for place, names in _ALLOWED.items()
        if path == place or path.startswith(f"{place}/")
        for name in names
    }


def _modules() -> list[str]:
    package = ROOT / "vramkit"
    paths = (path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return sorted(path for path in paths if path != "errors.py")


@pytest.mark.parametrize("path", _modules())
def test_what_is_raised_on_purpose_is_a_vramkit_error(path: str) -> None:
    found = foreign_exceptions((ROOT / "vramkit" / path).read_text(encoding="utf-8"))
    assert found - _allowed(path) == set()


def test_no_allowance_is_left_over() -> None:
    unused = []
    for place, names in _ALLOWED.items():
        texts = [
            (ROOT / "vramkit" / path).read_text(encoding="utf-8")
            for path in _modules()
            if path == place or path.startswith(f"{place}/")
        ]
        raised = set().union(*map(foreign_exceptions, texts))
        unused += [f"{place}: {name}" for name in names if name not in raised]
    assert unused == []


@pytest.mark.parametrize(
    "line",
    [
        "raise ValueError('a')",
        "raise KeyError",
        "raise module.StrangeError('a')",
        "class OddError(Exception): pass",
        "class Stop(KeyboardInterrupt): pass",
    ],
)
def test_the_guard_sees(line: str) -> None:
    assert len(foreign_exceptions(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from vramkit.errors import CapacityError\nraise CapacityError('a') from None",
        "from vramkit import errors\nraise errors.CapacityError('a')",
        "raise",
        "raise EXCEPTIONS[status](text)",
        "raise err",
    ],
)
def test_the_guard_allows(line: str) -> None:
    assert foreign_exceptions(line) == set()
