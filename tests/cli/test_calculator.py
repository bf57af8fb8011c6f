"""``vramkit calculator``."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from vramkit.cli import _calculator, main
from vramkit.cli._calculator import allowed_hosts
from vramkit.estimate.config._page import create_app


def test_it_serves_the_page_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    served: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda _, **options: served.append(options))
    monkeypatch.setattr(_calculator, "_check_address", lambda *_: None)
    assert main(["calculator", "--port", "9000"]) == 0
    assert served == [{"host": "127.0.0.1", "port": 9000, "log_level": "warning"}]
    assert "http://127.0.0.1:9000/ (stop with Ctrl-C)" in capsys.readouterr().err
    assert main(["calculator", "--host", "::1"]) == 0
    assert "http://[::1]:8800/" in capsys.readouterr().err


def test_names_under_which_it_may_be_asked() -> None:
    assert allowed_hosts("127.0.0.1") == ("localhost", "127.0.0.1", "127.0.0.1")
    assert allowed_hosts("box.lan")[-1] == "box.lan"
    assert allowed_hosts("0.0.0.0") == ("*",)
    assert allowed_hosts("0:0:0:0:0:0:0:1")[-1] == "[::1]"


@pytest.mark.parametrize(("asked", "status"), [("[::1]:8800", 200), ("[::2]:8800", 400)])
def test_the_page_answers_under_an_address_of_six(asked: str, status: int) -> None:
    pytest.importorskip("httpx")
    clients = pytest.importorskip("starlette.testclient")
    client = clients.TestClient(create_app(allowed_hosts("::1")))
    assert client.get("/", headers={"host": asked}).status_code == status


@pytest.mark.parametrize("module", ["starlette.applications", "uvicorn"])
def test_without_the_extra(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["calculator"]) == 2
    assert "pip install 'vramkit[web]'" in capsys.readouterr().err


def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["calculator", "--port", str(port)]) == 2
    assert f"cannot listen on port {port} of 127.0.0.1" in capsys.readouterr().err
