"""What the demo found, for people and for programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramkit.pool import PoolStats
from vramkit.units import counted, format_mib

# What a convolutional net of this size reaches with room to spare.
WANTED_ACCURACY = 0.97


@dataclass(frozen=True)
class Outcome:
    """The two trainings compared.

    Attributes:
        equal_losses: Steps whose losses inside and outside the pool are the same bits.
        stats: Of the pool, right after the training inside it.
        seconds: Time of the training inside the pool, with its sampling.
    """

    steps: int
    equal_losses: int
    final_loss: float
    accuracy: float
    stats: PoolStats
    seconds: float
    samples: int
    picture: Path

    @property
    def faults(self) -> list[str]:
        """What is not as required; empty after a success."""
        found = []
        if self.accuracy < WANTED_ACCURACY:
            found.append(
                f"the test accuracy is {self.accuracy:.4f}, below the {WANTED_ACCURACY} wanted: "
                "train longer (--epochs), or try another --seed"
            )
        if self.equal_losses < self.steps:
            found.append(
                f"the losses inside and outside the pool differ in "
                f"{self.steps - self.equal_losses:,} of {counted(self.steps, 'step')}: tensors "
                "were read wrongly; please report this"
            )
        return found


def to_text(outcome: Outcome) -> str:
    """The outcome in four lines."""
    stats = outcome.stats
    equal = f"{outcome.equal_losses:,} of {outcome.steps:,}"
    live, mapped = format_mib(stats.peak_live_bytes), format_mib(stats.peak_mapped_bytes)
    budget = format_mib(stats.capacity_bytes)
    rows = [
        ("test accuracy", f"{outcome.accuracy:.4f} (at least {WANTED_ACCURACY} is wanted)"),
        ("losses", f"{equal} equal those outside the pool, bit for bit"),
        ("memory", f"{live} live and {mapped} mapped at the peak, of a budget of {budget}"),
        ("picture", f"{outcome.picture} ({counted(outcome.samples, 'sample')})"),
    ]
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as a JSON object."""
    stats = outcome.stats
    return {
        "passed": not outcome.faults,
        "faults": outcome.faults,
        "accuracy": outcome.accuracy,
        "steps": outcome.steps,
        "equal_losses": outcome.equal_losses,
        "final_loss": outcome.final_loss,
        "capacity_bytes": stats.capacity_bytes,
        "peak_live_bytes": stats.peak_live_bytes,
        "peak_mapped_bytes": stats.peak_mapped_bytes,
        "allocations": stats.allocations,
        "failures": stats.failures,
        "stitched_requests": stats.stitched_requests,
        "samples": outcome.samples,
        "seconds": outcome.seconds,
        "picture": str(outcome.picture),
    }
