"""A process that does nothing but load: `python -m modelkit.benchmark.worker`, told what to do over its stdin.

What draws tables and samples GPUs would make the event loop late that takes the times; it stays in the parent. Frames
are pickles with their length before them, between processes of one program. At the end of stdin the worker ends, so that
none outlives its parent.
"""

import asyncio
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from modelkit.benchmark.load import Counters, Job, LoadResult, merge, run_job
from modelkit.errors import ModelkitError

__all__ = ["run_jobs"]

_LENGTH = struct.Struct(">Q")
_STDERR_BYTES = 4000


async def run_jobs(
    jobs: Sequence[Job], on_counters: Callable[[Counters], None] = lambda _: None
) -> LoadResult:
    """Run each job in a process of its own, all from the same moment, and return their results as one.

    `on_counters` hears the sum of all a few times a second. Raises what a job raises; none goes on after that.
    """
    workers: list[_Worker] = []
    try:
        for job in jobs:
            workers.append(await _Worker.start(job))  # noqa: PERF401 - those that have started are ended in any case
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        for worker in workers:
            worker.send("go")

        def changed() -> None:
            on_counters(sum((worker.counters for worker in workers), Counters()))

        return merge(await asyncio.gather(*(worker.result(changed) for worker in workers)))
    finally:
        await asyncio.gather(*(worker.end() for worker in workers))


class _Worker:
    """The parent's end of a worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.counters = Counters()

    @classmethod
    async def start(cls, job: Job) -> "_Worker":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "modelkit.benchmark.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        worker = cls(process)
        worker.send(job)
        return worker

    def send(self, value: Any) -> None:
        assert self._process.stdin is not None
        content = pickle.dumps(value)
        self._process.stdin.write(_LENGTH.pack(len(content)) + content)

    async def wait_ready(self) -> None:
        kind, value = await self._receive()
        if kind == "error":
            raise value

    async def result(self, changed: Callable[[], None]) -> LoadResult:
        while True:
            kind, value = await self._receive()
            if kind == "error":
                raise value
            if kind == "result":
                result: LoadResult = value
                return result
            self.counters = value
            changed()

    async def _receive(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            (length,) = _LENGTH.unpack(await self._process.stdout.readexactly(_LENGTH.size))
            frame: tuple[str, Any] = pickle.loads(await self._process.stdout.readexactly(length))  # noqa: S301
        except asyncio.IncompleteReadError:
            said = (await self._process.stderr.read())[-_STDERR_BYTES:].decode(errors="replace").strip()
            raise ModelkitError(
                f"a load process died with code {await self._process.wait()}: {said or 'it said nothing'}",
                cure="repeat it; with -v there is more",
            ) from None
        return frame

    async def end(self) -> None:
        """Let the process end; what still runs there is given up."""
        if self._process.returncode is None:
            # Not asyncio's kill, which reaps the process in passing and so takes it away from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


# ------------------------------------------------------------------------------------------------------------ the worker


def main() -> None:
    """Do one job and send its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up between the frames
    job = _read(sys.stdin.buffer)
    import gc

    import uvloop

    gc.disable()  # its pauses would be read as the server's; the process is short
    try:
        result = uvloop.run(_work(job, frames))
    except ModelkitError as error:
        _write(frames, ("error", error))
    else:
        _write(frames, ("result", result))
    # The parent may have the result already, and the interpreter's end would only take time.
    os._exit(0)


async def _work(job: Job, frames: BinaryIO) -> LoadResult:
    loop = asyncio.get_running_loop()

    async def ready() -> None:
        _write(frames, ("ready", None))
        await loop.run_in_executor(None, _read, sys.stdin.buffer)
        _end_with_the_parent()

    return await run_job(job, ready, lambda counters: _write(frames, ("counters", counters)))


def _end_with_the_parent() -> None:
    """End when stdin does, whatever else goes on: a thread that waits for it costs nothing."""
    import threading

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _read(stream: BinaryIO) -> Any:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        os._exit(1)  # the parent has gone
    return pickle.loads(stream.read(*_LENGTH.unpack(header)))  # noqa: S301


def _write(stream: BinaryIO, frame: tuple[str, Any]) -> None:
    content = pickle.dumps(frame)
    try:
        stream.write(_LENGTH.pack(len(content)) + content)
        stream.flush()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main()
