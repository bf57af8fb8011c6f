"""Public is what ``__all__`` lists; other modules start with an underscore."""

from __future__ import annotations

import importlib
from pathlib import Path, PurePosixPath

import pytest

import vramkit

ROOT = Path(__file__).resolve().parents[2]
_PUBLIC_MODULES = (
    *("cli", "contrib", "contrib.conv_bias_relu", "errors", "estimate", "loader", "nn"),
    *("estimate.config", "nn.functional", "pool", "simulate", "sparse", "units"),
)
_MOST_NAMES = 10


def module_violations(paths: list[str]) -> list[str]:
    """Return the modules of ``vramkit/`` that are public by their name and not listed."""
    found = []
    for path in map(PurePosixPath, paths):
        names = path.with_suffix("").parts
        listed = ".".join(name for name in names if name != "__init__") in _PUBLIC_MODULES
        public = [at for at in range(1, len(names)) if ".".join(names[:at]) in _PUBLIC_MODULES]
        allowed = names[0].startswith("_") or bool(public)
        inner_private = all(part.startswith("_") for part in names[max(public, default=1) :])
        if not listed and not (allowed and inner_private):
            found.append(f"vramkit/{path}: start it with an underscore, or list it as public")
    return found


def test_modules_are_private_unless_listed() -> None:
    package = ROOT / "vramkit"
    paths = [path.relative_to(package).as_posix() for path in package.rglob("*.py")]
    assert module_violations(paths) == []


def test_the_guard_sees_public_modules() -> None:
    assert len(module_violations(["helpers.py", "pool/scopes.py", "_core/pool.py"])) == 3
    assert module_violations(["pool/__init__.py", "units.py", "_build/_torch.py"]) == []
    assert module_violations(["estimate/config/_a/_b.py"]) == []
    assert len(module_violations(["estimate/config/a.py", "estimate/other/_a.py"])) == 2


def test_the_top_has_few_names() -> None:
    assert len(vramkit.__all__) <= _MOST_NAMES
    assert sorted(vramkit.__all__) == sorted(set(vramkit.__all__))


def test_every_listed_name_is_there() -> None:
    for name in vramkit.__all__:
        assert getattr(vramkit, name) is not None
    assert set(vramkit.__all__) <= set(dir(vramkit))


@pytest.mark.parametrize("name", _PUBLIC_MODULES)
def test_public_modules_list_their_names(name: str) -> None:
    module = importlib.import_module(f"vramkit.{name}")
    assert module.__all__
    for listed in module.__all__:
        assert hasattr(module, listed), f"vramkit.{name}.{listed} is listed and missing"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vramkit.nothing
