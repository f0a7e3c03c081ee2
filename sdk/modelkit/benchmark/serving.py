"""Serve a model folder for a measurement: `modelkit serve`, as a user would start it, and its end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelkit.errors import EngineError

__all__ = ["Served", "serving"]

_STOP_TIMEOUT_S = 60.0
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is ready."""

    address: str
    http_url: str
    pid: int
    ready_s: float
    # What it warned of as it started.
    warnings: tuple[str, ...] = ()


@asynccontextmanager
async def serving(
    folder: Path, options: Sequence[str], log: Path, on_stage: Callable[[str], None]
) -> AsyncIterator[Served]:
    """Run the server of a folder until the block ends. Raises EngineError, with what its log said, where it does not start.

    `options` are added to the command line, `log` keeps what it prints, and `on_stage` hears its stages.
    """
    read_end, held = os.pipe()  # never written to: the server ends when this process does, however that ends
    try:
        process = await _start(folder, options, log, read_end)
        try:
            served = await _ready(process, log, on_stage)
            assert process.stdout is not None
            drain = asyncio.create_task(process.stdout.read())  # what a model prints must not fill the pipe
            yield served
        finally:
            await _stop(process)
        await drain
    finally:
        os.close(read_end)
        os.close(held)


async def _start(
    folder: Path, options: Sequence[str], log: Path, read_end: int
) -> asyncio.subprocess.Process:
    from modelkit.server.reload import WATCHER_VARIABLE

    command = [sys.executable, "-m", "modelkit", "serve", str(folder)]
    command += ["--port", "0", "--http-port", "0", "--json", *options]
    with log.open("wb") as stderr:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            # Ctrl-C is for the one who measures; the server is ended when the client has let go of it.
            start_new_session=True,
            pass_fds=(read_end,),
            env={**os.environ, WATCHER_VARIABLE: str(read_end)},
        )


async def _ready(process: asyncio.subprocess.Process, log: Path, on_stage: Callable[[str], None]) -> Served:
    assert process.stdout is not None
    stages = asyncio.create_task(_tell_stages(log, on_stage))
    try:
        lines = []
        while line := await process.stdout.readline():
            lines.append(line)
            with suppress(ValueError, KeyError, TypeError):
                ready = json.loads(line)
                return Served(
                    ready["address"],
                    ready["http_url"],
                    process.pid,
                    ready["ready_s"],
                    tuple(map(str, ready["warnings"])),
                )
    finally:
        stages.cancel()
    code = await process.wait()
    said = "\n".join(_lines(log)[-_TAIL_LINES:])
    raise EngineError(
        f"the server did not start (exit code {code}):\n{said}",
        cure=f"its whole log is in {log}; `modelkit serve` starts it alone",
    )


async def _tell_stages(log: Path, on_stage: Callable[[str], None]) -> None:
    """Pass on what the server says of its start: it prints a line a stage."""
    shown = ""
    while True:
        await asyncio.sleep(0.5)
        stages = [line.rstrip(".") for line in _lines(log) if line.endswith("...")]
        if stages and stages[-1] != shown:
            shown = stages[-1]
            on_stage(shown)


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
