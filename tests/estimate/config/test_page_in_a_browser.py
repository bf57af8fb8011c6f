"""``vramkit calculator`` in a headless Chromium, in the view of a desktop and of a phone."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from helpers.browser import Browser, Page, find_browser

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

_COMMAND = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _COMMAND is None, reason="no Chromium on the PATH or named by VRAMKIT_CHROMIUM"
    ),
]

_READY = "document.getElementById('result')?.ariaBusy === 'false'"
_SHOWN = """(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const texts = (selector) => all(selector).map((each) => each.innerText);
  const box = (each) => each.getBoundingClientRect();
  const seen = (selector) => all(selector).filter((each) => box(each).height > 0);
  const [bar, limit] = [box(all("#bar")[0]), all("#bar i")[0]];
  return {
    verdict: texts("#verdict")[0], kind: all("#verdict")[0].className, rank: texts("#rank")[0],
    error: seen("#error").map((each) => each.innerText).join(),
    unknown: seen("#unknown").map((each) => each.innerText).join(),
    found: seen("#found").length === 1,
    amounts: texts("#amounts tbody tr"), advice: texts("#advice tbody tr"),
    bar: all("#bar span").map((each) => box(each).width / bar.width),
    limit: limit ? (box(limit).right - bar.left) / bar.width : null,
    modes: seen("fieldset[data-mode]").map((each) => each.dataset.mode),
    address: location.href,
  };
})()"""
# The margins are 16 pixels; what a select, a bar or a closed box holds is clipped.
_TOO_WIDE = """[...document.querySelectorAll("body *:not(option)")].filter((each) => {
  const {left, right, width} = each.getBoundingClientRect();
  return width && (right > document.documentElement.clientWidth - 15 || left < 15);
}).map((each) => `${each.tagName} ${each.id} ${each.innerText}`.slice(0, 60))"""
# Columns so narrow that a word is broken are ugly, although nothing is too wide.
_BROKEN_WORDS = """[...document.querySelectorAll("th, td, dt, dd, label, h2, p")].flatMap((it) => {
  const found = [];
  const texts = document.createTreeWalker(it, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[\\w.,]+/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      if (range.getClientRects().length > 1) found.push(word[0]);
    }
  }
  return found;
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert _COMMAND is not None
    with Browser(_COMMAND, tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the command serves the page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vramkit", "calculator", "--port", str(port)]
    with log.open("wb") as written:
        server = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        _wait_for_port(port, server, log.read_text)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_port(port: int, server: subprocess.Popen[bytes], told: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert server.poll() is None, told()
            assert time.monotonic() < deadline, told()
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def page(browser: Browser, base: str) -> Iterator[Page]:
    """A desktop's page, which afterwards must have asked only this server, and complained not."""
    made = browser.open_page(1280, 900)
    yield made
    check_quiet(made, base)


@pytest.fixture
def phone(browser: Browser, base: str) -> Iterator[Page]:
    """A phone's page, with the same demands."""
    made = browser.open_page(390, 844, phone=True)
    yield made
    check_quiet(made, base)


def check_quiet(page: Page, base: str) -> None:
    page.evaluate("0")
    assert page.requested
    assert [url for url in page.requested if not url.startswith((base, "data:,"))] == []
    # The server answers 422 where an estimate is refused, which a console names as well.
    assert [said for said in page.complaints if "status of 422" not in said] == []


def opened(page: Page, address: str, **state: str) -> dict[str, Any]:
    """What the page shows at an address."""
    page.open(f"{address}?{urlencode(state)}" if state else address)
    return settled(page)


def settled(page: Page) -> dict[str, Any]:
    page.wait_for(_READY)
    found: dict[str, Any] = page.evaluate(_SHOWN)
    return found


def chosen(page: Page, name: str, value: str) -> dict[str, Any]:
    """What the page shows after a value was chosen or typed."""
    field = f"document.getElementById('form').elements[{json.dumps(name)}]"
    page.evaluate(
        f"{field}.value = {json.dumps(value)}; "
        f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    return settled(page)


def check_bar(shown: dict[str, Any], total: float, budget: float) -> None:
    """The pieces' widths add up to the total, and the line stands at the budget."""
    whole = max(total, budget)
    assert len(shown["bar"]) == len(shown["amounts"]) > 5
    assert sum(shown["bar"]) == pytest.approx(total / whole, abs=0.01)
    assert shown["limit"] == pytest.approx(budget / whole, abs=0.01)


def gib(text: str) -> float:
    """The first size of a text, in GiB."""
    found = re.search(r"([\d.]+) ([MGT])iB", text)
    assert found, text
    return float(found[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[found[2]]


def test_it_opens_with_an_estimate_and_advice(page: Page, base: str) -> None:
    shown = opened(page, base)
    assert (shown["error"], shown["unknown"], shown["kind"]) == ("", "", "good")
    verdict = r"[\d.]+ GiB fits into 75\.2 GiB, 95 % of 79\.2 GiB \(h100\)"
    assert re.fullmatch(verdict, shown["verdict"])
    assert shown["modes"] == ["serve"]
    check_bar(shown, gib(shown["verdict"]), 75.2)
    assert len(shown["advice"]) > 3
    assert any("fp8" in each and "yes" in each for each in shown["advice"])


def test_models_and_gpus_change_the_figures_and_the_bar(page: Page, base: str) -> None:
    first = opened(page, base)
    larger = chosen(page, "model", "llama-3.1-70b")
    assert gib(larger["verdict"]) > 100 > gib(first["verdict"])
    assert larger["rank"].startswith("llama-3.1-70b, 70,553,706,496 parameters")
    assert larger["kind"] == "bad"
    check_bar(larger, gib(larger["verdict"]), 75.2)
    other = chosen(page, "target", "h200")
    assert "h200" in other["verdict"]
    assert other["limit"] > larger["limit"]
    smaller = chosen(page, "budget", "24GiB")
    assert smaller["verdict"].endswith("does not fit into 24.0 GiB")
    check_bar(smaller, gib(smaller["verdict"]), 24)


def test_a_slider_moves_by_the_keyboard(page: Page, base: str) -> None:
    first = opened(page, base)
    page.evaluate("document.querySelector('[name=context]').focus()")
    page.press("ArrowRight")
    page.wait_for("location.search.includes('context=14')")
    shown = settled(page)
    cache = [next(each for each in it["amounts"] if "KV" in each) for it in (first, shown)]
    assert gib(cache[1]) == pytest.approx(2 * gib(cache[0]))
    slider = "document.querySelector('[name=context]')"
    assert page.evaluate(f"{slider}.ariaValueText") == "16,384"
    assert page.evaluate(f"{slider}.labels[0].textContent") == "Context 16,384"


def test_every_field_has_a_label(page: Page, base: str) -> None:
    opened(page, base)
    fields = "[...document.querySelectorAll('input, select, textarea')]"
    assert page.evaluate(f"{fields}.length") > 30
    assert (
        page.evaluate(f"{fields}.filter((it) => it.labels.length !== 1).map((it) => it.name)") == []
    )


def test_training_is_chosen_with_the_mouse(page: Page, base: str) -> None:
    opened(page, base)
    page.click("[name=mode][value=train]")
    page.wait_for("location.search.includes('mode=train')")
    shown = settled(page)
    assert shown["modes"] == ["train"]
    assert any("gradients" in each for each in shown["amounts"])
    assert any("LoRA" in each for each in shown["advice"])
    page.click("[name=free_gradients]")
    page.wait_for("location.search.includes('free_gradients=1')")
    assert gib(settled(page)["verdict"]) < gib(shown["verdict"])


def test_the_copied_link_leads_back_in_another_page(
    browser: Browser, page: Page, base: str
) -> None:
    browser.send(
        "Browser.grantPermissions",
        origin=base,
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
    )
    opened(page, base, mode="train", model="phi-4", zero="3")
    chosen(page, "data", "4")
    own = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128}
    own |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
    for name, value in (("budget", "40GiB"), ("own", json.dumps(own, indent=2))):
        state = chosen(page, name, value)
        page.send("Page.bringToFront")
        page.click("#copy")
        page.wait_for("document.getElementById('copied').value === 'Copied'")
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == state["address"]
        again = browser.open_page(1280, 900)
        assert opened(again, link) == state
        check_quiet(again, base)


def test_a_link_that_cannot_be_copied_is_told(page: Page, base: str) -> None:
    opened(page, base)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click("#copy")
    page.wait_for("document.getElementById('copied').value.includes('from the address bar')")


def test_parts_of_a_link_that_are_not_known_are_told(page: Page, base: str) -> None:
    state = {"mode": "guess", "target": "voodoo2", "context": "8192", "batch": "2", "speed": "9"}
    shown = opened(page, base, **state)
    assert shown["unknown"] == (
        "The link has parts that this page does not know, and leaves out: "
        "mode=guess, target=voodoo2, context=8192, speed=9"
    )
    assert (shown["error"], shown["modes"]) == ("", ["serve"])
    assert "batch=2" in shown["address"]
    assert "context=13" in shown["address"]
    assert chosen(page, "batch", "3")["unknown"] == ""


def test_a_refusal_is_shown_and_mended(page: Page, base: str) -> None:
    opened(page, base)
    refused = chosen(page, "tensor", "6")
    assert "64 ranks cannot split the 32 heads" in refused["error"]
    assert not refused["found"]
    invalid = chosen(page, "own", "{")
    assert invalid["error"].startswith("Your configuration is not valid JSON")
    chosen(page, "own", "")
    mended = chosen(page, "tensor", "1")
    assert (mended["error"], mended["found"]) == ("", True)


@pytest.mark.parametrize("width", [320, 360, 390])
@pytest.mark.parametrize("mode", ["serve", "train"])
def test_a_phone_needs_no_sideways_scrolling(phone: Page, base: str, mode: str, width: int) -> None:
    phone.resize(width, 844, phone=True)
    shown = opened(phone, base, mode=mode, model="deepseek-v3", data="5", zero="3")
    assert shown["modes"] == [mode]
    assert phone.evaluate("document.documentElement.scrollWidth") == width
    assert phone.evaluate(_TOO_WIDE) == []
    assert phone.evaluate(_BROKEN_WORDS) == []


def test_a_desktop_breaks_no_words(page: Page, base: str) -> None:
    opened(page, base, mode="train", model="llama-3.1-70b")
    assert page.evaluate(_TOO_WIDE) == []
    assert page.evaluate(_BROKEN_WORDS) == []


def test_a_phone_shows_the_result_beside_every_field(phone: Page, base: str) -> None:
    opened(phone, base)
    for selector in ("[name=model]", "[name=batch]", "#amounts", "#copy"):
        phone.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        top, bottom = phone.evaluate(
            "(({top, bottom}) => [top, bottom])"
            "(document.getElementById('bar').getBoundingClientRect())"
        )
        assert 0 <= top < bottom <= 844, selector


def test_the_guards_see(browser: Browser, base: str) -> None:
    page = browser.open_page(390, 844, phone=True)
    opened(page, base)
    page.evaluate("fetch('http://elsewhere.invalid/').catch(() => 0)")
    page.evaluate("setTimeout(() => { throw new Error('a fault of the page') }, 0); 0")
    page.wait_for("true")
    with pytest.raises(AssertionError):
        check_quiet(page, base)
    assert any("Content Security Policy" in said for said in page.complaints)
    page.evaluate("document.getElementById('rank').style.width = '400px'; 0")
    assert page.evaluate(_TOO_WIDE) != []
    page.evaluate(
        "document.getElementById('rank').style.cssText = 'width: 1em; overflow-wrap: anywhere'; 0"
    )
    assert "parameters" in page.evaluate(_BROKEN_WORDS)
