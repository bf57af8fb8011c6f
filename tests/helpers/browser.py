"""Drives a Chromium through its DevTools protocol, over a pair of pipes: no package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers and root have none, and only the project's own page is opened
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
    "--lang=en",
)
# The browser reads commands from descriptor 3 and answers on 4.
_SHELL = 'exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null'
Message = dict[str, Any]


def find_browser() -> str | None:
    """Return the command of a browser: what VRAMKIT_CHROMIUM says, or else one on the PATH."""
    given = os.environ.get("VRAMKIT_CHROMIUM")
    if given:
        found = shutil.which(given)
        assert found, f"VRAMKIT_CHROMIUM={given} is no program"
        return found
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """A running browser with a profile of its own."""

    def __init__(self, command: str, folder: Path, *, limit_s: float = 60.0) -> None:
        self._limit_s = limit_s
        self._count = 0
        self._text = b""
        self._pages: dict[str, Page] = {}
        self._log = (folder / "browser.log").open("wb")
        self._process = subprocess.Popen(
            ["sh", "-c", _SHELL, "sh", command, *_OPTIONS, f"--user-data-dir={folder / 'profile'}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    stream.close()

    def open_page(self, width: int, height: int, *, phone: bool = False) -> Page:
        """Open an empty page of a size in CSS pixels."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height, phone=phone)
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> Message:
        """Send a command, wait for its answer and hand the pages the events before it."""
        self._count += 1
        message: Message = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        deadline = time.monotonic() + self._limit_s
        while (answer := self._receive(deadline, method)).get("id") != self._count:
            if (page := self._pages.get(answer.get("sessionId", ""))) is not None:
                page.note(answer["method"], answer["params"])
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Message = answer["result"]
        return result

    def _receive(self, deadline: float, method: str) -> Message:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\0" not in self._text:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([descriptor], [], [], left_s)
            assert ready, f"no answer to {method} within {self._limit_s:.0f} s"
            piece = os.read(descriptor, 1 << 20)
            assert piece, f"the browser ended during {method}; see {self._log.name}"
            self._text += piece
        first, _, self._text = self._text.partition(b"\0")
        message: Message = json.loads(first)
        return message


class Page:
    """One page, what it asked for, and what its console says."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requested: list[str] = []
        self.complaints: list[str] = []

    def send(self, method: str, **parameters: Any) -> Message:
        """Send a command to this page."""
        return self._browser.send(method, self._session, **parameters)

    def note(self, method: str, parameters: Message) -> None:
        """Keep what an event says of requests and errors."""
        if method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(said)
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(str([each.get("value") for each in parameters["args"]]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the size of the view in CSS pixels; a phone also has touch and no scroll bars."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def open(self, address: str) -> None:
        """Go to an address."""
        failure = self.send("Page.navigate", url=address).get("errorText")
        assert not failure, f"{address}: {failure}"

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, as if the user had just clicked."""
        found = self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, *, limit_s: float = 30.0) -> None:
        """Wait until a JavaScript expression holds."""
        deadline = time.monotonic() + limit_s
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression} did not hold within {limit_s:.0f} s"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key that gives no character, such as ArrowRight."""
        codes = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
            )

    def click(self, selector: str) -> None:
        """Click on the middle of an element, with the mouse; it must be on top there."""
        x, y, top = self.evaluate(
            f"""(() => {{
              const found = document.querySelector({json.dumps(selector)});
              found.scrollIntoView({{block: "center"}});
              const box = found.getBoundingClientRect();
              const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
              return [x, y, found.contains(document.elementFromPoint(x, y))];
            }})()"""
        )
        assert top, f"{selector} is covered by another element"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what the view shows."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
