"""One idea per file: at most 500 lines; functions: at most 50; lines of prose: 120 columns."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FILE_LINES = 500
_FUNCTION_LINES = 50
_FOLDERS = ("vramkit", "csrc", "tests", "benchmarks", "scripts", "examples", "docs")
_PROSE_COLUMNS = 120
_NATIVE = (".h", ".cpp", ".cu", ".cuh")

_NOISE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\\n])*" | '(?:\\[^']+|[^'\\\n])'  # comments, literals
    | ^[ \t]*\#(?:\\\n|[^\n])*                                               # directives
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_SCOPE = re.compile(r"\s*(template\s*<.*>\s*)?(inline\s+)?(namespace|class|struct|union|enum)\b")


def python_functions(text: str) -> list[tuple[str, int]]:
    """Return each function's name and its number of lines, decorators and docstring included."""
    return [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def native_functions(text: str) -> list[tuple[str, int]]:
    """Return the header and the number of lines of each block that is no namespace or class."""
    code = _NOISE.sub(lambda match: "\n" * match[0].count("\n"), text)
    open_blocks: list[tuple[int, str, bool]] = []
    found = []
    for match in re.finditer(r"[{}]", code):
        at = match.start()
        if match[0] == "{":
            header = re.split(r"[;{}]", code[:at])[-1]
            inside = any(is_function for _, _, is_function in open_blocks)
            is_scope = bool(_SCOPE.match(header)) or header.split() == ["extern"]
            open_blocks.append((at, " ".join(header.split()), not inside and not is_scope))
        elif open_blocks:
            begin, header, is_function = open_blocks.pop()
            if is_function:
                found.append((header, code.count("\n", begin, at) + 1))
    return found


def violations(name: str, text: str) -> list[str]:
    """Return what is too long in a file."""
    lines = text.count("\n")
    found = [f"{name}: {lines} lines, at most {_FILE_LINES}"] if lines > _FILE_LINES else []
    functions = python_functions(text) if name.endswith(".py") else native_functions(text)
    return found + [
        f"{name}: {function} has {count} lines, at most {_FUNCTION_LINES}"
        for function, count in functions
        if count > _FUNCTION_LINES
    ]


def long_prose(text: str) -> list[int]:
    """Return the numbers of the lines of a document that are too long; tables and code may be."""
    found, in_code = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith("|") and len(line) > _PROSE_COLUMNS:
            found.append(number)
    return found


def test_prose_is_wrapped() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    documents = [path for path in documents if "_build" not in path.parts]
    assert len(documents) > 10
    found = {
        path.name: numbers
        for path in documents
        if (numbers := long_prose(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_guard_sees_long_prose() -> None:
    long = "a" * 121
    assert long_prose(f"| {long} |\n```\n{long}\n```\n{long}\n{long[1:]}\n") == [5]


def test_sizes() -> None:
    files = [ROOT / "setup.py"]
    for folder in _FOLDERS:
        files += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", *_NATIVE)]
    assert len(files) > 50
    found = []
    for path in sorted(files):
        found += violations(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    assert found == []


def test_the_guard_sees_long_files() -> None:
    assert violations("a.py", "x = 1\n" * 500) == []
    assert violations("a.py", "x = 1\n" * 501) == ["a.py: 501 lines, at most 500"]


def test_the_guard_sees_long_python_functions() -> None:
    text = "class A:\n    def f(self):\n" + "        x = 1\n" * 49
    assert violations("a.py", text) == []
    assert violations("a.py", text + "        x = 1\n") == ["a.py: f has 51 lines, at most 50"]


def test_the_guard_sees_long_native_functions() -> None:
    begin = "#include <a>\nnamespace a {\n"
    begin += 'class B {\n  int f(int x) const noexcept {\n    auto s = "}";\n'
    middle = "    if (x) { x = '}'; } // }\n"
    end = "  }\n};\n}\n"
    assert violations("a.cpp", begin + middle * 47 + end) == []
    [found] = violations("a.cpp", begin + middle * 48 + end)
    assert found == "a.cpp: int f(int x) const noexcept has 51 lines, at most 50"
