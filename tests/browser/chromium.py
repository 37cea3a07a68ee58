"""A page in headless Chromium, driven over the DevTools protocol: what it asks for, logs and shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 90  # seconds; a loaded machine is slow
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-default-apps", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page. ``requests``: every address it asked for. ``messages``: whatever it logged, and exceptions."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._loaded = False

    async def call(self, method: str, **params: Any) -> Mapping[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        return await self._until(lambda message: message.get("id") == self._number, method)

    async def open(self, path: Path, *, width: int = 1280, height: int = 900) -> None:
        for domain in ("Network", "Log", "Runtime", "Page"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Page.navigate", url=path.resolve().as_uri())
        if not self._loaded:
            await self._until(lambda message: message.get("method") == "Page.loadEventFired", "load")

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer["result"], answer
        return answer["result"]["result"].get("value")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    async def pdf(self) -> bytes:
        """The page on paper: A4 as its own style says, without header and footer."""
        import base64

        answer = await self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(answer["result"]["data"])

    async def _until(self, fits: Any, waited_for: str) -> Mapping[str, Any]:
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), PATIENCE)
            self._note(message)
            if fits(message):
                assert "error" not in message, (waited_for, message)
                return dict(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        self._loaded |= method == "Page.loadEventFired"
        if method == "Network.requestWillBeSent":
            self.requests.append(str(params["request"]["url"]))
        elif method == "Log.entryAdded":
            self.messages.append(str(params["entry"]["text"]))
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(str(params))


class Browser:
    """A browser of its own, with a profile of its own, ended with the block: ``with Browser() as browser``."""

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        command = [find_chromium() or "", *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        environment = {**os.environ, "HOME": self._profile.name}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(rb"DevTools listening on ws://([\d.]+:\d+)/", line):
                self.address = found[1].decode()
                return self
        raise AssertionError("Chromium ended before it listened")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._profile.cleanup()

    def run(self, story: Any) -> Any:
        """Run ``story(page)``, a coroutine function, on a new page."""
        return asyncio.run(self._run(story))

    async def _run(self, story: Any) -> Any:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://{self.address}/json/new?about:blank") as answer:
                target = await answer.json()
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await story(Page(socket))
