"""The page's JavaScript, run by Node in a small document of the page's own HTML."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vramkit.estimate.config import _page

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

_NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(_NODE is None, reason="needs Node.js")

_FOLDER = Path(_page.__file__).parent / "page"
_DOM = Path(__file__).parent / "page_dom.js"
_EMPTY = {"meta", "link", "input", "br"}
Tree = list[Any]


class _Reader(HTMLParser):
    """Reads HTML as lists of a name, attributes and children."""

    def __init__(self) -> None:
        super().__init__()
        self.root: Tree = ["root", {}, []]
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made: Tree = [tag, {name: value or "" for name, value in attrs}, []]
        self._open[-1][2].append(made)
        if tag not in _EMPTY:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self._open[-1][2].append(data.strip())


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """The address of a server of the page."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(_page.create_app(), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


def shown(base: str, *actions: tuple[str, Any], search: str = "") -> dict[str, Any]:
    """What the page shows after it has been opened and fields were changed."""
    reader = _Reader()
    reader.feed((_FOLDER / "index.html").read_text(encoding="utf-8"))
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    told = {"tree": reader.root, "script": script, "base": base, "search": search}
    assert _NODE is not None
    done = subprocess.run(
        [_NODE, str(_DOM)],
        input=json.dumps({**told, "actions": actions}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_page_opens_with_an_estimate(base: str) -> None:
    found = shown(base)
    assert (found["error"], found["kind"]) == ("", "good")
    assert found["verdict"].endswith(" GiB fits into 75.2 GiB, 95 % of 79.2 GiB (h100)")
    assert found["rank"].startswith("llama-3.1-8b, 8,030,261,248 parameters; serving, one GPU")
    assert found["modes"] == ["serve"]
    assert found["amounts"] == len(found["bar"]) > 5
    assert found["advice"] > 3
    assert "cache for a further token" in found["answers"]
    assert found["requests"][0]["options"]["context"] == 8192
    assert "model=llama-3.1-8b" in found["address"]
    assert found["copied"] == "http://localhost/"


def test_sliders_choices_and_modes_are_asked_for(base: str) -> None:
    found = shown(base, ("context", "17"), ("weights", "awq"), ("budget", "8GiB"))
    assert found["requests"][-1]["options"]["context"] == 1 << 17
    assert found["requests"][-1]["options"]["weights"] == "awq"
    assert found["verdict"].endswith("does not fit into 8.0 GiB")
    assert found["kind"] == "bad"
    trained = shown(base, ("mode", "train"), ("zero", "3"), ("data", "3"), ("no_flash", True))
    assert trained["error"] == ""
    assert trained["modes"] == ["train"]
    assert trained["requests"][-1]["mode"] == "train"
    options = trained["requests"][-1]["options"]
    assert (options["zero"], options["data"], options["no_flash"]) == (3, 8, True)
    assert "context" not in options
    assert any("ZeRO 3" in note for note in trained["notes"])


def test_an_address_leads_back(base: str) -> None:
    first = shown(base, ("mode", "train"), ("model", "phi-4"), ("sequence", "11"))
    again = shown(base, search=first["address"])
    assert again["requests"][-1] == first["requests"][-1]
    assert again["verdict"] == first["verdict"]
    assert again["address"] == first["address"]


def test_parts_of_an_address_that_are_not_known_are_told(base: str) -> None:
    found = shown(base, search="?mode=guess&target=voodoo2&context=8192&batch=2&speed=9")
    assert found["unknown"].endswith(": mode=guess, target=voodoo2, context=8192, speed=9")
    assert (found["error"], found["modes"]) == ("", ["serve"])
    options = found["requests"][-1]["options"]
    assert (options["context"], options["batch"]) == (8192, 4)
    assert shown(base, search=found["address"])["unknown"] == ""


def test_errors_are_shown(base: str) -> None:
    refused = shown(base, ("tensor", "6"))
    assert "64 ranks cannot split the 32 heads" in refused["error"]
    assert not refused["hidden"]
    own = shown(base, ("own", "{"))
    assert own["error"].startswith("Your configuration is not valid JSON")
    mended = shown(base, ("own", "{"), ("own", ""))
    assert (mended["error"], mended["kind"]) == ("", "good")
