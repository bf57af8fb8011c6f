"""What became of each convolution of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vramkit.nn._paths import Save

Status = Literal["fused", "fusible", "left"]


@dataclass(frozen=True)
class FusionEntry:
    """One convolution of a model.

    Attributes:
        name: Its name in the model.
        status: ``"fused"``: it computes its ReLU too. ``"fusible"``: ``fuse_conv_relu`` would fuse
            it. ``"left"``: it would not.
        reason: Why, in words.
        relu: The name of the ReLU that follows, if it is a module.
        batch_norm: The name of the batch normalization between them, if there is one.
        save: What is kept for ReLU's gradient, or would be kept.
    """

    name: str
    status: Status
    reason: str
    relu: str | None = None
    batch_norm: str | None = None
    save: Save | None = None

    def __str__(self) -> str:
        pair = [name for name in (self.name, self.batch_norm, self.relu) if name is not None]
        return f"{self.status:8}{' + '.join(pair)}: {self.reason}"


@dataclass(frozen=True)
class FusionReport:
    """The convolutions of a model, in the order of its modules; ``print`` shows a line for each.

    Attributes:
        entries: One for each convolution.
    """

    entries: tuple[FusionEntry, ...]

    @property
    def fused(self) -> tuple[FusionEntry, ...]:
        """The convolutions that compute their ReLU too."""
        return self._with("fused")

    @property
    def fusible(self) -> tuple[FusionEntry, ...]:
        """The convolutions that ``fuse_conv_relu`` would fuse."""
        return self._with("fusible")

    @property
    def left(self) -> tuple[FusionEntry, ...]:
        """The convolutions that stay as they are."""
        return self._with("left")

    def _with(self, status: Status) -> tuple[FusionEntry, ...]:
        return tuple(entry for entry in self.entries if entry.status == status)

    def __str__(self) -> str:
        counts = f"{len(self.fused)} fused, {len(self.fusible)} fusible, {len(self.left)} left"
        return "\n".join([f"Conv+ReLU: {counts}", *map(str, self.entries)])
