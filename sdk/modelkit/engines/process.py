"""One supervisor for every engine that runs as a server of its own: start, readiness, death, restart, stop.

The engine is a child process on the loopback interface that ends with modelkit (`_guard`). It is ready when its health
route answers and a probe has got a real token: engines exist whose health says yes while every request fails. From then
on its death and its silence (`health`) are noticed, and it is started again, a few times.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from modelkit.engines.causes import Cause, find_cause
from modelkit.engines.engine_log import Deviation, EngineLog, Stage
from modelkit.engines.health import Patience, Traffic, wait_until_wedged
from modelkit.errors import EngineError, UnavailableError

__all__ = ["EngineProcess", "Launch", "RestartPolicy"]

_log = logging.getLogger("modelkit.engine")

_GUARD = Path(__file__).with_name("_guard.py")
_SHOWN_LINES = 15
_POLL_S = 0.1
# Longer than the two guards' own limits together.
_STOP_TIMEOUT_S = 20.0
_HEALTH_TIMEOUT_S = 5.0
_PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one engine's server is started: on which port, with which key, and how its health is asked for."""

    command: Sequence[str]
    port: int
    health_path: str = "/health"
    # What a request to the server has to show; it is kept out of the log.
    api_key: str = ""
    # The environment variable that names a folder for what the server leaves behind; the folder is deleted with it.
    scratch_variable: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    deviations: Sequence[Deviation] = ()

    @property
    def url(self) -> str:
        """The server's base URL."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """A restart waits 1, 2, 4, ... times `pause_s`; an engine that has run for `stable_s` has earned a clean slate."""

    max_restarts: int = 5
    pause_s: float = 1.0
    max_pause_s: float = 30.0
    stable_s: float = 600.0


class EngineProcess:
    """Keeps one engine's server running from `start` to `stop`.

    `make_launch` is asked for a Launch with a fresh port each time. `probe` gets the base URL and returns when the
    engine has produced a token; it raises EngineError where the engine fails, UnavailableError where it is not there
    yet. `traffic` is counted by those who send requests. `on_stage` hears the name of each phase of a start; `on_health`
    hears (False, reason) when the engine has died or no longer answers, and (True, "") when it is back; `on_given_up`
    hears the reason when it is not started again any more.
    """

    def __init__(
        self,
        name: str,
        make_launch: Callable[[int], Launch],
        *,
        probe: Callable[[str], Awaitable[None]],
        start_timeout_s: float,
        log_path: Path,
        traffic: Traffic | None = None,
        on_stage: Callable[[str], None] = lambda _: None,
        on_health: Callable[[bool, str], None] = lambda _, __: None,
        on_given_up: Callable[[str], None] = lambda _: None,
        patience: Patience | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        self.name = name
        self.url = ""
        self.log_path = log_path
        self.num_restarts = 0
        self._make_launch = make_launch
        self._probe = probe
        self._start_timeout_s = start_timeout_s
        self._traffic = traffic or Traffic()
        self._on_stage = on_stage
        self._on_health = on_health
        self._on_given_up = on_given_up
        self._patience = patience or Patience()
        self._restarts = restarts or RestartPolicy()
        self._process: asyncio.subprocess.Process | None = None
        # Where the guard tells the engine's end, before it tidies up.
        self._last_word = asyncio.StreamReader()
        self._last_word_pipe: asyncio.BaseTransport | None = None
        self._log = EngineLog(log_path, (), on_stage)
        # Why a start fails though the engine goes on: it does something else than it was told.
        self._objection: EngineError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ending = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The guard's process id while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the engine and return when it is ready. Raises EngineError with the cause and the cure."""
        await self._start()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """End the engine with everything it started."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._end_process()

    # ------------------------------------------------------------------------------------------------------- starting

    async def _start(self) -> None:
        """Start the engine; again where another process was faster to take the port."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                await self._start_once()
            except EngineError:
                await self._end_process()
                cause = find_cause(self._log.tail)
                if cause is None or cause.name != "port_in_use" or attempt == _PORT_ATTEMPTS:
                    raise
            except BaseException:
                await self._end_process()
                raise
            else:
                return

    async def _start_once(self) -> None:
        launch = self._make_launch(_free_port())
        started = time.monotonic()
        self._on_stage("importing")
        self._objection = None
        self._log = EngineLog(
            self.log_path,
            launch.stages,
            self._on_stage,
            deviations=launch.deviations,
            on_deviation=self._hear_deviation,
            secret=launch.api_key,
        )
        self._process = await self._spawn(launch)
        assert self._process.stdout is not None
        self._reader = asyncio.create_task(self._log.read(self._process.stdout), name=f"log of {self.name}")
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._wait_ready(launch, self._process)
        except TimeoutError as error:
            raise self._failure(
                f"{self.name} was not ready after {self._start_timeout_s:g} s",
                cure="raise engine.start_timeout in config.yaml, or look into the log",
            ) from error
        self._log.start_is_over()
        self.url = launch.url
        _log.info("%s is ready after %.1f s, log in %s", self.name, time.monotonic() - started, self.log_path)

    async def _spawn(self, launch: Launch) -> asyncio.subprocess.Process:
        if sys.platform != "linux":
            raise EngineError(f"{self.name} runs on Linux only", cure="use engine.name: transformers")
        _log.debug("starting %s", " ".join(launch.command))
        tell_fd = await self._listen_for_last_word()
        try:
            return await self._spawn_guard(launch, tell_fd)
        except BaseException:
            self._close_last_word()
            raise
        finally:
            os.close(tell_fd)  # the guard's own is the only one left: that it is closed tells too

    async def _listen_for_last_word(self) -> int:
        """Make the pipe on which the guard tells the engine's end; return the guard's side of it."""
        read_fd, tell_fd = os.pipe()
        reader = self._last_word = asyncio.StreamReader()
        self._last_word_pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", 0)
        )
        return tell_fd

    def _close_last_word(self) -> None:
        if self._last_word_pipe is not None:
            self._last_word_pipe.close()

    async def _spawn_guard(self, launch: Launch, tell_fd: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", str(_GUARD), "--tell", str(tell_fd)),
            *(("--scratch", launch.scratch_variable) if launch.scratch_variable else ()),
            *launch.command,
            pass_fds=(tell_fd,),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **launch.environment, "PYTHONUNBUFFERED": "1"},
            # The terminal's Ctrl-C and hang-up are for modelkit, which decides.
            start_new_session=True,
        )

    async def _wait_ready(self, launch: Launch, process: asyncio.subprocess.Process) -> None:
        """Wait for health, then for a token; an engine that ends meanwhile, or does something else, ends the wait."""
        is_ready, result = await _first(self._poll_until_ready(launch), process.wait())
        if not is_ready:
            await self._finish_log()
        if self._objection is not None:
            raise self._objection
        if not is_ready:
            raise self._failure(f"{self.name} {_ending(result)} before it was ready")

    async def _poll_until_ready(self, launch: Launch) -> None:
        timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while not await _is_healthy(session, launch.url + launch.health_path):
                if self._objection is not None:
                    raise self._objection
                await asyncio.sleep(_POLL_S)
        self._on_stage("answering a first request")
        while True:
            try:
                return await self._probe(launch.url)
            except UnavailableError:
                await asyncio.sleep(_POLL_S)
            except EngineError as error:
                raise self._failure(error.message) from error

    def _hear_deviation(self, deviation: Deviation, line: str) -> None:
        if deviation.is_fatal:
            self._objection = EngineError(
                f"{deviation.message}\n    {line}", cure=f"{deviation.cure} (the log: {self.log_path})"
            )
        else:
            _log.warning("%s; to say so yourself, %s", deviation.message, deviation.cure)

    async def _finish_log(self) -> None:
        """Wait until everything that the engine started has ended, which closes its output."""
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=_STOP_TIMEOUT_S)

    def _failure(self, message: str, cure: str = "") -> EngineError:
        """Say what went wrong: the well-known cause if the log names one, and the last lines of the log."""
        shown = list(self._log.tail)[-_SHOWN_LINES:]
        cause: Cause | None = find_cause(self._log.tail)
        if cause is not None:
            message, cure = f"{message}: {cause.message}", cause.cure
            if cause.line not in shown:
                shown = [cause.line, "...", *shown]
        lines = "".join(f"\n    {line}" for line in shown)
        return EngineError(
            f"{message}{lines}", cure=f"{cure or 'look into the log'} (the log: {self.log_path})"
        )

    # ------------------------------------------------------------------------------------------------- life and death

    async def _watch(self) -> None:
        """Wait for trouble; start the engine again with a growing pause, a few times."""
        while True:
            began = time.monotonic()
            reason = await self._wait_for_trouble()
            if time.monotonic() - began > self._restarts.stable_s:
                self.num_restarts = 0
            self._on_health(False, reason)
            _log.error("%s", self._failure(reason).message)
            if not await self._restart(reason):
                return
            self._on_health(True, "")

    async def _wait_for_trouble(self) -> str:
        """Return why the engine has to be started again."""
        assert self._process is not None
        silence = wait_until_wedged(lambda: self._probe(self.url), self._traffic, self._patience)
        is_silent, result = await _first(silence, self._wait_for_end(self._process))
        if is_silent:
            return f"{self.name} no longer answers ({result})"
        return f"{self.name} {_ending(result)}"

    async def _wait_for_end(self, process: asyncio.subprocess.Process) -> int:
        """Return the engine's exit code as soon as it has ended; the guard tidies up meanwhile, and ends later."""
        last_word = await self._last_word.read()
        return int(last_word) if last_word else await process.wait()

    async def _restart(self, reason: str) -> bool:
        """Try to bring the engine back; False when the limit is reached."""
        policy = self._restarts
        await self._end_process()
        while self.num_restarts < policy.max_restarts:
            pause_s = min(policy.pause_s * 2.0**self.num_restarts, policy.max_pause_s)
            self.num_restarts += 1
            _log.warning(
                "starting %s again in %g s (%d of %d)",
                self.name,
                pause_s,
                self.num_restarts,
                policy.max_restarts,
            )
            await asyncio.sleep(pause_s)
            try:
                await self._start()
            except (EngineError, OSError) as error:
                _log.error("%s", error)
                continue
            return True
        reason = f"{reason}; started {self.num_restarts} times again, and now no more"
        self._on_health(False, reason)
        self._on_given_up(reason)
        _log.error("%s is not started again: it has failed %d times", self.name, self.num_restarts)
        return False

    async def _end_process(self) -> None:
        """Close the guard's pipe, which ends everything behind it, and wait."""
        async with self._ending:
            process = self._process
            if process is None:
                return
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            await self._finish_log()
            self._close_last_word()
            # Only now: where this is cancelled half-way, the next one has to go on.
            self._process = None


async def _first(one: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Run two coroutines until one has ended. Return whether it is the first, and its result; the other is cancelled."""
    tasks = [asyncio.create_task(one), asyncio.create_task(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Where both have ended, the second counts: a process that has ended is what matters.
        winner = tasks[1] if tasks[1].done() else tasks[0]
        return winner is tasks[0], winner.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200  # noqa: PLR2004 - HTTP's own number
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _free_port() -> int:
    """Return a port that is free now on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ending(code: int) -> str:
    """Say how a process ended. The guard exits with 128 + N where signal N ended the engine, -N is the guard's own."""
    number = -code if code < 0 else code - 128
    if number <= 0 or number not in set(signal.Signals):
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(number).name}"
