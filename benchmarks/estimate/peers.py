"""What other estimators say of the training steps that were measured on an H100.

``python -m benchmarks.estimate --peers`` prints their errors. Each peer is told all that its
interface takes; none knows an allocator, so they are held against the allocated bytes.
``torch-kitsune`` and ``torch-preflight`` are used where they are installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.estimate.models import Workload

Peer = Callable[[Workload], int | None]


def mem_tracker(workload: Workload) -> int | None:
    """PyTorch's own MemTracker on fake tensors.

    It runs inside vramkit's pretended device, without which no fake can be on ``cuda`` on a machine
    without a GPU, and gets a copy of the model without data.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from vramkit.estimate import find_target
    from vramkit.estimate._fake_device import fake_device, patched
    from vramkit.estimate._recipe import _copy_of_fakes
    from vramkit.estimate._rewrites import operators_of_cuda
    from vramkit.estimate._scope import _fakes_pass_for_tensors

    tracker, model = MemTracker(), workload.model()
    with contextlib.ExitStack() as scope:
        target = find_target("h100")
        scope.enter_context(fake_device(target))
        # Attention is computed by the kernels of the target.
        scope.enter_context(operators_of_cuda(target, lambda _: None))
        # Modules of fakes can be moved, and lists become tensors; transformers may see that it is
        # traced, as a value cannot be asked for.
        scope.enter_context(_fakes_pass_for_tensors())
        scope.enter_context(patched(torch._subclasses, FakeTensor=FakeTensor))
        scope.enter_context(torch.autograd.set_multithreading_enabled(False))
        scope.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        step = workload.make_step(_copy_of_fakes(model))
        scope.enter_context(tracker)
        for _ in range(2):  # the state of the optimizer comes with the first
            step()
            tracker.reset_mod_stats()
    peaks = tracker.get_tracker_snapshot("peak")
    found = next(each for device, each in peaks.items() if device.type == "cuda")
    return int(found["Total"])


def kitsune(workload: Workload) -> int | None:
    """torch-kitsune's prediction; its interface takes one tensor of floats, so images only."""
    if not workload.reads_images:
        return None
    from kitsune.predict import predict_memory

    found = predict_memory(
        workload.model(),
        input_shape=workload.shape[1:],
        batch_size=workload.shape[0],
        dtype="bfloat16" if workload.precision == "bf16" else "float32",
        optimizer=workload.optimizer,
        training=True,
    )
    return int(found.total_bytes)


def preflight(workload: Workload) -> int | None:
    """torch-preflight's projection for a live model."""
    from torch_preflight.vram.guard import VRAMGuard

    model = workload.model()
    makers = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    options: dict[str, Any] = {"momentum": 0.9} if workload.optimizer == "sgd" else {}
    optimizer = makers[workload.optimizer](model.parameters(), lr=0.1, **options)
    length = "image_size" if workload.reads_images else "seq_len"
    guard = VRAMGuard(
        model,
        optimizer=optimizer,
        max_vram="1000GiB",
        batch_size=workload.shape[0],
        precision={"fp32": "fp32", "bf16": "pure-bf16", "autocast": "amp"}[workload.precision],
        gradient_checkpointing=workload.checkpoint,
        flash_attention=True,
        verify=False,
        **{length: workload.shape[-1]},
    )
    with guard:
        pass
    assert guard.report is not None
    return int(guard.report.total)


_PEERS: dict[str, tuple[Peer, str]] = {
    "MemTracker": (mem_tracker, "torch"),
    "torch-kitsune": (kitsune, "kitsune"),
    "torch-preflight": (preflight, "torch_preflight"),
}


def installed() -> dict[str, Peer]:
    """The peers that are installed here, by name."""
    return {name: peer for name, (peer, module) in _PEERS.items() if find_spec(module)}


def ask(peer: Peer, workload: Workload) -> int | str | None:
    """What a peer says: bytes, the name of the exception that it ended with, or None."""
    try:
        return peer(workload)
    except Exception as err:  # noqa: BLE001 - a peer that fails is a result, too
        return type(err).__name__
