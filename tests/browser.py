"""A headless Chromium driven over its DevTools protocol: enough for a test that clicks and reads.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)


class Page:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._num_sent = 0
        self.problems: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; errors of the page that come meanwhile are noted."""
        self._num_sent += 1
        await self._socket.send_json({"id": self._num_sent, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=20)
            if message.get("id") == self._num_sent:
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"]))

    async def run(self, script: str) -> Any:
        """Return what a JavaScript expression gives."""
        result = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait(self, script: str, timeout_s: float = 20.0) -> Any:
        """Return what an expression gives once it is true."""
        async with asyncio.timeout(timeout_s):
            while not (value := await self.run(script)):
                await asyncio.sleep(0.05)
        return value


@asynccontextmanager
async def open_page(url: str, profile_dir: Path) -> AsyncIterator[Page]:
    """Open a page in a browser of its own."""
    assert CHROMIUM is not None
    browser = subprocess.Popen(
        [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile_dir}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = await _debugging_port(profile_dir)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                target = next(one for one in await response.json(content_type=None) if one["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=url)
                yield page
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


async def _debugging_port(profile_dir: Path) -> int:
    file = profile_dir / "DevToolsActivePort"
    async with asyncio.timeout(30):
        while not (file.exists() and file.read_text().count("\n")):
            await asyncio.sleep(0.05)
    return int(file.read_text().split("\n")[0])
