"""A progress bar on a terminal, plain lines elsewhere; on standard error in both cases."""

import contextlib
import shutil
import sys
from types import TracebackType
from typing import Self, TextIO

from vramkit.cli._output import note


class Progress:
    """Tells how far one training is.

    Args:
        title: What is being done.
        line_every: Where there is no terminal: steps between two lines.
        stream: Where to write; standard error by default.
    """

    def __init__(self, title: str, *, line_every: int, stream: TextIO | None = None) -> None:
        """Show a bar of no length; its total comes with the first step."""
        from tqdm import tqdm

        size = shutil.get_terminal_size()
        self._title = title
        self._line_every = line_every
        # Python has no standard error where it was closed.
        self._stream: TextIO | None = stream or sys.stderr
        self._bar = tqdm(
            desc=title,
            total=0,
            unit="step",
            file=self._stream,
            # tqdm shows nothing on a terminal that does not tell its size.
            ncols=size.columns,
            nrows=size.lines,
            disable=self._stream is None or not self._stream.isatty(),
        )

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Step number ``step`` of ``steps`` is done."""
        if not self._bar.disable:
            self._bar.total = steps
            with contextlib.suppress(OSError):  # the terminal may have gone
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                self._bar.update()
        elif step % self._line_every == 0 or step == steps:
            note(f"{self._title}: step {step:,} of {steps:,}, loss {loss:.4f}", self._stream)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        with contextlib.suppress(OSError):
            self._bar.close()
