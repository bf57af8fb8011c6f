"""The GPUs that an estimate can be for: what is known of each, and what is assumed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.estimate._calibration import read_calibration, target_of
from vramkit.estimate._target import Target

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# cuBLAS's workspace for one handle and stream: at::cuda::parseChosenWorkspaceSize. The first is for
# compute capability 9 and 10 and was measured on an H100.
_LARGE_WORKSPACE = 32 * _MIB
_SMALL_WORKSPACE = 2 * 4096 * _KIB + 8 * 16 * _KIB


_ASSUMED = (
    "Only the H100 and the H200 have been measured. For this GPU the number of multiprocessors is "
    "NVIDIA's, the total memory is what PyTorch reports on such cards; convolution workspaces are "
    "computed, and the memory outside PyTorch's allocator is assumed to be 450 MiB to 1.6 GiB."
)


def _assumed(
    name: str,
    title: str,
    capability: tuple[int, int],
    multi_processors: int,
    total_gib: float,
    l2_mib: int,
) -> Target:
    resident = {(7, 5): 1024, (8, 9): 1536, (12, 0): 1536}.get(capability, 2048)
    large = capability[0] in (9, 10)
    return Target(
        name=name,
        title=title,
        capability=capability,
        multi_processors=multi_processors,
        threads_per_multi_processor=resident,
        l2_bytes=l2_mib * _MIB,
        total_bytes=int(total_gib * _GIB),
        outside_bytes=900 * _MIB if not large else 1_307_377_664,
        outside_low_bytes=450 * _MIB,
        outside_high_bytes=1_600 * _MIB,
        cublas_bytes=_LARGE_WORKSPACE if large else _SMALL_WORKSPACE,
        assumed=_ASSUMED,
    )


def shipped_file(name: str) -> Path:
    """Return the file of a GPU that was measured, in the format of ``vramkit calibrate``."""
    return Path(__file__).parent / "_data" / f"{name}.json"


def _measured(name: str) -> Target:
    file = shipped_file(name)
    return target_of(json.loads(file.read_text(encoding="utf-8")), str(file))


def _with_convolutions(found: Target, others: Target) -> Target:
    """A GPU with the workspaces of another one of its generation where it has none of its own."""
    return replace(found, convolutions={**others.convolutions, **found.convolutions})


_H100 = _measured("h100")
_H200 = _with_convolutions(_measured("h200"), _H100)

_ALL = (
    _H100,
    _H200,
    _assumed("a100-40gb", "NVIDIA A100-SXM4-40GB", (8, 0), 108, 39.39, 40),
    _assumed("a100-80gb", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 79.25, 40),
    _assumed("b200", "NVIDIA B200", (10, 0), 148, 178.3, 126),
    _assumed("l4", "NVIDIA L4", (8, 9), 58, 22.03, 48),
    _assumed("l40s", "NVIDIA L40S", (8, 9), 142, 44.4, 96),
    _assumed("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 23.6, 72),
    _assumed("rtx5090", "NVIDIA GeForce RTX 5090", (12, 0), 170, 31.3, 96),
    _assumed("t4", "Tesla T4", (7, 5), 40, 14.56, 4),
)
_OTHER_NAMES = {"h10080gb": "h100", "geforcertx4090": "rtx4090"}


def targets() -> tuple[Target, ...]:
    """Return all GPUs that have a name.

    >>> sorted(target.name for target in targets())[:3]
    ['a100-40gb', 'a100-80gb', 'b200']
    """
    return _ALL


def find_target(target: str | os.PathLike[str] | Target) -> Target:
    """Return a GPU: of a name, or of a file that ``vramkit calibrate`` wrote.

    In names case, spaces, dashes and a leading "NVIDIA" do not matter; files end in ``.json``.

    Raises:
        ArgumentTypeError: ``target`` is neither a text nor a path nor a :class:`Target`.
        InvalidArgumentError: No GPU has this name, or several have, or the file cannot be used.

    >>> find_target("A100 80GB").multi_processors, find_target("h100").measured
    (108, True)
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str | os.PathLike):
        raise ArgumentTypeError(
            "target must be a name such as 'h100', a file of vramkit calibrate or a Target, got "
            f"{type(target).__name__}"
        )
    text = os.fspath(target)
    if text.endswith(".json") or not isinstance(target, str):
        return _calibrated(Path(text))
    wanted = _plain(text)
    wanted = _plain(_OTHER_NAMES.get(wanted, wanted))
    for known in _ALL:
        if wanted in (_plain(known.name), _plain(known.title)):
            return known
    sizes = [known.name for known in _ALL if _plain(known.name.partition("-")[0]) == wanted]
    if len(sizes) > 1:
        raise InvalidArgumentError(
            f"{target!r} names GPUs of different memory; use {' or '.join(sizes)}"
        )
    names = ", ".join(known.name for known in _ALL)
    raise InvalidArgumentError(
        f"no GPU named {target!r} is known; known are {names}. For another one pass the file that "
        "vramkit calibrate writes on it, or a vramkit.estimate.Target, for instance "
        "dataclasses.replace() of the nearest"
    )


def _calibrated(path: Path) -> Target:
    """A calibrated GPU; what was measured before helps its generation with convolutions."""
    found = read_calibration(path)
    return _with_convolutions(found, _H200) if found.capability[0] == 9 else found


def _plain(name: str) -> str:
    return re.sub(r"^nvidia|[^a-z0-9]", "", name.lower())
