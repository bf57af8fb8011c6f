"""What an estimate says: amounts with their intervals, as a table and as JSON."""

from __future__ import annotations

import html
import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from vramkit.errors import ArgumentTypeError
from vramkit.estimate._target import Target
from vramkit.estimate._targets import find_target
from vramkit.units import format_mib, parse_bytes

_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Amount:
    """Memory of one kind on the rank that needs most.

    Attributes:
        name: What it is for.
        size_bytes: The estimate.
        low_bytes: Least that is plausible; the estimate itself where the figure is exact.
        high_bytes: Most that is plausible.
        detail: Where it comes from.
    """

    name: str
    size_bytes: int
    low_bytes: int
    high_bytes: int
    detail: str = ""


def exact(name: str, size_bytes: int, detail: str = "") -> Amount:
    """An amount that follows from shapes."""
    return Amount(name, size_bytes, size_bytes, size_bytes, detail)


@dataclass(frozen=True)
class RankEstimate:
    """Memory of the rank that needs most.

    Attributes:
        model: The model's name.
        rank: Which rank it is, and of how many.
        gpus: Number of ranks.
        target: The GPU.
        amounts: The memory by category.
        assumptions: What was assumed, in sentences.
    """

    model: str
    rank: str
    gpus: int
    target: Target
    amounts: tuple[Amount, ...]
    assumptions: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Sum of all categories."""
        return sum(amount.size_bytes for amount in self.amounts)

    @property
    def low_bytes(self) -> int:
        """Sum of what is least plausible of each."""
        return sum(amount.low_bytes for amount in self.amounts)

    @property
    def high_bytes(self) -> int:
        """Sum of what is most plausible of each."""
        return sum(amount.high_bytes for amount in self.amounts)

    @property
    def utilisation(self) -> float:
        """Part of a GPU's memory that may be used."""
        return 1.0

    @property
    def usable_bytes(self) -> int:
        """What of the GPU's memory may be used."""
        return usable_bytes(self.target, self.utilisation)

    def fits(self, budget: str | int | Target | None = None) -> bool:
        """Tell whether the estimate (``total_bytes``, not ``high_bytes``) is within a budget.

        Args:
            budget: A size such as ``"24GiB"``, which counts whole, or a GPU such as ``"l4"`` or a
                :class:`vramkit.estimate.Target`, of which the part that may be used counts; by
                default the estimate's own GPU.

        Raises:
            ArgumentTypeError: ``budget`` is none of these.
            InvalidArgumentError: It is no size, and no GPU has this name.
        """
        room = self.target if budget is None else budget
        return self.total_bytes <= usable_bytes(room, self.utilisation)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        values = asdict(self)
        values["target"] = self.target.name
        values["budget_bytes"] = self.target.total_bytes
        sums = ("total_bytes", "low_bytes", "high_bytes", "usable_bytes")
        return {**values, **{name: getattr(self, name) for name in sums}, "fits": self.fits()}

    def json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def amount(self, name: str) -> int:
        """Return the bytes of a category, 0 where there is none."""
        return sum(amount.size_bytes for amount in self.amounts if amount.name == name)

    def answers(self) -> list[tuple[str, str]]:
        """What is printed below the table, each with its title."""
        return []

    def verdict(self) -> str:
        """Whether it fits, and into what."""
        room = room_in_words(self.target.total_bytes, self.utilisation)
        return f"{'fits' if self.fits() else 'does not fit'} into {room}"

    def __str__(self) -> str:
        """The table, the answers and the assumptions."""
        rows = [(a.name, format_mib(a.size_bytes), interval(a), a.detail) for a in self.amounts]
        total = Amount("total", self.total_bytes, self.low_bytes, self.high_bytes)
        rows.append(("total", format_mib(total.size_bytes), interval(total), self.verdict()))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{self.model} on {self.target.name}: {self.rank}"]
        lines += [
            f"{name:{widths[0]}}  {size:>{widths[1]}}  {span:{widths[2]}}  {detail}".rstrip()
            for name, size, span, detail in rows
        ]
        lines += ["", *(f"{title}: {answer}" for title, answer in self.answers())]
        lines += ["", *(f"- {each}" for each in self.assumptions)]
        return "\n".join(lines).rstrip()

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def checked_options(options: object, kind: type[_Options]) -> _Options:
    """Return the options, or the defaults of their kind where they are None.

    Raises:
        ArgumentTypeError: They are of another kind.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise ArgumentTypeError(
            f"options must be a {kind.__name__}, got {type(options).__name__}; a Serving goes to "
            "estimate_serving, a Training to estimate_training"
        )
    return options


def interval(amount: Amount) -> str:
    """The interval in words, empty where the figure is exact.

    >>> interval(Amount("graphs", 3 << 20, 1 << 20, 5 << 20))
    '(1.0 MiB to 5.0 MiB)'
    """
    if amount.low_bytes == amount.high_bytes:
        return ""
    return f"({format_mib(amount.low_bytes)} to {format_mib(amount.high_bytes)})"


def limited(target: str | os.PathLike[str] | Target, budget: str | int | Target | None) -> Target:
    """Return a target with the memory of a budget, if one is given."""
    found = find_target(target)
    return found if budget is None else replace(found, total_bytes=budget_bytes(budget))


def budget_note(target: str | os.PathLike[str] | Target, budget: str | None) -> str:
    """Say that a budget is the memory of another GPU than the target; empty where it is not.

    >>> budget_note("h100", "rtx4090")
    'The budget is the memory of rtx4090; all else is estimated for h100 (see --target).'
    >>> budget_note("h100", "24GiB")
    ''
    """
    if budget is None or is_size(budget):
        return ""
    other, own = find_target(budget).name, find_target(target).name
    if other == own:
        return ""
    return f"The budget is the memory of {other}; all else is estimated for {own} (see --target)."


def budget_bytes(budget: str | int | Target) -> int:
    """Read a budget: a size, or a GPU.

    Raises:
        ArgumentTypeError: It is neither a number nor a text nor a target.
        InvalidArgumentError: It is no size, and no GPU has this name.
    """
    if isinstance(budget, Target):
        return budget.total_bytes
    if isinstance(budget, str) and not is_size(budget):
        return find_target(budget).total_bytes
    return parse_bytes(budget, name="budget")


def is_size(budget: object) -> bool:
    """Tell whether a budget is a size, and not a GPU.

    >>> is_size("24GiB"), is_size(24 << 30), is_size("l4"), is_size(None)
    (True, True, False, False)
    """
    return isinstance(budget, int) or (isinstance(budget, str) and budget.strip()[:1].isdigit())


def usable_bytes(budget: str | int | Target, utilisation: float) -> int:
    """What of a budget may be used: a size whole, and of a GPU a part.

    >>> usable_bytes("20GiB", 0.5) >> 30, usable_bytes("h200", 0.5) >> 30
    (20, 69)
    """
    size = budget_bytes(budget)
    return size if is_size(budget) else part_of(size, utilisation)


def part_of(total_bytes: int, utilisation: float) -> int:
    """What may be used of so many bytes.

    >>> part_of(20 << 30, 0.95) / 2**30
    19.0
    """
    return int(total_bytes * utilisation)


def room_in_words(total_bytes: int, utilisation: float) -> str:
    """Say how much may be used, and of how much.

    >>> room_in_words(20 << 30, 0.95), room_in_words(20 << 30, 1.0)
    ('19.0 GiB, 95 % of 20.0 GiB', '20.0 GiB')
    """
    whole = format_mib(total_bytes)
    if utilisation == 1:
        return whole
    return f"{format_mib(part_of(total_bytes, utilisation))}, {100 * utilisation:.4g} % of {whole}"
