"""What an installation builds."""

from __future__ import annotations

from pathlib import Path

from . import _adapters, _cuda, _recipes
from ._errors import BuildError
from ._objects import Recipe, build
from ._sources import ops_cuda_sources, source_root
from ._toolchain import find_nvcc
from ._torch import Torch, find_torch


def build_all(output_dir: Path, object_dir: Path) -> list[Path]:
    """Build every library that this machine can build, and say in one line what is left out.

    Args:
        output_dir: Receives the libraries.
        object_dir: Keeps objects between calls, so that nothing unchanged is compiled again.

    Raises:
        BuildError: No compiler, or it refused a source.
    """
    recipes = [_recipes.core(source_root())]
    torch = find_torch()
    if torch is None:
        print(
            "vramkit: torch is not visible to this build: what is bound to it is built at first use"
        )
    else:
        recipes += _torch_recipes(torch, object_dir)
    return [build(recipe, output_dir, object_dir, verbose=True) for recipe in recipes]


def _torch_recipes(torch: Torch, object_dir: Path) -> list[Recipe]:
    root = source_root()
    recipes = [_adapters.recipe(root, kind, torch) for kind in _adapters.WITHOUT_CUDA]
    recipes.append(_recipes.ops_cpu(root, torch))
    if torch.has_cuda:
        try:
            recipes.append(_adapters.recipe(root, "cuda", torch))
        except BuildError as err:
            print(f"vramkit: the CUDA adapter is left to its first use: {err}")
    nvcc = find_nvcc()
    if nvcc is None:
        print("vramkit: nvcc is not found: the CUDA parts are left out")
    elif ops_cuda_sources(root):
        recipes.append(_cuda.ops_cuda(root, torch, nvcc, object_dir / "stubs"))
    return recipes
