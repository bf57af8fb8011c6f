"""What a trace records: blocks, their births and deaths in order, and where they come from."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vramkit._core import ReplayOp
from vramkit.simulate import Events


class Kind(enum.StrEnum):
    """What a block holds."""

    PARAMETER = "parameters"
    GRADIENT = "gradients"
    OPTIMIZER_STATE = "optimizer state"
    ACTIVATION = "activations"
    TEMPORARY = "temporaries"
    WORKSPACE = "workspaces"
    KV_CACHE = "KV cache"
    DATA = "data"


class Phase(enum.StrEnum):
    """What the program does while a block is made."""

    BUILD = "build"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclass(slots=True)
class Block:
    """A block of device memory.

    Attributes:
        size_bytes: Requested bytes.
        operator: The operator that made it, such as ``aten::mm``.
        kind: What it holds.
        phase: When it was made.
        step: Number of the step from 0; -1 while the model is built.
        module: Qualified name of the module that made it; empty where none did.
        line: The line of Python that made it, as ``file:number``.
        stream: Number of the stream on which it was made; 0 for the default one.
    """

    size_bytes: int
    operator: str
    kind: Kind
    phase: Phase
    step: int
    module: str
    line: str
    stream: int = 0


class Recorder:
    """Keeps blocks and events in the order in which they happen.

    Attributes:
        blocks: Every block ever made; its place is its number.
        changes: Numbers of blocks: the number itself for a birth, its complement for a death.
        step_starts: Number of changes before each step.
        lent: Numbers of blocks that another stream uses.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.lent: set[int] = set()
        # By step: bytes of such blocks that the program dropped.
        self._late: Counter[int] = Counter()
        self.blocks: list[Block] = []
        self.changes: list[int] = []
        self.step_starts: list[int] = []

    def allocate(self, block: Block) -> int:
        """Record a birth; returns the block's number."""
        number = len(self.blocks)
        self.blocks.append(block)
        self.changes.append(number)
        return number

    def free(self, number: int) -> None:
        """Record a death."""
        self.changes.append(~number)
        if number in self.lent:
            self._late[len(self.step_starts)] += self.blocks[number].size_bytes

    def late_bytes(self) -> int:
        """Return the most bytes that a step drops of blocks that another stream uses."""
        return max(self._late.values(), default=0)

    def begin_step(self) -> int:
        """Record that a step begins; returns its number."""
        self.step_starts.append(len(self.changes))
        return len(self.step_starts) - 1


@dataclass(frozen=True)
class Trace:
    """What happened on the device in the recorded steps.

    Attributes:
        blocks: Every block; its place is its number.
        changes: As in :class:`Recorder`.
        step_starts: Number of changes before each step.
        parameters: Number of elements of all parameters.
        guesses: Operators whose result was guessed, with their line, and how often.
        attention: How often each kernel of scaled dot product attention was chosen.
        assumed_bytes: By operator: most bytes of a hidden allocation that a formula gives where
            nothing was measured.
        unknown: Operators whose allocations inside are not known; their results are counted.
        unmeasured: Signatures of the calls for which a formula was used.
        operators: Names of all operators that were called.
        finite: Lines that ask whether numbers are finite, and how often; they are taken as finite.
        assumptions: What was assumed of the program, in sentences, and how often.
        more_bytes: What later steps may need besides, in sentences, and how many bytes.
        world_size: How many ranks there are.
        groups: How many process groups were made.
    """

    blocks: tuple[Block, ...]
    changes: tuple[int, ...]
    step_starts: tuple[int, ...]
    parameters: int
    guesses: dict[str, int]
    attention: dict[str, int]
    assumed_bytes: dict[str, int]
    unknown: tuple[str, ...]
    unmeasured: tuple[str, ...] = ()
    operators: frozenset[str] = frozenset()
    finite: dict[str, int] = field(default_factory=dict)
    assumptions: dict[str, int] = field(default_factory=dict)
    more_bytes: dict[str, int] = field(default_factory=dict)
    world_size: int = 1
    groups: int = 0

    def events(self) -> Events:
        """Return the events as :mod:`vramkit.simulate` replays them."""
        changes = np.array(self.changes, dtype=np.int64)
        identity = np.where(changes < 0, ~changes, changes)
        sizes = np.array([block.size_bytes for block in self.blocks], dtype=np.int64)
        streams = np.array([block.stream for block in self.blocks], dtype=np.int32)
        op = np.where(changes < 0, ReplayOp.FREE, ReplayOp.ALLOC).astype(np.uint8)
        return Events(
            op=op,
            block_id=identity,
            size_bytes=sizes[identity] if len(identity) else identity,
            stream=streams[identity] if len(identity) else identity.astype(np.int32),
            index=np.arange(len(changes), dtype=np.int64),
            block_count=len(self.blocks),
            standing_blocks=0,
        )

    def live_at(self, change: int) -> list[int]:
        """Return the numbers of the blocks that are live after a change."""
        live: dict[int, None] = {}
        for entry in self.changes[: change + 1]:
            if entry < 0:
                del live[~entry]
            else:
                live[entry] = None
        return list(live)
