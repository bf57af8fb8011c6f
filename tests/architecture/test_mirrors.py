"""Tests stand where the code's path says."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders of tests about the project rather than one part of it.
_OWN = {"architecture", "benchmarks", "examples", "gpu", "helpers", "init", "packaging"}


def untested_parts(
    parts: set[str], tested: set[str], native_stems: dict[str, set[str]]
) -> set[str]:
    """Return the parts without a folder of tests and without a native test of one of their files.

    Args:
        parts: Names of the code's folders and modules.
        tested: Names of the folders and modules of tests.
        native_stems: For each native folder, the file stems that ``tests/cpp`` may test.
    """
    native = _native_tests()
    return {
        part for part in parts if part not in tested and not native & native_stems.get(part, set())
    }


def unknown_tests(tested: set[str], parts: set[str]) -> set[str]:
    """Return the folders of tests that no part of the code answers to."""
    return tested - parts - _OWN


def _native_tests() -> set[str]:
    files = (ROOT / "tests" / "cpp").rglob("*_test.cpp")
    return {path.name.removesuffix("_test.cpp") for path in files}


def _native_stems() -> dict[str, set[str]]:
    folders = [folder for folder in (ROOT / "csrc").iterdir() if folder.is_dir()]
    return {
        folder.name: {folder.name, *(file.stem for file in folder.rglob("*"))} for folder in folders
    }


def _parts() -> set[str]:
    python = {
        path.name.removesuffix(".py").lstrip("_")
        for path in (ROOT / "vramkit").iterdir()
        if (path / "__init__.py").is_file() or path.suffix == ".py"
    }
    # _build is tested as packaging, the C interface through its ctypes binding, the entrances by
    # what they lead to.
    return (python | set(_native_stems())) - {"build", "bind", "init__", "main__"}


def _tested() -> set[str]:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    return folders | {
        path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")
    }


def test_every_part_has_tests() -> None:
    assert untested_parts(_parts(), _tested(), _native_stems()) == set()


def test_every_folder_of_tests_has_code() -> None:
    assert unknown_tests(_tested(), _parts()) == set()


def test_every_native_test_names_a_file() -> None:
    stems = set().union(*_native_stems().values())
    tests = _native_tests()
    assert tests
    assert tests - stems == set()


def test_the_guards_see() -> None:
    assert untested_parts({"pool", "novel"}, {"pool"}, {"novel": {"never"}}) == {"novel"}
    assert unknown_tests({"pool", "old", "architecture"}, {"pool"}) == {"old"}
