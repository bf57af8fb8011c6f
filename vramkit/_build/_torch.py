"""The torch that libraries are built for."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from ._errors import BuildError

OLDEST = (2, 11)
FIRST_UNSUPPORTED = (2, 16)


@dataclass(frozen=True)
class Torch:
    """One torch installation, or only its headers.

    Attributes:
        version: Full version, for instance ``2.13.0+cpu``.
        include: Folder of its headers.
        lib: Folder of its libraries; None when there are only headers, to compile but not to link.
        stubs: Whether ``lib`` holds stand-ins that have the libraries' names and no symbols.
        has_cuda: Whether it was built for CUDA.
        cxx11_abi: Value of ``_GLIBCXX_USE_CXX11_ABI`` that it was built with.
    """

    version: str
    include: Path
    lib: Path | None = None
    stubs: bool = False
    has_cuda: bool = False
    cxx11_abi: bool = True

    @property
    def minor(self) -> str:
        """The part of the version that the adapters are bound to, for instance ``2.13``."""
        return minor_of(self.version)


def minor_of(version: str) -> str:
    """Return major and minor of a torch version.

    Raises:
        BuildError: The text is no version, or the version is not supported.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise BuildError(f"cannot read torch's version {version!r}; expected something like 2.13.0")
    found = (int(match[1]), int(match[2]))
    if not OLDEST <= found < FIRST_UNSUPPORTED:
        raise BuildError(
            f"torch {version} is not supported: vramkit needs at least {_dotted(OLDEST)} and less "
            f"than {_dotted(FIRST_UNSUPPORTED)}; install one of those, for instance "
            "pip install 'torch==2.13.*'"
        )
    return _dotted(found)


def find_torch() -> Torch | None:
    """Return the torch that this interpreter imports; None in an isolated build, for instance."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    home = Path(torch.__file__).parent
    return Torch(
        version=str(torch.__version__),
        include=home / "include",
        lib=home / "lib",
        has_cuda=torch.version.cuda is not None,
        cxx11_abi=bool(torch.compiled_with_cxx11_abi()),
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
