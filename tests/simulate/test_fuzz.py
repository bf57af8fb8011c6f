"""The fuzzer finds what is wrong, and finds nothing where nothing is."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_simulate
import pytest
from _mutants import make_input, make_options

from vramkit.errors import TraceError
from vramkit.simulate import _npz, _snapshot


def run(tmp_path: Path, *, seconds: float) -> tuple[int, list[Path]]:
    arguments = ["--seed", "7", "--seconds", str(seconds), "--save", str(tmp_path)]
    return fuzz_simulate.main(arguments), sorted(tmp_path.iterdir())


def test_the_seed_says_what_the_inputs_are() -> None:
    inputs = [make_input(f"7-{number}") for number in range(60)]
    assert inputs == [make_input(f"7-{number}") for number in range(60)]
    assert len(set(inputs)) == 60
    assert make_options("7-1") == make_options("7-1")


def test_inputs_are_traces_of_both_kinds_whole_and_damaged(tmp_path: Path) -> None:
    outcomes = set()
    path = tmp_path / "input"
    for number in range(200):
        path.write_bytes(make_input(f"7-{number}"))
        status, wrong = fuzz_simulate.judge(path)
        assert wrong is None
        outcomes.add((status == 2, path.read_bytes()[:2] == b"PK"))
    assert outcomes == {(refused, zipped) for refused in (False, True) for zipped in (False, True)}


def test_nothing_is_found_where_nothing_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, seconds=2) == (0, [])
    printed = capsys.readouterr().out
    assert printed.startswith("seed 7, inputs are written to ")
    assert "inputs with seed 7: " in printed


def raise_key_error(*_: object, **__: object) -> None:
    raise KeyError("planted")


def never_end(*_: object, **__: object) -> None:
    while True:
        time.sleep(0.01)


def take_memory(*_: object, **__: object) -> None:
    bytearray(4 << 30)


def print_something(*_: object, **__: object) -> None:
    print("planted")
    raise TraceError("refused")


@pytest.mark.parametrize(
    ("plant", "text"),
    [
        (raise_key_error, "KeyError: 'planted'"),
        (never_end, "it takes more than 1 s"),
        (take_memory, "it takes more than 512 MiB"),
        (print_something, r"exit status 2, but prints 'planted\\n'"),
    ],
)
@pytest.mark.parametrize("place", [(_npz, "read_npy"), (_snapshot, "load_plain")])
def test_a_planted_violation_is_found(
    place: tuple[Any, str],
    plant: Callable[..., None],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(*place, plant)
    monkeypatch.setattr(fuzz_simulate, "INPUT_SECONDS", 1)
    status, [saved] = run(tmp_path, seconds=60)
    assert status == 1
    assert saved.name.startswith("violation-7-")
    printed = capsys.readouterr().out
    assert "is not taken as documented: " in printed
    assert re.search(text, printed)
    assert f"repeat it by: vramkit simulate {saved}" in printed
    # The input shows the same when it is given again, and nothing once the plant is gone.
    assert fuzz_simulate.judge(saved, seconds=1)[1] is not None
    monkeypatch.undo()
    assert fuzz_simulate.judge(saved)[1] is None


def test_texts_that_a_terminal_would_obey_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("_load", "_npz"):
        monkeypatch.setattr(f"vramkit.simulate.{module}.one_line", lambda text, **_: text)
    status, [saved] = run(tmp_path, seconds=60)
    assert status == 1
    assert re.search(r"prints .*(\\x|\\n)", capsys.readouterr().out)
    monkeypatch.undo()
    assert fuzz_simulate.judge(saved) == (2, None)


def test_the_folder_for_inputs_is_created(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert fuzz_simulate.main(["--seconds", "0.1", "--seed", "7", "--save", str(folder)]) == 0
    assert folder.is_dir()


def test_the_limits_end_with_their_blocks() -> None:
    with fuzz_simulate.time_limit(0.05), fuzz_simulate.memory_limit(1 << 20):
        pass
    time.sleep(0.1)
    assert len(bytearray(64 << 20)) == 64 << 20
