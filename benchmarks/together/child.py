"""The parent's side of a worker."""

import json
import select
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import IO, Any, Self

from benchmarks._shared.provenance import ROOT
from benchmarks.together.worker import Spec


class Child:
    """A process of worker.py; use it in a ``with`` block, which ends it."""

    def __init__(self, spec: Spec, timeout_s: float) -> None:
        """Start it; it prepares itself."""
        self._timeout_s = timeout_s
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.together.worker", json.dumps(asdict(spec))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def __enter__(self) -> Self:
        return self

    def wait_ready(self) -> None:
        """Wait until it has prepared itself."""
        self._line()

    def turn(self) -> dict[str, Any]:
        """Let it make a turn; return its figures, or that memory ran out.

        Raises:
            RuntimeError: It failed for another reason.
            TimeoutError: It takes longer than the limit.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        figures: dict[str, Any] = json.loads(self._line())
        return figures

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], self._timeout_s)
        if not readable:
            raise TimeoutError(f"a worker has not answered within {self._timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            complaint = self._stderr.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"a worker has ended with status {status}: {complaint}")
        return line

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the end of its input ends it, and its loader's workers
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()
