"""The Python examples in README.md and docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Rendered documents do not show the comment.
_BLOCK = re.compile(r"(?:<!-- needs ([\w ]+) -->\n)?```python\n(.*?)```", re.DOTALL)


def python_blocks(path: Path, needs: str = "") -> list[str]:
    """The examples marked with that need; without one, those that run on any machine."""
    return [block for need, block in _blocks(path) if need == needs]


def needs_of(path: Path) -> set[str]:
    """The needs that examples of the document are marked with."""
    return {need for need, _ in _blocks(path) if need}


def _blocks(path: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall(path.read_text(encoding="utf-8"))
