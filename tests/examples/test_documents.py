"""Documents say what the code does: their examples run, their tables are whole."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.documents import DOCUMENTS, needs_of, python_blocks
from helpers.traces import Row, write_npz

from vramkit import errors
from vramkit.cli import main
from vramkit.cli._status import Status
from vramkit.pool import PoolBlock, PoolStats

ROOT = Path(__file__).resolve().parents[2]


def table_rows(text: str) -> set[str]:
    """Whatever stands in code spans in the first column of a document's tables."""
    first_columns = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return {name for column in first_columns for name in re.findall(r"`([\w.]+)`", column)}


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if python_blocks(path)],
    ids=lambda path: path.name,
)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    source = "\n".join(python_blocks(path))
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{source}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_statistic_is_explained() -> None:
    rows = table_rows((ROOT / "docs" / "statistics.md").read_text(encoding="utf-8"))
    assert {field.name for field in fields(PoolStats)} <= rows


def test_every_field_of_a_block_is_named() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(PoolBlock) if f"`{field.name}`" not in text] == []


def test_every_exception_is_explained() -> None:
    rows = table_rows((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
    assert set(errors.__all__) - {"VramkitError"} <= rows


@pytest.mark.parametrize(
    ("command", "documents"),
    [
        ("simulate", ("simulate",)),
        ("estimate", ("estimate", "calculator")),
        ("calibrate", ("estimate",)),
        ("demo", ("quickstart",)),
        ("run", ("run",)),
    ],
)
def test_every_option_is_named(
    command: str, documents: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    pages = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in documents]
    text = "\n".join(pages)
    assert len(options) > 3
    assert [option for option in sorted(options) if f"`{option}" not in text] == []


def test_every_key_of_a_report_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = [("alloc", 64, 8 << 20, 0), ("free_completed", 64, 8 << 20, 0)]
    trace = write_npz(tmp_path / "a.npz", rows)
    assert main(["simulate", str(trace), "--json", "--capacity", "4MiB"]) == 1
    report = json.loads(capsys.readouterr().out)
    text = (ROOT / "docs" / "simulate.md").read_text(encoding="utf-8")
    keys = {*report, *report["failure"]}
    assert "free_whole_pages" in keys
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_every_exit_status_is_explained() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert [int(row) for row in rows] == sorted(Status)


def test_the_guards_read_documents(tmp_path: Path) -> None:
    text = "```python\na\n```\n<!-- needs a GPU -->\n```python\nb\n```\n| `x`, `y_z` | `no` |\n"
    document = tmp_path / "document.md"
    document.write_text(text, encoding="utf-8")
    assert python_blocks(document) == ["a\n"]
    assert python_blocks(document, needs="a GPU") == ["b\n"]
    assert python_blocks(document, needs="a GPU and rmm") == []
    assert table_rows(text) == {"x", "y_z"}


def test_every_need_is_one_that_a_test_knows() -> None:
    """An example with another need would run nowhere."""
    known = {
        "a GPU",
        "a GPU and rmm",
        "a GPU and cupy",
        "a GPU and a trainer",
        "a process without pools",
        "datasets",
    }
    assert {need for path in DOCUMENTS for need in needs_of(path)} == known
