"""Incremental compiling and linking: what has not changed is not built again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ._errors import BuildError
from ._toolchain import for_each, run
from ._trust import open_lock


@dataclass(frozen=True)
class Recipe:
    """How one shared library or program is made.

    Attributes:
        name: File name of the result.
        root: Folder of csrc/; objects repeat the sources' paths relative to its parent.
        sources: The files to compile.
        compile: Compiler and flags; ``-c``, the source and ``-o`` are added.
        link: Linker driver and its leading flags; objects and ``-o`` are added.
        link_tail: Libraries and flags that must follow the objects.
        exports: Pattern of the symbols that stay visible, or None for all.
        private: Only this user may read the result, and compilers keep their temporary files beside
            the objects, not in $TMPDIR.
    """

    name: str
    root: Path
    sources: tuple[Path, ...]
    compile: tuple[str, ...]
    link: tuple[str, ...]
    link_tail: tuple[str, ...] = ()
    exports: str | None = None
    private: bool = False

    def run(self, command: Sequence[str], object_dir: Path) -> str:
        """Run a compiler or linker and return what it printed.

        Raises:
            BuildError: It failed.
        """
        return run(command, scratch=object_dir if self.private else None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, so that one process at a time builds in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_lock(folder / ".lock"), "rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(recipe: Recipe, output_dir: Path, object_dir: Path, *, verbose: bool = False) -> Path:
    """Make the recipe's result in ``output_dir``, reusing what is current in ``object_dir``.

    Args:
        recipe: What to make.
        output_dir: Receives the result.
        object_dir: Keeps objects, and stamps that tell what is current.
        verbose: Say what is compiled, and what the compiler warns of.

    Raises:
        BuildError: There are no sources, or a compiler or the linker failed.
    """
    if not recipe.sources:
        raise BuildError(f"{recipe.name}: no sources found under {recipe.root}")
    output = output_dir / recipe.name
    with locked(object_dir):
        jobs = [_Job(recipe, source, object_dir, verbose) for source in recipe.sources]
        for_each(_Job.update, jobs)
        _link(recipe, [job.object for job in jobs], output, object_dir, verbose)
    return output


class _Job:
    """One source's compilation; a stamp beside the object remembers command and inputs."""

    def __init__(self, recipe: Recipe, source: Path, object_dir: Path, verbose: bool) -> None:
        self._verbose = verbose
        self._run = partial(recipe.run, object_dir=object_dir)
        relative = source.relative_to(recipe.root.parent)
        self.object = object_dir / relative.with_name(relative.name + ".o")
        self._dependencies = self.object.with_suffix(".d")
        self._stamp = _Stamp(self.object.with_suffix(".stamp"))
        # -MD, not -MMD: torch's headers are system headers, and an upgrade changes them in place.
        flags = ["-MD", "-MF", str(self._dependencies), "-c", str(source), "-o", str(self.object)]
        self._command = [*recipe.compile, *flags]

    def update(self) -> None:
        if self.object.exists() and self._stamp.is_current(self._command):
            return
        self.object.parent.mkdir(parents=True, exist_ok=True)
        self._stamp.forget()
        started_ns = time.time_ns()
        if self._verbose:
            print(f"compiling {self._command[-3]}", flush=True)
        warnings = self._run(self._command)
        if self._verbose and warnings:
            print(warnings, flush=True)
        self._stamp.write(self._command, _read_dependencies(self._dependencies), started_ns)


def _read_dependencies(path: Path) -> list[Path]:
    rule = path.read_text(encoding="utf-8").replace("\\\n", " ")
    names = rule.split(": ", 1)[1].replace("\\ ", "\0").split()
    return [Path(name.replace("\0", " ")) for name in names]


def _link(
    recipe: Recipe, objects: Sequence[Path], output: Path, object_dir: Path, verbose: bool
) -> None:
    export_flags: list[str] = []
    if recipe.exports is not None:
        # Hidden visibility alone still exports the templates that libstdc++ marks as visible.
        script = object_dir / f"{recipe.name}.map"
        script.write_text(f"{{ global: {recipe.exports}; local: *; }};\n", encoding="utf-8")
        export_flags = ["-Xlinker", f"--version-script={script}"]
    command = [*recipe.link, *map(str, objects), *export_flags, *recipe.link_tail]
    stamp = _Stamp(object_dir / f"{recipe.name}.stamp")
    if output.exists() and stamp.is_current([*command, str(output)]):
        return
    stamp.forget()
    started_ns = time.time_ns()
    output.parent.mkdir(parents=True, exist_ok=True)
    # A process may have the old file mapped: it must be replaced, never written to.
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    if verbose:
        print(f"linking {output}", flush=True)
    recipe.run([*command, "-o", str(fresh)], object_dir)
    if recipe.private:
        fresh.chmod(0o700)
    fresh.replace(output)
    stamp.write([*command, str(output)], objects, started_ns)


class _Stamp:
    """The command and the inputs' times that made a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_current(self, command: Sequence[str]) -> bool:
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            return bool(saved == _state(command, map(Path, saved["inputs"])))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, command: Sequence[str], inputs: Sequence[Path], started_ns: int) -> None:
        state = _state(command, inputs)
        # An input edited while the command ran may not be in the result: leave it to be redone.
        if max(path.stat().st_mtime_ns for path in inputs) < started_ns:
            self._path.write_text(json.dumps(state), encoding="utf-8")


def _state(command: Sequence[str], inputs: Iterable[Path]) -> dict[str, object]:
    return {
        "command": list(command),
        "inputs": {str(path): path.stat().st_mtime_ns for path in inputs},
    }
