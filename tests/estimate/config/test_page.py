"""The calculator's page, asked as a browser asks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from vramkit.errors import InvalidArgumentError, MissingExtraError
from vramkit.estimate.config import _command, _page

testclient = pytest.importorskip("starlette.testclient")


@pytest.fixture
def client() -> Iterator[Any]:
    with testclient.TestClient(_page.create_app(), base_url="http://localhost") as made:
        yield made


def wanted(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "serve",
        "model": "llama-3.1-8b",
        "target": "h100",
        "budget": None,
        "options": {"context": 8192, "batch": 4},
        **changes,
    }


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    texts = [client.get(path) for path in ("/", "/page.css", "/page.js")]
    for text in texts:
        assert text.status_code == 200
        assert text.headers["content-security-policy"].startswith("default-src 'self'")
        assert not re.findall(r"https?:|url\(|@import|//[a-z]+\.", text.text)
    kinds = [text.headers["content-type"].partition(";")[0] for text in texts]
    assert kinds == ["text/html", "text/css", "text/javascript"]
    assert 'name="viewport"' in texts[0].text


def test_every_field_of_the_form_is_an_option(client: Any) -> None:
    page = client.get("/").text
    names = set(re.findall(r'name="(\w+)"', page)) - {"viewport", "model", "own", "mode", "target"}
    known = {*_command._SERVE, *_command._TRAIN, *_command._RANKS, *_command._SWITCHES, "budget"}
    assert names <= known
    assert len(names) > 20


def test_labels_belong_to_their_fields(client: Any) -> None:
    labels = re.findall(r"<label.*?</label>", client.get("/").text, re.DOTALL)
    assert len(labels) > 30
    # A label names the first of these in it.
    first = [re.findall(r"<(input|select|textarea|output|button|meter)", each) for each in labels]
    assert [each for each in first if each not in (["input"], ["select"], ["textarea"])] == []


def test_what_can_be_chosen(client: Any) -> None:
    choices = client.get("/api/choices").json()
    assert {"name": "phi-4", "title": "Phi-4"} in choices["models"]
    assert choices["targets"][0]["name"] == "h100"
    assert {"checkpoint", "awq", "Q4_K_M"} <= set(choices["weights"])
    assert "mixed" in choices["policies"]
    assert "muon" in choices["optimizers"]


def test_an_estimate_of_serving(client: Any) -> None:
    answer = client.post("/api/estimate", json=wanted()).json()
    assert answer["estimate"]["fits"] is True
    assert answer["parameters"]["total"] == 8_030_261_248
    amounts = {each["name"]: each["size_bytes"] for each in answer["estimate"]["amounts"]}
    assert amounts["KV cache"] == 4 * 8192 * 131_072
    assert answer["estimate"]["usable_bytes"] == int(85_017_755_648 * 0.95)
    assert answer["verdict"] == "fits into 75.2 GiB, 95 % of 79.2 GiB"
    assert ["cache for a further token", "131,072 bytes"] in answer["answers"]
    assert answer["advice"][0]["saved_bytes"] > 0


def test_an_estimate_of_training_with_a_budget(client: Any) -> None:
    options = {"zero": 3, "data": 8, "recompute": "full", "no_flash": True}
    asked = wanted(mode="train", options=options, budget="24GiB")
    answer = client.post("/api/estimate", json=asked).json()
    assert answer["estimate"]["fits"] is False
    assert answer["estimate"]["usable_bytes"] == 24 << 30
    assert answer["verdict"] == "does not fit into 24.0 GiB"
    assert answer["estimate"]["options"]["flash"] is False


@pytest.mark.parametrize(("budget", "part"), [("24GiB", 1.0), ("l4", 0.95)])
def test_a_budget_while_serving_is_a_size_or_a_part_of_a_gpu(
    client: Any, budget: str, part: float
) -> None:
    answer = client.post("/api/estimate", json=wanted(budget=budget)).json()["estimate"]
    assert answer["options"]["utilisation"] == part
    assert answer["usable_bytes"] == int(answer["budget_bytes"] * part)
    assert answer["fits"] is (answer["largest_batch"] >= 4)


def test_a_configuration_of_ones_own(client: Any) -> None:
    own = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    answer = client.post("/api/estimate", json=wanted(own=own)).json()
    assert answer["kinds"] == {"MHA": 2}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": "/etc/hostname"}, "the catalogue has no model '/etc/hostname'"),
        ({"model": "nobody/nothing"}, "the catalogue has no model 'nobody/nothing'"),
        ({"model": None}, "the catalogue has no model None"),
        ({"mode": "guess"}, "the request needs a mode, a target and options"),
        ({"target": "voodoo2"}, "no GPU named 'voodoo2'"),
        ({"budget": "many"}, "no GPU named 'many'"),
        ({"options": {"context": "8"}}, "--context cannot be '8'"),
        ({"options": {"tensor": 3}}, "3 ranks cannot split the 32 heads"),
        ({"options": {"zero": 1}}, "--zero cannot be used with --mode serve"),
        ({"own": {"model_type": "rwkv7"}}, "models of type 'rwkv7' cannot be read"),
    ],
)
def test_what_cannot_be_estimated(client: Any, changes: dict[str, Any], text: str) -> None:
    answer = client.post("/api/estimate", json=wanted(**changes))
    assert answer.status_code == 422
    assert text in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "the request is not valid JSON"),
        (b"[" * 200_000, "the request is not valid JSON"),
        (b"[]", "the request is not a JSON object"),
        (b" " * (2 << 20), "larger than any configuration"),
    ],
)
def test_requests_that_are_none(client: Any, content: bytes, text: str) -> None:
    answer = client.post("/api/estimate", content=content)
    assert answer.status_code == 422
    assert text in answer.json()["error"]


def test_other_names_are_refused(client: Any) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "127.0.0.1:8800"}).status_code == 200


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vramkit\[web\]'"):
        _page.create_app()


def test_files_of_the_machine_are_never_read() -> None:
    with pytest.raises(InvalidArgumentError, match="the catalogue has no model"):
        _page.answer_of(wanted(model="./config.json"))
    for name in ("target", "budget"):
        with pytest.raises(InvalidArgumentError, match="is a file, and the page reads no files"):
            _page.answer_of(wanted(**{name: "/tmp/gpu.json"}))
