"""Builds the native libraries; everything declarative is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def native_sources() -> list[Path]:
    """Return the files of csrc/, relative to the checkout."""
    files = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    return sorted(path.relative_to(ROOT) for path in files)


def load_recipes() -> ModuleType:
    """Import vramkit/_build without importing vramkit, whose needs may not be installed yet."""
    folder = ROOT / "vramkit" / "_build"
    spec = importlib.util.spec_from_file_location(
        "vramkit_build", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vramkit_build"] = module
    spec.loader.exec_module(module)
    return module


class BuildLibraries(build_ext):
    """Compiles csrc/ into vramkit/_lib, incrementally; objects stay in build/native."""

    def run(self) -> None:
        in_tree = self.inplace or self.editable_mode
        base = ROOT if in_tree else Path(self.build_lib).resolve()
        recipes = load_recipes()
        try:
            recipes.build_all(base / "vramkit" / "_lib", ROOT / "build" / "native" / "plain")
        except recipes.BuildError as err:
            sys.exit(f"error: {err}")

    def get_outputs(self) -> list[str]:
        libraries = (Path(self.build_lib) / "vramkit" / "_lib").glob("*.so")
        return sorted(str(path) for path in libraries)

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(source) for source in native_sources()]


class PackageSources(build_py):
    """Ships csrc/ as vramkit/_csrc: what is bound to a torch may have to be built at first use."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in native_sources():
                self.copy_file(str(ROOT / source), str(self._packaged(source)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        packaged = [str(self._packaged(source)) for source in native_sources()]
        return [*super().get_outputs(include_bytecode), *packaged]

    def _packaged(self, source: Path) -> Path:
        target = Path(self.build_lib) / "vramkit" / "_csrc" / source.relative_to("csrc")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


class PlatformWheel(bdist_wheel):
    """The libraries are loaded with ctypes and torch: any Python 3, one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("vramkit._lib.native", sources=[])],
    cmdclass={
        "bdist_wheel": PlatformWheel,
        "build_ext": BuildLibraries,
        "build_py": PackageSources,
    },
)
