"""Headless Chromium through the DevTools protocol, over a pipe: no driver and no package needed.

Protocol: https://chromedevtools.github.io/devtools-protocol/. With ``--remote-debugging-pipe``
Chromium reads commands from file descriptor 3 and writes answers and events to 4, each a JSON
object that ends with a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# the descriptors have to be 3 and 4 in the browser, whatever they are here
LAUNCH = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); a, b = os.dup(r), os.dup(w);"
    "os.dup2(a, 100); os.dup2(b, 101); os.dup2(100, 3); os.dup2(101, 4);"
    "os.execvp(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The path of a Chromium, None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One browser with one tab.

    Attributes:
        events: what the browser reported since the last `open`, as (method, parameters).
    """

    def __init__(self, program: str, profile: Path) -> None:
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio",
            "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-extensions",
            "--force-color-profile=srgb", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(read), str(write), program, *options, "about:blank"],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command and gives its result."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        message = json.dumps(command).encode() + b"\0"
        while message:
            message = message[os.write(self._to, message) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, seconds: float = 60) -> dict[str, Any]:
        """The next answer; an event is also noted."""
        while b"\0" not in self._pending:
            if not select.select([self._from], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._pending += part
        raw, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(raw)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer

    def open(self, path: Path, ready: str = "document.documentElement?.dataset.ready") -> None:
        """Loads a file and waits until the expression is true."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + 30
        while not self.run(ready):
            assert time.monotonic() < until, f"{path} is not ready: {self.complaints()}"
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as from JSON."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def viewport(self, width: int, height: int, scale: float = 1, *, phone: bool = False) -> None:
        """Size of the page in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """What prefers-color-scheme is: light or dark."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": name},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )

    def click(self, selector: str) -> None:
        """A click with the mouse in the middle of an element, which is scrolled to first."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=box[0], y=box[1], button="left", clickCount=1,
            )  # fmt: skip

    def press(self, *keys: str) -> None:
        """Key after key, by the names of KeyboardEvent.key; "Shift+Tab" holds Shift."""
        for name in keys:
            shift, key = name.startswith("Shift+"), name.removeprefix("Shift+")
            codes = {
                "Tab": 9, "Enter": 13, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
                "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
            }  # fmt: skip
            text = {"Enter": "\r", " ": " "}.get(key, "")  # what makes a key press a button
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind, key=key, code=key, modifiers=8 * shift,
                    windowsVirtualKeyCode=codes[key], text=text if kind == "keyDown" else "",
                )  # fmt: skip

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of what is in sight, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def complaints(self) -> list[str]:
        """Console messages, exceptions and refusals since the last `open`."""
        told = []
        for method, data in self.events:
            if method == "Runtime.exceptionThrown":
                told.append(str(data["exceptionDetails"]))
            elif method == "Log.entryAdded":
                told.append(data["entry"]["text"])
            elif method == "Runtime.consoleAPICalled":
                told.append(str(data["args"]))
        return told

    def requests(self) -> list[str]:
        """URLs that were asked for since the last `open`, except data:, which holds its answer."""
        asked = [d["request"]["url"] for m, d in self.events if m == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]
