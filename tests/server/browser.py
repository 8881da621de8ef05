"""A headless Chromium with a real keyboard, a screen of any size, and light or dark; driven through its own pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOUND = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}


class Page:
    """One tab."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._from, self._rest, self._count = to, answers, b"", 0
        self.events: list[dict[str, Any]] = []  # what the browser says unasked, such as of a console message
        self._session: str | None = None
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.do("Page.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                new = os.read(self._from, 1 << 20)
                assert new, "the browser has gone"
                self._rest += new
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    def open(self, address: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Go to an address on a screen."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def see(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Until it holds."""
        end = time.monotonic() + seconds
        while not self.see(expression):
            assert time.monotonic() < end, f"{expression} never held"
            time.sleep(0.02)

    def press(self, key: str, *, control: bool = False) -> None:
        """A key, as somebody presses it."""
        text = {"Enter": "\r", " ": " "}.get(key, "") if not control else ""
        about = {"key": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 2 if control else 0}
        self.do("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.do("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.do("Input.insertText", text=text)

    def tab_to(self, selector: str) -> None:
        """Press Tab until an element has the focus; everything can be reached so."""
        for _ in range(150):
            if self.see(f"document.activeElement.matches({selector!r})"):
                return
            self.press("Tab")
        raise AssertionError(f"{selector} can't be reached with Tab")

    def shot(self, file: Path) -> None:
        """A picture of the whole page."""
        picture = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with nothing in it."""
    assert FOUND is not None
    theirs_in, to = os.pipe()
    answers, theirs_out = os.pipe()
    command = [FOUND, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    # It reads commands from descriptor 3 and answers at 4.
    shell = f'exec "$@" --remote-debugging-pipe 3<&{theirs_in} 4>&{theirs_out}'
    with subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(to, answers)
        finally:
            os.close(to)
            os.close(answers)
            process.terminate()
