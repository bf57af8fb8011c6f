"""The calculator needs neither torch nor transformers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[3] / "vramkit" / "estimate" / "config"
_HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "starlette", "uvicorn"}


def heavy_imports(text: str) -> set[str]:
    """Return what a module imports of these when it is imported."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found & _HEAVY


@pytest.mark.parametrize("path", sorted(_FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_heavy_is_imported(path: Path) -> None:
    assert heavy_imports(path.read_text(encoding="utf-8")) == set()


def test_the_guard_sees_heavy_imports() -> None:
    assert heavy_imports("import torch.nn\nfrom transformers import AutoConfig\n") == {
        "torch",
        "transformers",
    }
    assert heavy_imports("def f():\n    import torch\n") == set()
