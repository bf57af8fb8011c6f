"""Which of several kernels serves a call: the fastest, measured at the call's first use.

What was found is remembered for the process, and in a file if one is given. After some sizes of a
call's input, others are served as the nearest of them, so that inputs of changing sizes do not pay
for measurements. Nothing is measured while a CUDA graph is captured; the first candidate then
serves the call, as it does whenever deterministic algorithms are asked for, because a measured
choice may differ from run to run.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from vramkit.errors import ArgumentTypeError, InvalidArgumentError

Mode = Literal["measured", "default"]
Run = Callable[[], object]

# Sizes of one call's input that are measured.
_MOST_SIZES = 8
# Another candidate must be faster by this much, so that noise does not choose.
_GAIN = 0.98
_ROUNDS = 3
_ROUND_MS = 1.0
_FEWEST, _MOST = 3, 10
# Long enough for the host to queue a round, so that the GPU's time is measured and not the host's.
_SLEEP_CYCLES = 2_000_000


class Key(NamedTuple):
    """All that the times of a call's candidates depend on."""

    call: tuple[Hashable, ...]
    size: tuple[int, ...]  # of the input


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the milliseconds of what was tried (None: it failed)."""

    name: str
    times_ms: Mapping[str, float | None]

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {'failed' if ms is None else f'{ms:.4f} ms'}"
            for name, ms in self.times_ms.items()
        )


# Calls whose choice is settled, and what serves them: see _fused.py.
READY: dict[Hashable, Callable[..., torch.Tensor]] = {}


class _State:
    mode: Mode = "measured"
    file: Path | None = None
    known: dict[Key, Choice] = {}  # noqa: RUF012 - one for the process
    measured: dict[tuple[Hashable, ...], list[Key]] = {}  # noqa: RUF012
    stored: dict[str, Choice] = {}  # noqa: RUF012
    lock = threading.Lock()


def set_kernel_choice(mode: Mode, *, file: str | os.PathLike[str] | None = None) -> None:
    """Set how convolutions with ReLU on a GPU choose among the kernels that can serve them.

    What was measured so far is forgotten.

    Args:
        mode: ``"measured"``, the initial mode: at the first use of a shape, each kernel runs some
            times, and the fastest serves the calls that follow. ``"default"``: PyTorch's
            convolution and one pass of vramkit's serve all calls, so that all runs compute alike.
        file: Choices are read from it, and new ones are added, so that later processes choose the
            same at once. They count on the same device with the same versions of PyTorch and cuDNN.

    Raises:
        InvalidArgumentError: ``mode`` is unknown, or ``file`` holds something else, or its folder
            does not exist.
        ArgumentTypeError: ``file`` is no path.

    Example:
        >>> import vramkit
        >>> vramkit.nn.set_kernel_choice("default")
        >>> vramkit.nn.set_kernel_choice("measured")
    """
    if mode not in ("measured", "default"):
        raise InvalidArgumentError(f"mode must be 'measured' or 'default', got {mode!r}")
    if not isinstance(file, str | os.PathLike | None):
        raise ArgumentTypeError(f"file must be a path, got {type(file).__name__}")
    path = None if file is None else Path(file)
    if path is not None and not path.parent.is_dir():
        raise InvalidArgumentError(
            f"the folder of file={str(path)!r} does not exist; make it first"
        )
    stored = {} if path is None else _read(path)
    with _State.lock:
        _State.mode, _State.file = mode, path
        _State.known, _State.measured, _State.stored = {}, {}, stored
        READY.clear()


def measures() -> bool:
    """Tell whether calls are served by what was measured to be fastest."""
    return (
        _State.mode == "measured"
        and not torch._C._get_deterministic_algorithms()
        # torch.backends.cudnn.deterministic, without its property.
        and not torch._C._get_cudnn_deterministic()
    )


def is_capturing() -> bool:
    """Tell whether the current stream's work is being captured in a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def known(key: Key) -> Choice | None:
    """Return what was chosen for a key; nothing is measured."""
    choice = _State.known.get(key)
    return choice or _State.stored.get(_text(key)) if _State.stored else choice


def choose(key: Key, candidates: Callable[[], Mapping[str, Run]]) -> Choice:
    """Return which candidate serves a call, and what is known of the times.

    Args:
        key: Under which the choice is remembered.
        candidates: Makes them where nothing is known yet; the first one serves any call.
    """
    choice = _State.known.get(key)
    if choice is not None and measures():
        return choice
    runs = candidates()
    first = Choice(next(iter(runs)), {})
    if not measures():
        return first
    choice = first if len(runs) == 1 else _known_for(key, runs)
    if choice is None:
        return first if is_capturing() else _measured(key, runs)
    _State.known[key] = choice
    return choice


def is_settled(key: Key) -> bool:
    """Tell whether later calls are served as :func:`choose` said last."""
    return key in _State.known and measures()


def _known_for(key: Key, runs: Mapping[str, Run]) -> Choice | None:
    """Return the choice of a file for a call, or that of the nearest of many sizes."""
    choice = known(key)
    if choice is not None and choice.name in runs:
        return choice
    sizes = _State.measured.get(key.call, [])
    if len(sizes) < _MOST_SIZES:
        return None
    nearest = min(sizes, key=lambda other: abs(math.prod(other.size) - math.prod(key.size)))
    name = _State.known[nearest].name
    # Its times are not those of this size.
    return Choice(name, {}) if name in runs else None


def _measured(key: Key, runs: Mapping[str, Run]) -> Choice:
    with _State.lock, torch.no_grad():
        choice = _State.known.get(key)
        if choice is not None:
            return choice
        choice = fastest(runs, _gpu_ms)
        _State.known[key] = choice
        _State.measured.setdefault(key.call, []).append(key)
        if _State.file is not None:
            _append(_State.file, key, choice)
        return choice


def fastest(runs: Mapping[str, Run], measure: Callable[[Run, int], float]) -> Choice:
    """Measure candidates by turns, and choose.

    Args:
        runs: An error of the first one is the caller's; others then count as failed.
        measure: Returns the milliseconds of one run, given how many to take together.
    """
    repeats = {name: _warm_up(run, measure, name == next(iter(runs))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            count = repeats[name]
            if count is not None:
                times[name].append(measure(run, count))
    medians = {name: statistics.median(found) if found else None for name, found in times.items()}
    best = next(iter(runs))
    for name, ms in medians.items():
        best_ms = medians[best]
        if ms is not None and best_ms is not None and ms < best_ms * _GAIN:
            best = name
    return Choice(best, medians)


def _warm_up(run: Run, measure: Callable[[Run, int], float], must_work: bool) -> int | None:
    """Return how many runs make a round; None if the candidate fails."""
    try:
        run()
        single_ms = measure(run, 1)
    except RuntimeError:
        if must_work:
            raise
        return None
    return max(_FEWEST, min(_MOST, round(_ROUND_MS / max(single_ms, 1e-3))))


def _gpu_ms(run: Run, count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SLEEP_CYCLES)
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed / count


def _text(key: Key) -> str:
    """Name a key for later processes: with the device's name and the versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return repr((name, torch.__version__, torch.backends.cudnn.version(), tuple(key)))


def _append(file: Path, key: Key, choice: Choice) -> None:
    entry = {"key": _text(key), "name": choice.name, "times_ms": dict(choice.times_ms)}
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(entry) + "\n")
    except OSError as err:
        warnings.warn(
            f"vramkit cannot add to the file of kernel choices {file}: {err}",
            RuntimeWarning,
            stacklevel=2,
        )


def _read(file: Path) -> dict[str, Choice]:
    if not file.exists():
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidArgumentError(
            f"the file of kernel choices {file} cannot be read ({err}); give another path"
        ) from err
    stored = {}
    for number, line in enumerate(lines, start=1):
        try:
            key, choice = _parse(line)
        except ValueError as err:
            raise InvalidArgumentError(
                f"{file}, line {number}, is no kernel choice ({err!r}); remove the file"
            ) from err
        stored[key] = choice
    return stored


def _parse(line: str) -> tuple[str, Choice]:
    match json.loads(line):
        case {"key": str(key), "name": str(name), "times_ms": dict(times)} if all(
            ms is None or isinstance(ms, int | float) for ms in times.values()
        ):
            return key, Choice(name, times)
    raise InvalidArgumentError("expected the texts 'key' and 'name' and the numbers 'times_ms'")
