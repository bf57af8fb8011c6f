"""``vramkit run`` runs a program as Python does, but inside a pool."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from vramkit.cli import _run as command

_LARGE = "import torch\nx = torch.empty(64 << 20, dtype=torch.uint8)\n"


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vramkit", "run", *arguments]


def _run(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _command(*arguments), capture_output=True, text=True, check=False, cwd=cwd
    )


def _in_pool(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return _run("--budget", "32MiB", "--device", "cpu", *arguments, cwd=cwd)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(
        "import sys, torch\n"
        "import beside\n"
        "from vramkit._core import owner\n"
        "x = torch.ones(1 << 18)\n"
        "print(__name__, sys.argv[1:], bool(owner(x.data_ptr())), beside.NAME)\n"
        "import __main__\n"
        "print(__main__.x is x, __file__ == sys.argv[0])\n"
    )
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    return path


def test_a_script_runs_inside_the_pool(script: Path) -> None:
    done = _in_pool(str(script), "--lr", "0.1", "--repeat-step", "x", "--help")
    assert done.stdout.splitlines() == [
        "__main__ ['--lr', '0.1', '--repeat-step', 'x', '--help'] True beside",
        "True True",
    ]
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_module_runs_inside_the_pool(script: Path) -> None:
    done = _in_pool("-m", "train", "--budget", "1", "-m", cwd=script.parent)
    assert done.stdout.splitlines()[0] == "__main__ ['--budget', '1', '-m'] True beside"
    assert done.returncode == 0, done.stderr


def test_a_folder_with_a_main_module_runs(tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    assert _in_pool(str(tmp_path), "a").stdout == "['a']\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('no data')", 1),
        ("raise ValueError('mine')", 1),
        ("import os; os._exit(9)", 9),
        ("", 0),
    ],
)
def test_the_exit_status_is_the_scripts(text: str, status: int, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(text)
    assert _in_pool(str(path)).returncode == status


def test_the_scripts_own_vramkit_errors_keep_their_traceback(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("import vramkit\nvramkit.MemoryPool('1TiB', device='cpu')\n")
    done = _in_pool(str(path))
    assert done.returncode == 1
    assert "CapacityError" in done.stderr
    assert f'File "{path}", line 2' in done.stderr


def test_beyond_the_budget_the_script_is_out_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(_LARGE)
    done = _in_pool(str(path))
    assert done.returncode == 1
    assert "torch.OutOfMemoryError" in done.stderr
    assert _in_pool("--overflow", "native", str(path)).returncode == 0


def test_an_out_of_memory_error_names_the_options_that_help(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(_LARGE)
    last = _in_pool(str(path)).stderr.splitlines()[-1]
    assert last.startswith("Under `vramkit run`, give the pool more memory with --budget, or")
    assert last.endswith("with --overflow native.")
    path.write_text("raise RuntimeError('out of memory')")
    assert "--budget" not in _in_pool(str(path)).stderr


@pytest.mark.parametrize(
    "text",
    [
        "def f(): raise ValueError('mine')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as err:\n    raise KeyError('mine') from err",
        "import beside",
        "def f(:\n",
        "import sys\nsys.excepthook = lambda *a: print(a[0], a[2].tb_lineno, a[2].tb_next)\n1 / 0",
        "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()\n",
    ],
)
def test_a_traceback_is_the_one_that_python_shows(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(text)
    (tmp_path / "beside.py").write_text("def f(): 1 / 0\nf()\n")
    expected = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False
    )
    assert expected.returncode == 1 or "threading" in text
    done = _in_pool(str(path))
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr == expected.stderr


def test_a_traceback_of_a_module_shows_no_frame_of_vramkit(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("1 / 0")
    (package / "bad.py").write_text("")
    lines = _in_pool("-m", "pkg", cwd=tmp_path).stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{package / "__main__.py"}", line 1, in <module>')
    (package / "__init__.py").write_text("1 / 0")
    lines = _in_pool("-m", "pkg.bad", cwd=tmp_path).stderr.splitlines()
    assert lines[1].startswith(f'  File "{package / "__init__.py"}", line 1, in <module>')


def test_the_summary_goes_to_standard_error_also_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("import torch\nx = torch.empty(1 << 20)\nraise SystemExit(3)\n")
    done = _in_pool("--summary", str(path))
    assert done.returncode == 3
    assert done.stdout == ""
    assert "vramkit memory pool" in done.stderr


def test_stacks_name_the_line_of_the_script(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("import torch\nkeep = torch.empty(24 << 20, dtype=torch.uint8)\n" + _LARGE)
    assert f"{path}:2" in _in_pool("--record-stacks", str(path)).stderr


def test_spawned_children_find_the_scripts_functions(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "import multiprocessing as mp\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool: print(pool.map(double, [21]))\n"
    )
    done = _in_pool(str(path))
    assert done.stdout == "[42]\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_script_as_they_end_python(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        _command("--budget", "8MiB", "--device", "cpu", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A shell lets its background jobs ignore SIGINT, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == -number
    process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--budget", "8MiB"], "nothing to run"),
        (["--budget", "8MiB", "no_such_file.py"], "there is no file 'no_such_file.py'"),
        (["--budget", "8MiB", "-m"], "-m needs the name of a module"),
        (["--budget", "8MiB", "-m", "no_such_module"], "no module named 'no_such_module'"),
        (["--budget", "8MiB", "-m", "no_such.module"], "no module named 'no_such.module'"),
        (["--budget", "much", __file__], "vramkit run: --budget 'much' cannot be read; write a"),
        (
            ["--budget", "1.5", "--device", "cpu", __file__],
            "vramkit run: --budget 1.5: a fraction of the free memory must be in (0, 1]; write b",
        ),
        (
            ["--budget", "1MiB", "--device", "cpu", __file__],
            "vramkit run: --budget '1MiB' is 1.0 MiB, less than one page of 2.0 MiB",
        ),
        (["--budget", "1024TiB", "--device", "cpu", __file__], "at most"),
    ],
)
def test_bad_input_runs_nothing(arguments: list[str], text: str, tmp_path: Path) -> None:
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_follows_the_script_is_the_scripts(script: Path) -> None:
    done = _in_pool(str(script), "-m", "train")
    assert done.stdout.startswith("__main__ ['-m', 'train'] True")


def test_a_part_of_the_free_memory_is_a_budget(script: Path) -> None:
    done = _run("--budget", "0.01", "--device", "cpu", str(script))
    assert done.returncode == 0, done.stderr


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert "cannot be read" in _in_pool(str(path)).stderr


@pytest.mark.parametrize(
    ("rank", "devices", "device"),
    [
        ("1", 2, "cuda:1"),
        ("0", 1, "cuda:0"),
        ("1", 1, None),
        ("x", 2, None),
        (None, 2, None),
        ("0", 0, None),
    ],
)
def test_under_torchrun_each_rank_has_its_own_device(
    rank: str | None, devices: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert command._device_of_this_rank() == device


def test_the_scripts_words_arrive_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    path.write_text("import sys; print(sys.argv[1:])")
    for words in (["--", "--budget", "3"], ["a", "--", "b"], ["-m", "x"], ["--summary"]):
        assert _in_pool(str(path), *words).stdout == f"{words}\n"
    assert _in_pool("-m", "s", "--", "a", cwd=tmp_path).stdout == "['--', 'a']\n"
    assert _in_pool("--", str(path), "a").stdout == "['a']\n"


_ECHO = """
import atexit, multiprocessing as mp, os, pickle, sys, threading, time, torch
from vramkit._core import owner
class Box: pass
def make(_): return Box()
def routed(): return bool(owner(torch.ones(1 << 12).data_ptr()))
if __name__ == "__main__":
    if not __file__.endswith("__main__.py"):  # there Python's own children find no __main__ either
        with mp.get_context("spawn").Pool(1) as pool: assert type(pool.map(make, [0])[0]) is Box
    os.chdir("/")
    assert os.path.exists(__file__) and __loader__ is not None
    atexit.register(lambda: (pickle.dumps(Box()), print("late", routed(), flush=True)))
    def work(): time.sleep(0.3); print("thread", routed(), flush=True)
    threading.Thread(target=work).start()
"""


def test_a_program_is_main_until_the_process_ends(tmp_path: Path) -> None:
    """As a script, a module, a folder, and an archive without a telling name."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for path in (tmp_path / "s.py", package / "__main__.py"):
        path.write_text(_ECHO)
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", "import sys; print('zipped', sys.argv[1:])")
    for words in (["s.py"], ["-m", "s"], ["-m", "pkg"], ["pkg"]):
        done = _in_pool(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["thread True", "late True"]
    assert _in_pool("archive", "x", cwd=tmp_path).stdout == "zipped ['x']\n"


def test_what_a_package_does_when_it_is_imported_is_the_programs(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("print('imported'); 1 / 0")
    (package / "mod.py").write_text("")
    done = _in_pool("-m", "pkg.mod", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "imported\n")
    assert "ZeroDivisionError" in done.stderr
    refused = _run("--budget", "64XiB", "-m", "pkg.mod", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import os, sys\nif os.fork() == 0: sys.exit(5)\nsys.exit(os.wait()[1] >> 8)", 5),
        ("import sys; sys.stderr.close(); sys.exit(7)", 7),
        ("import os, sys; os.close(2); sys.exit(7)", 7),
    ],
)
def test_the_summary_changes_no_status(text: str, status: int, tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    path.write_text(text)
    assert _in_pool("--summary", str(path)).returncode == status


def test_a_program_from_standard_input() -> None:
    done = subprocess.run(
        _command("--budget", "8MiB", "--device", "cpu", "-", "a"),
        input="import sys; print(sys.argv)",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['-', 'a']\n"
