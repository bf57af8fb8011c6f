"""The commands in the documents' console blocks run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from vramkit.cli import main
from vramkit.estimate.config import catalogue

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_STEP = """
import torch

def make_step():
    layer = torch.nn.Linear(64, 64, device="cuda")
    return lambda: layer(torch.ones(8, 64, device="cuda")).sum().backward()
"""


def documented(command: str) -> list[str]:
    """The lines of a command in the console blocks of all documents, without the prompt."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    lines = [line for block in blocks for line in block.splitlines()]
    start = f"$ vramkit {command} "
    return sorted({line.removeprefix("$ vramkit ") for line in lines if line.startswith(start)})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the documents name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "train.py").write_text(_STEP, encoding="utf-8")
    (tmp_path / "package").mkdir()
    shutil.copy(tmp_path / "train.py", tmp_path / "package" / "train.py")
    (tmp_path / "my-model").mkdir()
    name = next(entry.name for entry in catalogue() if entry.name == "llama-3.2-1b")
    text = (ROOT / "vramkit/estimate/config/catalogue" / f"{name}.json").read_text(encoding="utf-8")
    values = re.search(r'"config": (\{.*\})\s*\}', text, re.DOTALL)
    assert values is not None
    (tmp_path / "my-model" / "config.json").write_text(values[1], encoding="utf-8")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("line", documented("estimate"))
def test_estimates_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --trace, which takes minutes, and has tests of its own."""
    words = [word for word in shlex.split(line, comments=True) if word != "--trace"]
    if "gpu.json" in words:  # what vramkit calibrate writes on a GPU
        words[words.index("gpu.json")] = str(ROOT / "vramkit/estimate/_data/h100.json")
    assert main(words) in (0, 1), capsys.readouterr().err


def test_the_documents_have_commands() -> None:
    lines = documented("estimate")
    assert sum("--config" in line for line in lines) >= 4
    assert any("train.py:make_step" in line for line in lines)
