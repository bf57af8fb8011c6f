"""Which libraries bound to its minor version a torch can have, and how each is built."""

from __future__ import annotations

from pathlib import Path

from . import _cuda, _recipes
from ._errors import BuildError
from ._objects import Recipe
from ._torch import Torch

WITHOUT_CUDA = ("cpu", "fake", "node")


def kinds(torch: Torch) -> tuple[str, ...]:
    """Return the kinds of adapters for a torch; ``cuda`` only where it has CUDA.

    ``cpu`` and ``cuda`` are allocator adapters, ``fake`` pretends a CUDA device (vramkit.estimate),
    and ``node`` has nodes of autograd (vramkit.nn).
    """
    return (*WITHOUT_CUDA, "cuda") if torch.has_cuda else WITHOUT_CUDA


def recipe(root: Path, kind: str, torch: Torch) -> Recipe:
    """Return the recipe of the adapter of that kind.

    Raises:
        BuildError: There is no such adapter, or not for this torch, or CUDA's headers are missing.
    """
    if kind in ("fake", "node"):
        return _recipes.torch_adapter(root, kind, torch)
    if kind != "cuda":
        return _recipes.adapter(root, kind, torch)
    if not torch.has_cuda:
        raise BuildError(
            f"torch {torch.version} has no CUDA, so a pool cannot serve CUDA tensors; install a "
            "torch with CUDA (https://pytorch.org/get-started/locally)"
        )
    return _cuda.adapter(root, torch)
