"""What a message advises works: sizes parse and are enough, options and functions are there."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.traces import Row, write_npz, write_snapshot

from vramkit import MemoryPool
from vramkit._core import CorePool
from vramkit.cli import _COMMANDS, _parsers, main
from vramkit.errors import VramkitError
from vramkit.units import parse_bytes

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
ROWS: list[Row] = [
    (action, 64, size * MIB, 0)
    for size in (100, 300, 200)
    for action in ("alloc", "free_requested", "free_completed")
]

_SIZE = re.compile(r"(?<![\w.,])\d[\d.,]*\s?[KMGTPE]i?B\b")
# Quoted, or written without a space, unlike a figure for people.
_ADVISED = re.compile(
    r"(?:at least|at most|from|to|write|or|as|is|GiB',) '([\d.,]+ ?[KMGTPE]?i?B)'"
    r"|(?:at least|at most|from|to|--capacity|--budget) ([\d.,]+[KMGTPE]?i?B)\b"
)
# Tools of others, in messages about installing.
_FOREIGN_OPTIONS = {"--force-reinstall", "--no-deps", "--no-build-isolation"}


def advised(message: str) -> list[str]:
    """The sizes that a message advises."""
    found = [quoted or plain for quoted, plain in _ADVISED.findall(message)]
    assert found, message
    return found


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises((VramkitError, torch.OutOfMemoryError)) as caught:
        call()
    return str(caught.value)


def told(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says when it ends with that status."""
    assert main(arguments) == status
    printed = capsys.readouterr()
    return printed.err + printed.out


def literals() -> Iterator[tuple[str, str]]:
    """Every string literal of the package and the core, with its file."""
    for path in sorted((ROOT / "vramkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield str(path.relative_to(ROOT)), node.value
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        for piece in re.findall(r'"((?:\\.|[^"\\\n])*)"', text):
            yield str(path.relative_to(ROOT)), piece


# ---- what is written in the sources


def test_every_size_in_a_text_can_be_read() -> None:
    found = [size for _, text in literals() for size in _SIZE.findall(text)]
    assert len(found) > 20
    for size in found:
        assert parse_bytes(size.rstrip(",.")) > 0


def test_every_option_in_a_text_is_one() -> None:
    parser, commands = _parsers(list(_COMMANDS))
    known = {
        option
        for each in (parser, *commands.values())
        for action in each._actions
        for option in action.option_strings
    }
    named = {
        option
        for path, text in literals()
        if "_build" not in path
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    }
    assert {"--capacity", "--min-capacity", "--page", "--device", "--epochs"} <= named
    assert named - known - _FOREIGN_OPTIONS == set()


def test_every_function_in_a_text_is_there() -> None:
    texts = [text for _, text in literals()]
    methods = {name for text in texts for name in re.findall(r"\bpool\.(\w+)\(", text)}
    assert {"resize", "snapshot", "outside"} <= methods
    assert [name for name in sorted(methods) if not hasattr(MemoryPool, name)] == []
    dotted = {name for text in texts for name in re.findall(r"\b(torch(?:\.\w+)+)\(", text)}
    assert {"torch.cuda.empty_cache", "torch.compiler.reset"} <= dotted
    for name in sorted(dotted):
        value: Any = torch
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        assert callable(value)


def test_every_command_in_a_text_is_there() -> None:
    texts = [text for _, text in literals()]
    targets = {name for text in texts for name in re.findall(r"`make ([a-z-]+)", text)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert targets <= rules
    extras = {name for text in texts for name in re.findall(r"vramkit\[(\w+)\]", text)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "demo" in extras <= set(project["optional-dependencies"])
    modules = {name for text in texts for name in re.findall(r"python -m ([\w.]+)", text)}
    for name in sorted(modules):
        source = f"import importlib.util as u; assert u.find_spec({name!r}) is not None"
        subprocess.run([sys.executable, "-c", source], check=True)


def test_each_place_that_advises_a_size_is_tried_below() -> None:
    """A new one belongs into a test of this file; then raise its number here."""
    places: dict[str, int] = {}
    for folder in ("vramkit", "csrc"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".cpp", ".h") and path.stem not in ("units", "bytes"):
                count = len(re.findall(r"\badvised_size\(", path.read_text(encoding="utf-8")))
                places |= {str(path.relative_to(ROOT)): count} if count else {}
    assert places == {
        "vramkit/cli/_demo/_run.py": 1,
        "vramkit/pool/_capacity.py": 6,
        "vramkit/simulate/_capacity.py": 2,
        "csrc/pool/explain.cpp": 2,
    }


# ---- the pool


@pytest.mark.parametrize("text", ["2G", "3g", "0.5", "one", "50%", "1,024MiB"])
def test_what_is_advised_for_a_text_can_be_read(text: str) -> None:
    for size in advised(message_of(lambda: parse_bytes(text))):
        assert parse_bytes(size) > 0


def test_each_unit_that_is_advised_can_be_read() -> None:
    units = message_of(lambda: parse_bytes("2 XB")).partition("; use ")[2]
    for unit in re.split(r", | or ", units):
        assert parse_bytes(f"3{unit}") >= 3


@pytest.mark.parametrize("capacity", [1, 2 * MIB - 1, "1MiB", "8EiB", 1 << 70, 0.0000001])
def test_the_capacity_that_is_advised_makes_a_pool(capacity: float | str) -> None:
    text = message_of(lambda: MemoryPool(capacity, device="cpu"))
    for size in advised(text):
        MemoryPool(size, device="cpu").close()
    assert "a float such as 0.5" in text
    MemoryPool(0.5, device="cpu").close()


@pytest.mark.parametrize("page", ["3MiB", 4096, "1TiB", "2GiB"])
def test_the_pages_that_are_advised_make_a_pool(page: int | str) -> None:
    sizes = advised(message_of(lambda: MemoryPool("2GiB", device="cpu", page_bytes=page)))
    assert sizes == ["64KiB", "1GiB", "2MiB"]
    for size in sizes:
        MemoryPool(max(parse_bytes(size), 4 * MIB), device="cpu", page_bytes=size).close()


def test_the_core_advises_pages_that_it_takes() -> None:
    def make(page_bytes: int) -> None:
        CorePool.create(
            backend="null", label="test", capacity_bytes=4 << 30, page_bytes=page_bytes
        ).close()

    for size in advised(message_of(lambda: make(3 * MIB))):
        make(parse_bytes(size))


@pytest.mark.parametrize("wanted", [9 * MIB, 9 * MIB + 1, 40 * MIB, 8 * MIB + 513])
def test_a_full_pool_advises_enough(wanted: int) -> None:
    capacity = 16 * MIB
    pool = MemoryPool(capacity, device="cpu")

    def allocate(pool: MemoryPool, size_bytes: int) -> torch.Tensor:
        with pool:
            return torch.empty(size_bytes, dtype=torch.uint8)

    kept = allocate(pool, 8 * MIB)
    text = message_of(lambda: allocate(pool, wanted))
    [more] = advised(text)
    larger = MemoryPool(capacity + parse_bytes(more), device="cpu")
    assert [allocate(larger, kept.nbytes), allocate(larger, wanted)]
    [resized] = re.findall(r"pool\.resize\((\d+)\)", text)
    pool.resize(int(resized))
    assert allocate(pool, wanted).nbytes == wanted
    assert 'overflow="native"' in text
    native = MemoryPool(capacity, device="cpu", overflow="native")
    with pytest.warns(UserWarning, match="has no room for"):
        assert [allocate(native, kept.nbytes), allocate(native, wanted)]


# ---- the command line


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write_npz(tmp_path / "small.npz", ROWS))


@pytest.mark.parametrize("capacity", ["1MiB", "5", "0.001x", "1.01", "50%", "2G"])
def test_the_capacity_that_simulate_advises_is_one(
    capacity: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(["simulate", trace, "--capacity", capacity], 2, capsys)
    for advice in [*advised(text), *re.findall(r"such as '([\d.]+x)'", text)]:
        assert main(["simulate", trace, "--capacity", advice]) in (0, 1)


def test_a_replay_that_runs_out_advises_a_search(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(["simulate", trace, "--capacity", "250MiB"], 1, capsys)
    assert "let --min-capacity find the smallest" in text
    assert main(["simulate", trace, "--min-capacity"]) == 0


def test_the_pages_that_simulate_advises_are_some(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in advised(told(["simulate", trace, "--page", "3MiB"], 2, capsys)):
        assert main(["simulate", trace, "--page", page, "--capacity", "4x"]) == 0


def test_the_rounds_that_simulate_advises_are_read(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(["simulate", trace, "--repeat-step", "999999999"], 2, capsys)
    [(least, most)] = re.findall(r"can be repeated (\S+) to (\S+) times", text)
    assert main(["simulate", trace, "--repeat-step", least]) == 0
    assert int(most) == (1 << 25) - 1


def test_the_devices_that_simulate_lists_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_snapshot(tmp_path / "two.pickle", ROWS, ROWS[:3]))
    listed = re.findall(r"(\d+) \(\d+ events?\)", told(["simulate", path], 2, capsys))
    assert listed == ["0", "1"]
    for device in listed:
        assert main(["simulate", path, "--device", device]) == 0


@pytest.mark.parametrize("option", ["--seed", "--epochs"])
def test_the_integers_that_the_demo_advises_are_read(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(["demo", option, "-1"], 2, capsys)
    limits = re.findall(r"(?:from|to|at least) (\d+)", text.splitlines()[-1])
    assert limits
    for limit in limits:
        parsed = _parsers(["demo"])[0].parse_args(["demo", option, limit])
        assert getattr(parsed, option.strip("-")) == int(limit)


@pytest.mark.parametrize("budget", ["1MiB", "8EiB", "2G", "50%", "1.5"])
def test_the_budgets_that_the_demo_advises_are_read(
    budget: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from vramkit.cli._demo import check_budget

    text = told(["demo", "--budget", budget], 2, capsys)
    for advice in [*advised(text), *re.findall(r"such as (0\.\d+)", text)]:
        assert check_budget(advice, torch.device("cpu")) > 0


def test_the_budget_that_a_demo_without_memory_advises_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--json", "--epochs", "1", "--out", str(tmp_path / "a.png")]
    text = told([*command, "--budget", "2MiB"], 1, capsys)
    budget = re.findall(r"try --budget (\w+)\.", text)[0]
    assert main([*command, "--budget", budget]) == 1
    assert "error" not in json.loads(capsys.readouterr().out)
