"""What pyproject.toml promises is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from vramkit._build import _torch

ROOT = Path(__file__).resolve().parents[2]
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_PROJECT = _PYPROJECT["project"]


def test_torch_is_bounded_as_the_build_checks_it() -> None:
    [requirement] = [each for each in _PROJECT["dependencies"] if each.startswith("torch")]
    oldest, first_unsupported = re.findall(r"(\d+)\.(\d+)", requirement)
    assert tuple(map(int, oldest)) == _torch.OLDEST
    assert tuple(map(int, first_unsupported)) == _torch.FIRST_UNSUPPORTED


def test_the_extras() -> None:
    wanted = {"viz", "rmm", "cupy", "demo", "hub", "web", "bench", "test", "docs"}
    assert wanted <= set(_PROJECT["optional-dependencies"])


def test_every_file_of_data_is_in_the_wheel() -> None:
    declared: set[Path] = set()
    for package, patterns in _PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        declared |= {path for pattern in patterns for path in folder.glob(pattern)}
    kinds = {".json", ".html", ".css", ".js", ".typed"}
    data = {path for path in (ROOT / "vramkit").rglob("*") if path.suffix in kinds}
    assert len(data) > 30
    assert data - declared == set()


def test_make_offers_what_the_documents_name() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = set()
    for path in documents:
        named |= set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)`", path.read_text(encoding="utf-8")))
    assert named - targets == set()
