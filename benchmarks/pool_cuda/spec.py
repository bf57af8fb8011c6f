"""One measurement of the CUDA benchmark: its parameters, its name, and its group."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.pool_cuda.loops import LOOPS

Result = Mapping[str, Any]

MIB = 1 << 20
PAGE_STEP_BYTES = 2 * MIB
RATIOS = (1.01, 1.03, 1.25)
OTHERS = ("expandable", "async", "rmm")
POOL = "vramkit"
NATIVE = "native"

# A group's loops take turns of so many steps: the machine's speed changes from second to second.
TURN_STEPS = 5
TURN_ENDS = "turn"  # what a child says then
MOST_IN_TURNS = 4  # so many have room on the device at once

EQUAL_LOOPS = ("unet_tiles", "gnn_sampled", "llama_ckpt")
EQUAL_CYCLE = 4
EQUAL_STEPS = 6

HOST_SIZES = {"1 MiB": MIB, "4 KiB": 4096}
HOST_THREADS = (1, 8)
HOST_ROUNDS = 5

STARTUP_BYTES = 40 << 30
STARTUP_PAGES_MIB = (None, 2, 4, 8, 32)  # None: what the pool takes by itself


@dataclass(frozen=True)
class Spec:
    """What a child process is asked for."""

    kind: str  # "loop", "host", "startup"
    allocator: str
    loop: str = ""
    mode: str = "whole"  # of a loop: "whole", "synced", "equal"
    capacity_bytes: int | None = None  # None: no limit
    page_bytes: int | None = None  # of the pool; None: what it takes by itself
    outside_bytes: int = 0  # of the device, beside an allocator that is limited by ballast

    def as_json(self) -> dict[str, object]:
        """Return the object that the child process reads."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """One child process's work, under a name that is the same in every run."""

    key: str
    spec: Spec


Group = tuple[Measurement, ...]


class Known(Protocol):
    """What is done already."""

    def result(self, key: str) -> Result | None:
        """Return the result of a measurement, failed ones too; None when it is not done."""

    def complete(self, group: Group) -> bool:
        """Tell whether one run made all of a group."""


@dataclass(frozen=True)
class Choice:
    """What is wanted of the whole plan."""

    loops: tuple[str, ...]
    parts: tuple[str, ...]
    rounds: int
    page_bytes: int | None = None  # of the pool, in loops; None: what it takes by itself
    others: tuple[str, ...] = OTHERS


def capacity_bytes(ratio: float, peak_bytes: int, page_bytes: int | None) -> int:
    """Take ``ratio`` times the peak, rounded down to whole pages and to whole 2 MiB."""
    step = max(page_bytes or 0, PAGE_STEP_BYTES)
    return int(peak_bytes * ratio) // step * step


def reference_key(loop: str) -> str:
    """Name the run that says how much a loop has alive at once."""
    return f"reference/{loop}"


def whole_key(loop: str, who: str, number: int) -> str:
    """Name one contestant's run of a loop in one round."""
    return f"whole/{loop}/{who}/{number}"


def uncapped_key(loop: str, allocator: str) -> str:
    """Name a further peer's run of a loop with no limit."""
    return f"peers/{loop}/{allocator}"


def try_key(loop: str, allocator: str, ratio: float) -> str:
    """Name an attempt to run a loop in ``ratio`` times its peak."""
    return f"smallest/{loop}/{allocator}/{ratio:.3f}"


def at(ratio: float) -> str:
    """Name the pool at a capacity of ``ratio`` times the peak."""
    return f"{POOL}@{ratio:.2f}"


def time_key(loop: str, allocator: str, *, limited: bool) -> str:
    """Name a run of the last round, in the smallest capacity or with no limit."""
    return f"times/{loop}/{allocator}/{'smallest' if limited else 'uncapped'}"


def peak_bytes(known: Known, loop: str) -> int | None:
    """Return the loop's peak of requested bytes; None until its reference run has succeeded."""
    result = known.result(reference_key(loop))
    return int(result["peak_requested_bytes"]) if result and result["ok"] else None


def peaks(known: Known, choice: Choice) -> Iterable[tuple[str, int]]:
    """Return the loops whose peak is known."""
    for loop in choice.loops:
        if (peak := peak_bytes(known, loop)) is not None:
            yield loop, peak


def startup_key(allocator: str, page_mib: int | None = None) -> str:
    """Name a start-up measurement; only the pool may be told its pages."""
    return f"startup/{allocator}" + ("" if page_mib is None else f"/{page_mib} MiB")


def equal_key(loop: str, allocator: str) -> str:
    """Name a run of a loop whose steps are all equal."""
    return f"equal/{loop}/{allocator}"


def contestants(loop: str, others: Iterable[str]) -> list[str]:
    """Leave rmm out where it would be wrong: under PyTorch it ignores record_stream."""
    return [name for name in others if name != "rmm" or not LOOPS[loop].records_streams]


def takes_turns(group: Group) -> bool:
    """Tell whether all of a group may have their memory at once, and so take turns in between."""
    return len(group) <= MOST_IN_TURNS and not any(
        each.spec.loop and LOOPS[each.spec.loop].one_at_a_time for each in group
    )
