"""Only what has changed is built again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vramkit._build import BuildError, _objects, _recipes


class Workshop:
    """Builds the tree's core and tells which files that made anew."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.recipe = _recipes.core(tree)
        self.objects = tree.parent / "objects"
        self.output = tree.parent / "lib"

    def built(self) -> set[str]:
        before = self._times()
        _objects.build(self.recipe, self.output, self.objects)
        return {name for name, time in self._times().items() if before.get(name) != time}

    def _times(self) -> dict[str, int]:
        files = [*self.objects.rglob("*.o"), *self.output.glob("*.so")]
        return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.fixture
def workshop(tree: Path) -> Workshop:
    return Workshop(tree)


def _edit(path: Path) -> None:
    later_ns = path.stat().st_mtime_ns - 1_000_000_000
    path.write_text(path.read_text() + "// edited\n")
    # An unpacked archive or a checkout of an old state can make a changed file older.
    os.utime(path, ns=(later_ns, later_ns))


def test_a_second_build_does_nothing(workshop: Workshop) -> None:
    assert workshop.built() == {"bytes.cpp.o", "b.cpp.o", "libvramkit_core.so"}
    assert workshop.built() == set()


def test_a_header_rebuilds_what_includes_it(workshop: Workshop) -> None:
    workshop.built()
    _edit(workshop.tree / "base" / "one.h")
    assert workshop.built() == {"bytes.cpp.o", "libvramkit_core.so"}
    assert workshop.built() == set()


def test_another_flag_rebuilds_everything(workshop: Workshop) -> None:
    workshop.built()
    workshop.recipe = replace(workshop.recipe, compile=(*workshop.recipe.compile, "-DX=1"))
    assert workshop.built() == {"bytes.cpp.o", "b.cpp.o", "libvramkit_core.so"}


def test_a_lost_library_is_linked_again(workshop: Workshop) -> None:
    workshop.built()
    (workshop.output / "libvramkit_core.so").unlink()
    assert workshop.built() == {"libvramkit_core.so"}


def test_a_new_source_is_added(workshop: Workshop) -> None:
    workshop.built()
    (workshop.tree / "base" / "c.cpp").write_text("int c() { return 3; }\n")
    workshop.recipe = _recipes.core(workshop.tree)
    assert workshop.built() == {"c.cpp.o", "libvramkit_core.so"}


def test_an_edit_while_compiling_is_not_lost(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = workshop.tree / "base" / "bytes.cpp"

    def run_and_touch(command: Sequence[str], *, scratch: Path | None) -> str:
        printed = _run(command, scratch=scratch)
        source.touch()
        return printed

    monkeypatch.setattr(_objects, "run", run_and_touch)
    workshop.built()
    monkeypatch.undo()
    assert "bytes.cpp.o" in workshop.built()


_run = _objects.run


def test_a_failed_compile_says_what_the_compiler_said(workshop: Workshop) -> None:
    workshop.built()
    kept = (workshop.output / "libvramkit_core.so").read_bytes()
    (workshop.tree / "base" / "bytes.cpp").write_text("int a() { return nothing; }\n")
    with pytest.raises(BuildError, match=r"(?s)command failed with status 1: .*nothing"):
        workshop.built()
    assert (workshop.output / "libvramkit_core.so").read_bytes() == kept


def test_a_lock_keeps_what_a_link_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / ".lock").symlink_to(kept)
    with pytest.raises(OSError, match="symbolic"), _objects.locked(tmp_path / "objects"):
        pass
    assert kept.read_text() == "kept"


def test_a_lock_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match="no regular file"), _objects.locked(tmp_path):
        pass


def test_a_lock_is_private_and_keeps_its_content(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("left by another version")
    lock.chmod(0o666)
    with _objects.locked(tmp_path):
        assert lock.stat().st_mode & 0o777 == 0o600
    assert lock.read_text() == "left by another version"


def test_no_sources_is_an_error(tree: Path) -> None:
    recipe = replace(_recipes.core(tree), sources=())
    with pytest.raises(BuildError, match=f"no sources found under {tree}"):
        _objects.build(recipe, tree, tree)


def test_only_the_interface_is_exported(workshop: Workshop) -> None:
    workshop.built()
    command = ["nm", "-D", "--defined-only", str(workshop.output / "libvramkit_core.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Visibility is hidden, so even a fitting name needs VRAMKIT_API.
    assert done.stdout == ""


def test_adapters_are_no_part_of_the_core(tree: Path) -> None:
    names = [path.name for path in _recipes.core(tree).sources]
    assert names == ["bytes.cpp", "b.cpp"]
