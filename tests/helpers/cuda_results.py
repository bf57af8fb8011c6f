"""Made-up results of bench_pool_cuda, and a player of them in place of its child processes."""

from pathlib import Path

from benchmarks._shared.provenance import Provenance
from benchmarks.pool_cuda.run import Budget, OutOfTimeError, run
from benchmarks.pool_cuda.spec import (
    MIB,
    NATIVE,
    POOL,
    Choice,
    Measurement,
    Result,
    Spec,
)
from benchmarks.pool_cuda.state import State

LOOP = "unet_tiles"
PEAK = 1000 * MIB
NEEDED = {NATIVE: 1.3, "expandable": 1.05, "async": 1.1, POOL: 1.004}
CHOICE = Choice((LOOP,), ("reference", "whole", "peers", "smallest"), 2, 2 * MIB, ("expandable",))
ORIGIN = Provenance(
    commit="0123456789ab",
    dirty=False,
    date="2026-01-02T03:04:05+00:00",
    device="Some GPU",
    torch="2.11.0",
    cuda="13.0",
    driver="580",
    kernel="6.1",
    python="3.12.3",
)


def play(spec: Spec) -> dict[str, object]:
    """What a child would say, were each allocator to need a fixed multiple of the peak."""
    if spec.kind == "host":
        cases = ("1 MiB_1", "1 MiB_8", "4 KiB_1", "4 KiB_8")
        together = {f"{case}_together": [5200.0] for case in cases}
        return {"ok": True} | {case: [5000.0, 5100.0] for case in cases} | together
    if spec.kind == "startup":
        turn = {"first_s": 0.1, "all_s": 0.5, "returned_s": 0.05, "closed_s": 0.2, "page_bytes": 8}
        return {"ok": True, "turns": [turn, turn]}
    if spec.capacity_bytes is not None and spec.capacity_bytes < NEEDED[spec.allocator] * PEAK:
        return {"ok": False, "steps_done": 3, "out_of_memory": "no", "first_loss": 2.0}
    total_s = 4.0 if spec.allocator == NATIVE else 4.1
    return {
        "ok": True,
        "total_s": total_s,
        "steps_done": 40,
        "steps_ms": [900.0] + [80.0] * 38 + [200.0],
        "first_loss": 2.0,
        "last_loss": 1.0,
        "peak_requested_bytes": PEAK,
        "peak_reserved_bytes": int(NEEDED[spec.allocator] * PEAK),
        "capacity_bytes": spec.capacity_bytes,
        "page_bytes": 2 * MIB,
        "mapping_calls": 12,
        "calls_by_step": [7, 9, 9, 9, 9, 9] if spec.mode == "equal" else [],
        "stitched_requests": 2,
    }


class Player:
    """Stands for the child processes: knows who was started, who measured and who was stopped."""

    def __init__(self, seconds_each: float = 10.0) -> None:
        self.now = 100.0
        self.seconds_each = seconds_each
        self.started: list[str] = []
        self.turns: list[str] = []
        self.measured: list[str] = []
        self.stopped: list[str] = []

    def budget(self, seconds: float) -> Budget:
        return Budget(seconds, self.now, lambda: self.now)

    def start(self, measurement: Measurement) -> "Played":
        self.started.append(measurement.key)
        return Played(self, measurement)


class Played:
    def __init__(self, player: Player, measurement: Measurement) -> None:
        self.player, self.measurement = player, measurement

    def wait_ready(self, timeout_s: float) -> None:
        assert timeout_s > 0

    def turn(self, timeout_s: float) -> Result | None:
        key = self.measurement.key
        self.player.turns.append(key)
        if key.startswith("whole/") and self.player.turns.count(key) < 3:
            return None
        if self.player.seconds_each > timeout_s:
            self.player.now += timeout_s
            raise OutOfTimeError
        self.player.now += self.player.seconds_each
        self.player.measured.append(key)
        return play(self.measurement.spec)

    def stop(self) -> None:
        self.player.stopped.append(self.measurement.key)


def begun(path: Path, *, commit: str | None = None) -> State:
    state = State(path, commit=commit)
    state.begin_run(ORIGIN)
    return state


def measure_all(path: Path, choice: Choice = CHOICE) -> State:
    player = Player()
    state = begun(path)
    assert run(state, choice, player.budget(1e6), player.start)
    return state
