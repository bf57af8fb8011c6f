"""Paths that documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = {".venv", ".cache", ".git", "build", "dist", "_build", "node_modules"}
_TOPS = (".ci", "benchmarks", "csrc", "docs", "examples", "scripts", "tests", "vramkit")
_CODE = re.compile(r"`([\w.*/-]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def missing_paths(text: str, folder: Path) -> list[str]:
    """Return the paths in a document that lead nowhere.

    Args:
        text: The document; paths in code spans count from the repository, links from ``folder``.
        folder: The folder that the document is in.
    """
    named = [
        token for token in _CODE.findall(text) if token.startswith(tuple(f"{t}/" for t in _TOPS))
    ]
    missing = [path for path in named if not any(ROOT.glob(path.rstrip("/")))]
    links = [link for link in _LINK.findall(text) if "://" not in link and "@" not in link]
    return missing + [link for link in links if not (folder / link).exists()]


def _documents() -> list[Path]:
    found = ROOT.rglob("*.md")
    return sorted(p for p in found if not _SKIPPED & set(p.relative_to(ROOT).parts))


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(path: Path) -> None:
    assert missing_paths(path.read_text(encoding="utf-8"), path.parent) == []


def test_the_guard_sees_missing_paths() -> None:
    text = "See `csrc/nowhere/a.cpp`, `csrc/pool/`, `tests/*/none_*.py`, `make test`, [b](no.md#x)."
    assert missing_paths(text, ROOT) == ["csrc/nowhere/a.cpp", "tests/*/none_*.py", "no.md"]


def test_the_guard_reads_documents() -> None:
    assert ROOT / "README.md" in _documents()
