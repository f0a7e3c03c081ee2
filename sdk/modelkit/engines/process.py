"""One supervisor for every engine that runs as a server of its own: start, readiness, log, death, restart, stop.

The engine is a child process on the loopback interface, in a process group that ends with modelkit (`_guard`). It is
ready when its health route answers and a probe has got a real token: engines exist whose health says yes while every
request fails. What it prints is kept in a file, and the end of it in memory for error messages.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import aiohttp

from modelkit.engines.causes import find_cause
from modelkit.errors import EngineError

__all__ = ["EngineProcess", "Launch", "Stage"]

_log = logging.getLogger("modelkit.engine")

_TAIL_LINES = 400
_SHOWN_LINES = 15
_POLL_S = 0.1
_STOP_TIMEOUT_S = 15.0
_HEALTH_TIMEOUT_S = 5.0
# A restart waits 1, 2, 4, ... seconds; an engine that has run this long has earned a clean slate.
_MAX_RESTARTS = 5
_MAX_BACKOFF_S = 30.0
_STABLE_S = 600.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A phase of an engine's start, recognised by what it prints."""

    name: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one engine's server is started: on which port, and how its health is asked for."""

    command: Sequence[str]
    port: int
    health_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Stage] = ()

    @property
    def url(self) -> str:
        """The server's base URL."""
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """Return a port that is free now on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EngineProcess:
    """Keeps one engine's server running from `start` to `stop`.

    `make_launch` is asked for a Launch with a fresh port each time. `probe` gets the base URL and returns when the
    engine has produced a token. `on_stage` hears the name of each phase of a start; `on_health` hears (False, reason)
    when the engine has died and (True, "") when it is back.
    """

    def __init__(
        self,
        name: str,
        make_launch: Callable[[int], Launch],
        *,
        probe: Callable[[str], Awaitable[None]],
        start_timeout_s: float,
        log_path: Path,
        on_stage: Callable[[str], None] = lambda _: None,
        on_health: Callable[[bool, str], None] = lambda _, __: None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.url = ""
        self._make_launch = make_launch
        self._probe = probe
        self._start_timeout_s = start_timeout_s
        self._on_stage = on_stage
        self._on_health = on_health
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.num_restarts = 0

    @property
    def is_running(self) -> bool:
        """Whether the process is there; ready or not."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the engine and return when it is ready. Raises EngineError with the cause and the cure."""
        try:
            await self._start_once()
        except BaseException:
            await self._end_process()
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """End the engine with everything it started."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._end_process()

    # ------------------------------------------------------------------------------------------------------- starting

    async def _start_once(self) -> None:
        launch = self._make_launch(free_port())
        self.url = launch.url
        self._tail.clear()
        started = time.monotonic()
        self._process = await self._spawn(launch)
        self._reader = asyncio.create_task(self._read_log(self._process, launch.stages))
        deadline = started + self._start_timeout_s
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._start_timeout_s):
                await self._wait_ready(launch)
        except TimeoutError as error:
            raise self._failure(
                f"{self.name} was not ready after {self._start_timeout_s:.0f} s",
                cure="raise engine.start_timeout in config.yaml, or look into the log",
            ) from error
        _log.info("%s is ready after %.1f s", self.name, time.monotonic() - started, extra={"deadline": deadline})

    async def _spawn(self, launch: Launch) -> asyncio.subprocess.Process:
        guard = Path(__file__).with_name("_guard.py")
        environment = {**os.environ, **launch.environment, "PYTHONUNBUFFERED": "1"}
        _log.debug("starting %s: %s", self.name, " ".join(launch.command))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(guard), *launch.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            limit=2**20,
        )

    async def _wait_ready(self, launch: Launch) -> None:
        """Wait for health, then for a token; an engine that ends meanwhile ends the wait."""
        assert self._process is not None
        dead = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._poll_until_ready(launch))
        try:
            await asyncio.wait([dead, ready], return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not dead.done():
                ready.result()
                return
            await self._finish_log()
            raise self._failure(f"{self.name} ended with exit code {dead.result()} before it was ready")
        finally:
            for task in (dead, ready):
                task.cancel()
            await asyncio.wait([dead, ready])

    async def _poll_until_ready(self, launch: Launch) -> None:
        timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not await _is_healthy(session, launch.url + launch.health_path):
                await asyncio.sleep(_POLL_S)
        self._on_stage("answering a first request")
        await self._probe(launch.url)

    # ------------------------------------------------------------------------------------------------------ the log

    async def _read_log(self, process: asyncio.subprocess.Process, stages: Sequence[Stage]) -> None:
        """Keep what the engine prints, and tell the stages of its start."""
        assert process.stdout is not None
        current = ""
        with self._open_log() as log:
            while line := await _read_line(process.stdout):
                log.write(line + "\n")
                log.flush()
                self._tail.append(line)
                _log.debug("%s", line)
                for stage in stages:
                    if stage.name != current and stage.pattern.search(line):
                        current = stage.name
                        self._on_stage(current)

    def _open_log(self) -> IO[str]:
        """Open the log for a new run; that of the run before stays beside it."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".previous.log"))
        return self.log_path.open("w", encoding="utf-8", errors="replace")

    async def _finish_log(self) -> None:
        """Wait until what the dead engine printed has been read."""
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=2.0)

    def _failure(self, message: str, cure: str = "") -> EngineError:
        """Say what went wrong: the well-known cause if the log names one, and the last lines of the log."""
        lines = list(self._tail)
        cause = find_cause(lines)
        if cause is not None:
            message, cure = f"{message}: {cause.message}", cause.cure
        shown = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
        return EngineError(f"{message}{shown}", cure=f"{cure or 'look into the log'} (the whole log: {self.log_path})")

    # ------------------------------------------------------------------------------------------------ life and death

    async def _watch(self) -> None:
        """Wait for the engine's death; start it again with a growing pause, a few times."""
        while True:
            began = time.monotonic()
            assert self._process is not None
            code = await self._process.wait()
            await self._finish_log()
            if time.monotonic() - began > _STABLE_S:
                self.num_restarts = 0
            self._on_health(False, f"{self.name} ended with exit code {code}")
            _log.error("%s", self._failure(f"{self.name} ended with exit code {code}").message)
            if not await self._restart():
                return
            self._on_health(True, "")

    async def _restart(self) -> bool:
        """Try to bring the engine back; False when the limit is reached."""
        while self.num_restarts < _MAX_RESTARTS:
            pause_s = min(2.0**self.num_restarts, _MAX_BACKOFF_S)
            self.num_restarts += 1
            _log.warning("starting %s again in %.0f s (%d of %d)", self.name, pause_s, self.num_restarts, _MAX_RESTARTS)
            await asyncio.sleep(pause_s)
            await self._end_process()
            try:
                await self._start_once()
            except EngineError as error:
                _log.error("%s", error.message)
                continue
            return True
        self._on_health(False, f"{self.name} died {self.num_restarts} times and is not started again")
        return False

    async def _end_process(self) -> None:
        """Close the guard's pipe, which ends everything behind it, and wait."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self._finish_log()


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200  # noqa: PLR2004 - HTTP's own number
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def _read_line(stream: asyncio.StreamReader) -> str:
    """Return the next line that is not empty; "" at the end. Progress bars redraw with \\r: their last state counts."""
    while True:
        try:
            raw = await stream.readline()
        except ValueError:  # a line over the reader's limit: skipped
            continue
        if not raw:
            return ""
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2].strip("\x00")
        if line:
            return line
