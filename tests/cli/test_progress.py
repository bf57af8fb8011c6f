import contextlib
import io

import pytest

from vramkit.cli._progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_line_and_its_end() -> None:
    terminal = Terminal()
    with ProgressLine(terminal) as progress:
        progress(500, 1000)
    assert terminal.getvalue() == "\r[" + "#" * 15 + " " * 15 + "]  50% of 1,000 events\r\x1b[K"


def test_it_is_drawn_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([1.0, 1.05, 1.11])
    monkeypatch.setattr("vramkit.cli._progress.time.monotonic", lambda: next(now_s))
    terminal = Terminal()
    progress = ProgressLine(terminal)
    for done in (10, 20, 30):
        progress(done, 100)
    assert "10%" in terminal.getvalue()
    assert "20%" not in terminal.getvalue()
    assert "30%" in terminal.getvalue()


def test_a_file_sees_nothing() -> None:
    file = io.StringIO()
    with ProgressLine(file) as progress:
        progress(1, 2)
    assert file.getvalue() == ""


def test_the_line_is_wiped_after_an_error() -> None:
    terminal = Terminal()
    with contextlib.suppress(ValueError), ProgressLine(terminal) as progress:
        progress(1, 1)
        raise ValueError
    assert terminal.getvalue().endswith("\r\x1b[K")
