"""The user's cache of compiled libraries: where it is, what may be taken from it, how it is filled.

A package that was installed where torch could be seen brings its libraries, and they win. The cache
serves what the package lacks, and what the user has rebuilt: a rebuild leaves a record beside the
library, with the hash of the package's own that it replaces, and holds until that one changes.

What another user could have written is never loaded (``_trust.py``). A cache that others can write
to is ignored with a warning, and what is needed is compiled for the one process.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ._errors import BuildError
from ._objects import Recipe, build, locked
from ._trust import UntrustedError, is_trusted_file, trusted_folder

_OBJECTS_PREFIX = ".build-"


@dataclass(frozen=True)
class Library:
    """A library that may stand in the cache.

    Attributes:
        name: File name.
        key: Name of its folder in the cache: everything that the library depends on.
        recipe: How it is compiled; asked only when a compiler is needed.
    """

    name: str
    key: str
    recipe: Callable[[], Recipe]

    @property
    def record(self) -> str:
        """Name of the file that tells which library of the package a rebuild replaces."""
        return f"{self.name}.replaces"


def find(library: Library, package_dir: Path) -> Path | None:
    """Return the library of the package, else the cache's; a rebuilt one comes before both.

    Raises:
        BuildError: The cache's folder cannot be read.
    """
    own = package_dir / library.name
    if own.is_file():
        return _rebuilt(library, own) or own
    try:
        folder = trusted_folder(_root() / library.key)
        return _trusted_or_none(folder / library.name)
    except FileNotFoundError:
        return None
    except UntrustedError as err:
        _warn_ignored(str(err))
        return None
    except OSError as err:
        raise _unusable(err) from err


def compile_once(library: Library) -> Path:
    """Compile into the cache what no other process has compiled; for this process alone at need.

    Raises:
        BuildError: There is no compiler, it refused a source, or nothing can be written.
    """
    try:
        folder = trusted_folder(_root() / library.key, create=True)
    except UntrustedError as err:
        _warn_ignored(str(err))
        folder = _process_folder()
    except OSError as err:
        raise _unusable(err) from err
    return _build_in(folder, library, package_dir=None)


def rebuild(library: Library, package_dir: Path) -> Path:
    """Compile into the cache, and record that this replaces the package's library as it is now.

    Raises:
        BuildError: There is no compiler, it refused a source, or the cache cannot be used.
    """
    try:
        folder = trusted_folder(_root() / library.key, create=True)
    except (UntrustedError, OSError) as err:
        raise _unusable(err) from err
    return _build_in(folder, library, package_dir=package_dir)


def _rebuilt(library: Library, own: Path) -> Path | None:
    # Without a record there is nothing to ignore, and so nothing to warn of.
    with suppress(UntrustedError, OSError):
        folder = _root() / library.key
        (folder / library.record).lstat()
        return _rebuilt_in(folder, library, own)
    return None


def _rebuilt_in(unchecked: Path, library: Library, own: Path) -> Path | None:
    try:
        folder = trusted_folder(unchecked)
        record, path = folder / library.record, folder / library.name
        if not (is_trusted_file(record) and is_trusted_file(path)):
            return None
        return path if record.read_text(encoding="utf-8") == _digest(own) else None
    except (UntrustedError, OSError, ValueError) as err:
        _warn_ignored(str(err))
        return None


def _build_in(folder: Path, library: Library, package_dir: Path | None) -> Path:
    """Compile where the library is missing, or for a rebuild, which names the package's folder."""
    path = folder / library.name
    try:
        with locked(folder):
            _remove_leftovers(folder, library.name)
            if package_dir is None and _trusted_or_none(path):
                return path
            print(f"vramkit: compiling {path}, once", file=sys.stderr)
            with TemporaryDirectory(dir=folder, prefix=_OBJECTS_PREFIX) as objects:
                build(replace(library.recipe(), private=True), folder, Path(objects))
                if package_dir is not None:
                    record = Path(objects) / library.record
                    record.write_text(_digest(package_dir / library.name), encoding="utf-8")
                    record.chmod(0o600)
                    record.replace(folder / library.record)
    except OSError as err:
        raise _unusable(err) from err
    return path


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed builds have left; the caller holds the lock, so none is at work."""
    for path in folder.glob(f"{_OBJECTS_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".{name}.*"):
        path.unlink()


def _trusted_or_none(path: Path) -> Path | None:
    try:
        return path if is_trusted_file(path) else None
    except UntrustedError as err:
        _warn_ignored(str(err))
        return None


def _root() -> Path:
    """Return the cache's folder, not checked.

    Raises:
        UntrustedError: Its place would depend on the working directory.
    """
    named = os.environ.get("XDG_CACHE_HOME", "").strip()
    if named and not Path(named).is_absolute():
        warn_once(f"vramkit ignores XDG_CACHE_HOME={named!r}: it must be an absolute path")
        named = ""
    try:
        base = Path(named) if named else Path.home() / ".cache"
    except RuntimeError as err:
        raise UntrustedError(f"no home folder is known ({err}); set XDG_CACHE_HOME") from err
    if not base.is_absolute():
        raise UntrustedError(f"the home folder {Path.home()} is no absolute path; set HOME to one")
    return base / "vramkit"


@cache
def _process_folder() -> Path:
    """Return a folder that only this process uses and that goes when it ends.

    Raises:
        BuildError: $TMPDIR is a folder in which others could exchange it.
    """
    made = Path(tempfile.mkdtemp(prefix="vramkit-"))
    owner = os.getpid()

    def remove() -> None:
        # A forked child runs this too, while its parent still needs the folder.
        if os.getpid() == owner:
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    try:
        return trusted_folder(made)
    except (UntrustedError, OSError) as err:
        raise _unusable(err) from err


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _unusable(err: Exception) -> BuildError:
    return BuildError(
        f"cannot use the cache of compiled libraries ({err}); name a folder that you alone can "
        "write to in the variable XDG_CACHE_HOME, or install vramkit where it can see torch: "
        "pip install --no-build-isolation vramkit"
    )


def _warn_ignored(reason: str) -> None:
    warn_once(f"vramkit ignores compiled libraries in its cache: {reason}")


@cache
def warn_once(text: str) -> None:
    """Warn once in a process, however many libraries are looked for."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)
