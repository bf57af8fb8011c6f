"""PyTorch's compilers during a trace: they know functions by identity, and some are exchanged."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.jit import _builtins

from vramkit.estimate._fake_device import patched


@contextlib.contextmanager
def dynamo_undisturbed() -> Iterator[None]:
    """Keep Dynamo's table of PyTorch's functions, and its compiled modules free of warnings.

    Dynamo makes its table anew after ``init_process_group``. One that was made during a trace would
    be of the functions that stand in for PyTorch's, several of which are the same; so this scope
    encloses those that exchange functions. Compiled modules warn of hooks on all modules, which are
    the trace's.
    """
    from torch._dynamo import eval_frame, trace_rules

    rules = trace_rules.get_torch_obj_rule_map()
    with (
        patched(trace_rules, get_torch_obj_rule_map=functools.cache(lambda: rules)),
        patched(eval_frame.OptimizedModule, __call__=torch.nn.Module.__call__),
    ):
        yield


@contextlib.contextmanager
def scripts_unfused() -> Iterator[None]:
    """TorchScript runs operator by operator: its fuser would compile for the pretended GPU."""
    on_gpu, fuses = torch._C._jit_can_fuse_on_gpu(), torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_override_can_fuse_on_gpu(False)
    torch._C._jit_set_texpr_fuser_enabled(False)
    try:
        yield
    finally:
        torch._C._jit_override_can_fuse_on_gpu(on_gpu)
        torch._C._jit_set_texpr_fuser_enabled(fuses)


@contextlib.contextmanager
def scripts_know(exchanged: Mapping[Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
    """Let ``torch.jit.script`` take functions for those in whose places they stand.

    Args:
        exchanged: Functions that scripts may call, and those that take their places.
    """
    table = _builtins._get_builtin_table()
    names = {id(new): table[id(real)] for real, new in exchanged.items() if id(real) in table}
    table.update(names)
    try:
        yield
    finally:
        for key in names:
            del table[key]
