"""The cache of compiled libraries: private, and nothing that another user could have written."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import builds

from vramkit._build import BuildError, _cache, _first_use, _objects, _recipes

ROOT = Path(__file__).resolve().parents[2]
_NOBODY = 65534
_IGNORES = "vramkit ignores compiled libraries in its cache:"
_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
_PLANTED = """
#include <cstdlib>
extern "C" const char* vramkit_adapter_torch_version() { return "%s"; }
__attribute__((constructor)) static void run() { setenv("VRAMKIT_TEST_PLANTED", "ran", 1); }
"""


@pytest.fixture(autouse=True)
def _ordinary_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def cache(package: Path) -> Path:
    """The folder that XDG_CACHE_HOME names, which is not there yet."""
    return package.parent / "cache"


def _planted(package: Path) -> Path:
    """Exchange the adapter in the cache for one whose constructor can be noticed."""
    # Not loaded: the linker would give a second file of the same path the first one's place.
    path = _cache.compile_once(_first_use._adapter("cpu", _first_use._installed_torch()))
    made = builds.library(package.parent, "planted.so", _PLANTED % torch.__version__)
    made.chmod(0o700)
    made.replace(path)
    return path


def _ran() -> bool:
    # os.environ is a copy of what the C library has.
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return getenv(b"VRAMKIT_TEST_PLANTED") is not None


@pytest.fixture(autouse=True)
def _nothing_has_run() -> Iterator[None]:
    yield
    ctypes.CDLL(None).unsetenv(b"VRAMKIT_TEST_PLANTED")


def _adapter_and_warnings() -> tuple[Path, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = _first_use.adapter_path("cpu")
        _first_use.ops_cpu_path()
    return path, [str(each.message) for each in caught]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_tests_notice_a_constructor(package: Path) -> None:
    path = _planted(package)
    assert not _ran()
    assert _first_use.adapter_path("cpu") == path
    assert _ran()


def _ignored(path: Path, cache: Path) -> bool:
    return not path.is_relative_to(cache) and not _ran()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702], ids=oct)
@pytest.mark.parametrize("levels", [0, 1, 2], ids=["own folder", "vramkit", "XDG_CACHE_HOME"])
def test_a_folder_that_others_can_write_to(
    package: Path, cache: Path, mode: int, levels: int
) -> None:
    folder = [_planted(package).parent, cache / "vramkit", cache][levels]
    folder.chmod(mode)
    path, said = _adapter_and_warnings()
    assert _ignored(path, cache)
    # The adapter and the ops have folders of their own; what stands above is said once.
    assert said == [
        (
            f"{_IGNORES} other users may write to {folder} "
            f"(mode {mode:04o}); run: chmod go-w {folder}"
        )
    ]


def test_a_folder_above_the_cache_may_be_sticky(package: Path, cache: Path) -> None:
    planted = _planted(package)
    cache.chmod(0o1777)
    assert _adapter_and_warnings() == (planted, [])


def test_the_folder_of_a_library_may_not_be_sticky(package: Path, cache: Path) -> None:
    # Others may add a hard link there, to any file of this user.
    _planted(package).parent.chmod(0o1777)
    path, said = _adapter_and_warnings()
    assert _ignored(path, cache)
    assert len(said) == 1


@pytest.mark.parametrize("mode", [0o666, 0o720, 0o602], ids=oct)
def test_a_file_that_others_can_write_to_is_compiled_anew(
    package: Path, cache: Path, mode: int
) -> None:
    planted = _planted(package)
    planted.chmod(mode)
    path, said = _adapter_and_warnings()
    assert path == planted
    assert not _ran()
    assert _mode(path) == 0o700
    assert said == [
        (f"{_IGNORES} other users may write to {path} (mode {mode:04o}); run: chmod go-w {path}")
    ]


def test_a_link_in_the_place_of_a_library_is_not_followed(package: Path) -> None:
    planted = _planted(package)
    moved = planted.rename(package.parent / "elsewhere.so")
    planted.symlink_to(moved)
    path, said = _adapter_and_warnings()
    assert path == planted
    assert not path.is_symlink()
    assert not _ran()
    assert said == [f"{_IGNORES} {path} is a symbolic link; remove it"]


def test_what_is_no_file_does_not_block(package: Path) -> None:
    path = _planted(package)
    path.unlink()
    os.mkfifo(path)
    assert _adapter_and_warnings() == (
        path,
        [f"{_IGNORES} {path} is no regular file; remove it"],
    )
    assert path.is_file()


@_needs_root
@pytest.mark.parametrize("levels", [0, 1, 2], ids=["own folder", "vramkit", "XDG_CACHE_HOME"])
def test_another_users_folder(package: Path, cache: Path, levels: int) -> None:
    folder = [_planted(package).parent, cache / "vramkit", cache][levels]
    os.chown(folder, _NOBODY, _NOBODY)
    path, said = _adapter_and_warnings()
    assert _ignored(path, cache)
    assert said == [
        (
            f"{_IGNORES} {folder} belongs to the user {_NOBODY}, "
            f"not to you ({os.geteuid()}) or root; remove it or choose another folder"
        )
    ]


@_needs_root
def test_another_users_file_is_compiled_anew(package: Path) -> None:
    planted = _planted(package)
    os.chown(planted, _NOBODY, _NOBODY)
    path, said = _adapter_and_warnings()
    assert path == planted
    assert not _ran()
    assert path.stat().st_uid == os.geteuid()
    assert len(said) == 1


@_needs_root
def test_another_users_link_in_a_sticky_folder(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planted(package)
    shared = package.parent / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(link))
    assert _adapter_and_warnings()[1] == []
    builds.forget()
    os.chown(link, _NOBODY, _NOBODY, follow_symlinks=False)
    path, said = _adapter_and_warnings()
    assert not path.is_relative_to(cache)
    assert len(said) == 1
    assert said[0].startswith(f"{_IGNORES} {link} belongs to the user {_NOBODY}")


@_needs_root
def test_an_ordinary_user_takes_what_root_owns(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = _planted(package)
    monkeypatch.setattr(os, "geteuid", lambda: _NOBODY)
    assert (
        _cache.find(_first_use._adapter("cpu", _first_use._installed_torch()), package) == planted
    )


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_what_is_made_is_private(package: Path, cache: Path, umask: int) -> None:
    os.umask(umask)
    path = _first_use.adapter_path("cpu")
    for folder in (cache, cache / "vramkit", path.parent):
        assert _mode(folder) == 0o700
    assert {each.name: _mode(each) for each in path.parent.iterdir()} == {
        path.name: 0o700,
        ".lock": 0o600,
    }


def test_compilers_keep_their_temporary_files_in_the_cache(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What one stage of a compiler writes, the next one reads.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "open to all"))
    seen = tmp_path / "seen"
    compiler = tmp_path / "g++"
    real = _recipes.find_cxx()
    compiler.write_text(f'#!/bin/sh\necho "$(umask) $TMPDIR" >>{seen}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    folder = _first_use.adapter_path("cpu").parent
    # A line each, written at once: compilers run side by side.
    umasks, folders = zip(*(line.split() for line in seen.read_text().splitlines()), strict=True)
    assert set(umasks) == {"0077"}
    assert {Path(each).parent for each in folders} == {folder}


def test_what_a_killed_build_left_is_removed(package: Path) -> None:
    path = _first_use.adapter_path("cpu")
    path.unlink()
    (path.parent / ".build-killed").mkdir()
    (path.parent / ".build-killed" / "a.o").touch()
    (path.parent / f".{path.name}.12345").touch()
    builds.forget()
    assert _first_use.adapter_path("cpu") == path
    assert {each.name for each in path.parent.iterdir()} == {path.name, ".lock"}


def test_a_relative_cache_is_ignored(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
    monkeypatch.chdir(tmp_path)
    path, said = _adapter_and_warnings()
    assert path.is_relative_to(home / ".cache" / "vramkit")
    assert _mode(home / ".cache") == 0o700
    assert said == ["vramkit ignores XDG_CACHE_HOME='relative/cache': it must be an absolute path"]
    assert not (tmp_path / "relative").exists()


def test_a_relative_home_is_ignored(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "home")
    monkeypatch.chdir(tmp_path)
    _, said = _adapter_and_warnings()
    assert said == [(f"{_IGNORES} the home folder home is no absolute path; set HOME to one")]
    assert not (tmp_path / "home").exists()


def test_the_packages_own_library_wins(package: Path) -> None:
    _planted(package)
    own = builds.adapter_for(package, torch.__version__)
    assert _first_use.adapter_path("cpu") == own
    assert not _ran()


def test_the_packages_own_library_needs_no_cache(package: Path, cache: Path) -> None:
    builds.library(package, _recipes.OPS_CPU_LIBRARY, "int nothing;")
    own = builds.adapter_for(package, torch.__version__)
    cache.mkdir()
    cache.chmod(0o777)
    assert _adapter_and_warnings() == (own, [])


def test_a_rebuild_wins_over_the_packages_own_until_that_changes(package: Path) -> None:
    own = builds.adapter_for(package, torch.__version__)
    rebuilt = _first_use.rebuild()[0]
    assert _first_use.adapter_path("cpu") == rebuilt
    builds.forget()
    own.write_bytes(own.read_bytes() + b"installed anew")
    assert _first_use.adapter_path("cpu") == own


def test_a_rebuild_before_the_package_had_a_library(package: Path) -> None:
    rebuilt = _first_use.rebuild()[0]
    assert _first_use.adapter_path("cpu") == rebuilt
    builds.forget()
    assert _first_use.adapter_path("cpu") == rebuilt
    builds.forget()
    own = builds.adapter_for(package, torch.__version__)
    assert _first_use.adapter_path("cpu") == own


def test_a_record_that_others_can_write_to_is_ignored(package: Path) -> None:
    own = builds.adapter_for(package, torch.__version__)
    rebuilt = _first_use.rebuild()[0]
    record = rebuilt.with_name(rebuilt.name + ".replaces")
    assert _mode(record) == 0o600
    record.chmod(0o666)
    path, said = _adapter_and_warnings()
    assert path == own
    assert said == [
        (f"{_IGNORES} other users may write to {record} (mode 0666); run: chmod go-w {record}")
    ]


def test_a_rebuild_into_an_open_cache_is_refused(package: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(BuildError) as caught:
        _first_use.rebuild()
    assert str(caught.value) == (
        f"cannot use the cache of compiled libraries (other users may write to {cache} (mode 0777);"
        f" run: chmod go-w {cache}); name a folder that you alone can write to in the variable "
        "XDG_CACHE_HOME, or install vramkit where it can see torch: "
        "pip install --no-build-isolation vramkit"
    )
    assert list(cache.iterdir()) == []


def test_a_failed_rebuild_keeps_what_is_there(
    package: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _first_use.rebuild()[0]
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise BuildError("refused")

    monkeypatch.setattr(_objects, "_link", fail)
    with pytest.raises(BuildError, match="refused"):
        _first_use.rebuild()
    assert path.read_bytes() == before


_IN_A_CHILD = """
import os, pathlib, sys, warnings
from vramkit._build import _first_use as f
f.source_root = lambda: pathlib.Path(sys.argv[1])
f.library_dir = lambda: pathlib.Path(sys.argv[2])
path = f.adapter_path("cpu")
child = os.fork()
if not child:
    sys.exit()
os.waitpid(child, 0)
assert path.is_file(), "the child has removed its parent's file"
print(path)
"""


def _in_a_child(package: Path, tree: Path, **variables: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _IN_A_CHILD, str(tree), str(package)],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_folder_of_one_process_goes_with_it(package: Path, cache: Path, tree: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    done = _in_a_child(package, tree)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    assert made.name == builds.adapter_name()
    assert not made.is_relative_to(cache)
    assert not made.parent.exists()
    assert done.stderr.count("RuntimeWarning: vramkit ignores compiled libraries") == 1


def test_no_folder_is_safe(package: Path, cache: Path, tree: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    temporary = package.parent / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    done = _in_a_child(package, tree, TMPDIR=temporary)
    assert done.returncode == 1
    assert f"other users may write to {temporary} (mode 0777)" in done.stderr
    assert list(temporary.iterdir()) == []
