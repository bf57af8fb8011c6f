"""What ``vramkit calibrate`` runs in processes of their own, on a GPU.

``python -m vramkit.estimate._calibrate_worker KIND`` reads what is wanted as JSON from standard
input, and prints the result as its last line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from vramkit.errors import InvalidArgumentError

_MIB = 1 << 20
_SIGNATURE = re.compile(
    r"(?P<x>\d+(x\d+)+) (?P<w>\d+(x\d+)+) (?P<numbers>\d+(,\d+)*) (?P<groups>\d+) (?P<dtype>\w+) "
    r"(?P<layout>nhwc|nchw)( transposed (?P<more>\d+(,\d+)*))?"
)


def parse_signature(name: str) -> dict[str, Any]:
    """Read a convolution's signature: shapes, stride, padding, dilation, groups, dtype, layout.

    Raises:
        InvalidArgumentError: It cannot be read.

    >>> found = parse_signature("2x8x9x9 16x8x3x3 1,1,1,1,1,1 1 bfloat16 nhwc")
    >>> found["stride"], found["padding"], found["dtype"]
    ([1, 1], [1, 1], 'bfloat16')
    """
    match = _SIGNATURE.fullmatch(name)
    numbers = [int(each) for each in match["numbers"].split(",")] if match else []
    x, w = ([int(each) for each in match[part].split("x")] for part in "xw") if match else ([], [])
    dims = len(x) - 2
    if match is None or len(w) != len(x) or dims < 1 or len(numbers) != 3 * dims:
        raise InvalidArgumentError(
            f"{name!r} is no signature of a convolution, such as "
            "'2x8x9x9 16x8x3x3 1,1,1,1,1,1 1 bfloat16 nhwc'"
        )
    more = [int(each) for each in match["more"].split(",")] if match["more"] else [0] * dims
    return {
        "x": x,
        "w": w,
        "stride": numbers[:dims],
        "padding": numbers[dims : 2 * dims],
        "dilation": numbers[2 * dims :],
        "groups": int(match["groups"]),
        "dtype": match["dtype"],
        "channels_last": match["layout"] == "nhwc",
        "transposed": match["more"] is not None,
        "output_padding": more,
    }


def dropped_at_once(seq: list[int], count: int) -> list[int]:
    """The blocks that are dropped at once after each of the first results of an operator.

    Args:
        seq: What the allocator was asked for (+) and given back (-), in order.
        count: Number of results.

    >>> dropped_at_once([8000, 600, -600, 500], 2)
    [600, 0]
    """
    found, place = [], 0
    for _ in range(count):
        place += 1  # the result
        drops = place + 1 < len(seq) and seq[place] > 0 and seq[place + 1] == -seq[place]
        found.append(seq[place] if drops else 0)
        place += 2 if drops else 0
    return found


def recorded(run: Callable[[], Any]) -> list[int]:
    """Run on the GPU; return what the allocator was asked for (+) and given back (-)."""
    import torch

    record = torch.cuda.memory._record_memory_history
    torch.cuda.synchronize()
    record("all", context=None, max_entries=100_000, clear_history=True)
    try:
        begin = torch.empty(777, dtype=torch.uint8, device="cuda")
        result = run()
        end = torch.empty(778, dtype=torch.uint8, device="cuda")
        events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        record(None)
    del begin, result, end
    return between(events)


def between(events: list[dict[str, Any]]) -> list[int]:
    """The allocations and frees between the two marks of 777 and 778 bytes."""
    sizes: dict[int, int] = {}
    found: list[int] = []
    inside = False
    for event in events:
        size, address = event["size"], event.get("addr", 0)
        if event["action"] == "alloc":
            if size == 778:
                break
            if inside:
                sizes[address] = size
                found.append(size)
            inside = inside or size == 777
        elif event["action"] == "free_completed" and inside:
            found.append(-sizes.pop(address, size))
    return found


def measure_convolution(name: str) -> list[int]:
    """Workspaces of a convolution's result, its input's and its weight's gradient."""
    import torch

    found = parse_signature(name)
    dtype = getattr(torch, found["dtype"])

    layout = torch.contiguous_format
    if found["channels_last"]:
        layout = torch.channels_last_3d if len(found["x"]) == 5 else torch.channels_last

    def made(shape: list[int]) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda").contiguous(memory_format=layout)

    x, w = made(found["x"]), made(found["w"])
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    geometry = [found[each] for each in names]
    aten = torch.ops.aten
    with torch.no_grad():
        y = aten.convolution(x, w, None, *geometry)
        forward = dropped_at_once(recorded(lambda: aten.convolution(x, w, None, *geometry)), 1)
        gradient = torch.zeros_like(y)
        mask = [True, True, False]

        def backward() -> Any:
            return aten.convolution_backward(gradient, x, w, None, *geometry, mask)

        backward()
        return [*forward, *dropped_at_once(recorded(backward), 2)]


def measure_convolutions(wanted: dict[str, Any]) -> dict[str, Any]:
    """Measure each signature; one that does not run here is left out, with a note on stderr."""
    import torch

    found = {}
    for name in wanted["signatures"]:
        try:
            found[name] = measure_convolution(name)
        except RuntimeError as err:
            print(f"{name} is left out: {err}", file=sys.stderr)
        torch.cuda.empty_cache()
    return {"workspaces": found}


def outside_bytes() -> int:
    """Used bytes of the device that PyTorch's allocator does not hold."""
    import torch

    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _requested_bytes() -> int:
    import torch

    return int(torch.cuda.memory_stats()["requested_bytes.all.current"])


def measure_libraries(_: dict[str, Any]) -> dict[str, Any]:
    """Measure the context, and what each library's first use takes, one after the other."""
    import torch

    from vramkit.estimate._calibrate_uses import USES

    torch.zeros(1, device="cuda")
    before, uses = 0, {}
    kept: dict[str, int] = {}
    trained = 0
    for name, use in USES.items():
        requested = _requested_bytes()
        try:
            use()
        except RuntimeError as err:  # such as a library that this build lacks
            print(f"{name} is left out: {err}", file=sys.stderr)
            continue
        after = outside_bytes()
        uses[name], before = max(after - before, 0), after
        kept[name] = _requested_bytes() - requested
        if name == "training":
            trained = after
    return {
        "gpu": describe_gpu(),
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() or 0,
        },
        "outside_bytes": trained,
        "first_uses": uses,
        "workspaces": {
            "cublas_bytes": kept.get("cuBLAS", 0),
            "cublas_lt_bytes": kept.get("cuBLASLt", 0),
        },
    }


def describe_gpu() -> dict[str, Any]:
    """What torch says of the GPU."""
    import torch

    found = torch.cuda.get_device_properties()
    return {
        "title": found.name,
        "capability": [found.major, found.minor],
        "multi_processors": found.multi_processor_count,
        "threads_per_multi_processor": found.max_threads_per_multi_processor,
        "l2_bytes": found.L2_cache_size,
        "total_bytes": torch.cuda.mem_get_info()[1],
    }


def measure_nccl(_: dict[str, Any]) -> dict[str, int]:
    """Measure communicators of two ranks; the other process does the same."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["VRAMKIT_RANK"])
    torch.cuda.set_device(rank)
    one, two = (torch.zeros(size * _MIB, device="cuda") for size in (1, 2))
    dist.init_process_group(
        "nccl", init_method=f"file://{os.environ['VRAMKIT_STORE']}", rank=rank, world_size=2
    )
    uses: dict[str, Callable[[], Any]] = {
        "first": lambda: dist.all_reduce(one),
        "all_gather": lambda: dist.all_gather_into_tensor(two, one),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(one, two),
        "all_to_all": lambda: dist.all_to_all_single(two, two.clone()),
        "further": lambda: dist.all_reduce(one, group=dist.new_group([0, 1])),
    }
    before, found = outside_bytes(), {}
    for name, use in uses.items():
        use()
        after = outside_bytes()
        found[name], before = max(after - before, 0), after
    dist.destroy_process_group()
    return found


_KINDS = {
    "libraries": measure_libraries,
    "convolutions": measure_convolutions,
    "nccl": measure_nccl,
}


def main() -> None:
    """Measure what the command line names."""
    warnings.simplefilter("ignore")
    found = _KINDS[sys.argv[1]](json.loads(sys.stdin.read() or "{}"))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
