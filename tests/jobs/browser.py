"""A headless Chromium, driven by real keys over its own debugging protocol. Tests that need it are skipped where none is."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """One page: :meth:`run` evaluates JavaScript, :meth:`press` presses a key. Console errors and requests are kept."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; returns its result."""
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=30)).data)
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(parameters["exceptionDetails"]["text"])

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.run("window.left = true")  # the page before is complete, too
        await self.call("Page.navigate", url=url)
        for _ in range(100):
            if await self.run("!window.left && document.readyState === 'complete'"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the page did not load")

    async def run(self, expression: str) -> Any:
        """The value of an expression."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press(self, key: str) -> None:
        """Press and release a key as a keyboard does."""
        text = {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def size(self, wide: int, high: int) -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=wide < 500)

    async def shot(self, path: Path) -> None:
        import base64

        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


def browse(profile: Path, visit: Callable[[Page], Awaitable[None]]) -> None:
    """Start a browser with a profile of its own, and let ``visit`` do what it does with one page."""
    aiohttp = pytest.importorskip("aiohttp")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")

    async def session(address: str) -> None:
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            await visit(Page(socket))

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
    with subprocess.Popen(
        [program, *options, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            port = re.search(r"ws://[^:]+:(\d+)/", line)
            assert port is not None
            asyncio.run(session(asyncio.run(_page_address(aiohttp, int(port[1])))))
        finally:
            process.kill()


async def _page_address(aiohttp: Any, port: int) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/json") as answer:
        pages = [one for one in await answer.json(content_type=None) if one["type"] == "page"]
        return str(pages[0]["webSocketDebuggerUrl"])
