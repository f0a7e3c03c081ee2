"""Does what a test of a deployment asks of it; nothing but modelkit is needed."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from modelkit import Model, method
from modelkit.engines import _guard
from modelkit.errors import NotFoundError
from modelkit.model import REQUEST

VERSION = "one"
NOTES = Path(os.environ.get("PROBE_NOTES", "/nonexistent"))


def note(text: str) -> None:
    """Leave a line for the test, which cannot see into the replica."""
    if NOTES.is_dir():
        (NOTES / text).touch()


class Probe(Model):
    def load(self) -> None:
        if VERSION == "bad":
            raise RuntimeError("this version cannot start")

    @method
    def version(self) -> str:
        return VERSION

    @method
    async def pid(self) -> int:
        return os.getpid()

    @method
    async def secret(self) -> str:
        return os.environ.get("GREETING", "")

    @method
    async def sleep(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return VERSION

    @method
    async def deadline(self) -> float | None:
        return REQUEST.get().time_remaining_s()

    @method
    async def fail(self, how: str) -> str:
        if how == "meant":
            raise NotFoundError("there is no such thing", cure="ask for another")
        raise RuntimeError("it broke")

    @method
    async def child(self) -> int:
        """Start a process as an engine is started: it is to end with the replica."""
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        self.process = subprocess.Popen(
            [sys.executable, "-IS", _guard.__file__, *command], stdin=subprocess.PIPE, start_new_session=True
        )
        return self.process.pid

    @method
    async def generate(self, prompt: str = "", count: int = 5, pause_s: float = 0.0) -> AsyncIterator[str]:
        try:
            for number in range(count):
                yield f"{prompt}{number} "
                await asyncio.sleep(pause_s)
        finally:
            note(f"generate-{prompt}")

    @method
    def generate_slowly(self, prompt: str = "", count: int = 5, pause_s: float = 0.1) -> Iterator[str]:
        done = 0
        try:
            for done in range(count):
                print(f"at {done}", flush=True)
                yield f"{prompt}{done} "
                time.sleep(pause_s)
        finally:
            note(f"slowly-{prompt}-{'all' if done == count - 1 else 'part'}")

    @method
    async def stream(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line.upper()
