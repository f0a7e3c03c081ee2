"""The load itself: one process, one event loop, nothing in the timed path but sending and reading.

Closed loop keeps `concurrency` slots busy: each sends its next request when its last has ended. All slots would march in
step where all answers are equally long, every wave a burst of prefills; so each slot begins with a ramp request of random
length, which is in no latency (`burst` leaves that out, to measure just such a wave). Open loop sends at the scheduled
times whatever the server does, and its latencies count from there: a server that stands still cannot hide it by keeping
the client from asking (coordinated omission).
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from modelkit.benchmark.metrics import ClientFigures, Mode, Window, lag_p99
from modelkit.benchmark.record import Record
from modelkit.benchmark.targets import Target, TargetSpec, Turn, connect

__all__ = ["Conversation", "Counters", "Job", "LoadResult", "merge", "run_job", "split"]

_LAG_EVERY_S = 0.01
# uvloop's timers tick in milliseconds; a tick is no lag.
_TIMER_TICK_S = 0.001
_COUNTERS_EVERY_S = 0.25

now_ns = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Conversation:
    """Requests that follow each other: each waits for the answer before it, which becomes part of its prompt."""

    turns: tuple[Turn, ...]
    system: str = ""


@dataclass(slots=True)
class Job:
    """What one process does for one level. `offsets_s` are the scheduled times of open loop, from the start."""

    spec: TargetSpec
    mode: Mode
    conversations: Sequence[Conversation]
    concurrency: int = 1
    ramp: Sequence[Conversation] = ()
    offsets_s: Sequence[float] = ()
    duration_s: float | None = None
    first_index: int = 0


@dataclass(slots=True)
class Counters:
    """How far a level is; the sum over its processes is shown while it runs."""

    num_started: int = 0
    num_done: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    ttft_s: float = 0.0

    def add(self, record: Record) -> None:
        """Count a request that has ended."""
        self.num_done += 1
        self.num_failed += not record.is_ok
        self.num_tokens += record.output_tokens
        if record.is_ok:
            self.ttft_s += (record.times_ns[0] - record.sent_ns) * 1e-9

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(slots=True)
class LoadResult:
    """What came of a job."""

    records: list[Record]
    window: Window
    client: ClientFigures


class _Clock:
    """Watches this process: how late its event loop is, and how much of a core it takes."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LAG_EVERY_S)
            self._lags.append(max(0.0, time.perf_counter() - before - _LAG_EVERY_S - _TIMER_TICK_S))

    async def stop(self, num_bytes: int) -> ClientFigures:
        """End it and return what it has seen."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        wall_s = time.perf_counter() - self._wall_s
        share = (time.process_time() - self._cpu_s) / wall_s if wall_s else 0.0
        return ClientFigures(lag_p99(self._lags), share, num_bytes)


@dataclass(slots=True)
class _Load:
    job: Job
    target: Target
    counters: Counters
    records: list[Record] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    ends_ns: list[int] = field(default_factory=list)

    async def converse(
        self, number: int, conversation: Conversation, scheduled_ns: int, *, is_ramp: bool = False
    ) -> None:
        """Send the turns of a conversation, one after the other."""
        history: list[dict[str, Any]] = []
        if conversation.system:
            history.append({"role": "system", "content": conversation.system})
        for turn in conversation.turns:
            record = Record(
                index=number,
                asked_tokens=turn.output_tokens if self.job.spec.exact_length else 0,
                scheduled_ns=scheduled_ns or now_ns(),
                is_ramp=is_ramp,
                expected_prompt_tokens=turn.expected_prompt_tokens,
            )
            self.records.append(record)
            self.counters.num_started += 1
            await self.target.ask(turn, history, record)
            self.counters.add(record)
            scheduled_ns = 0
            if not record.is_ok:
                return
            history += [
                {"role": "user", "content": turn.content},
                {"role": "assistant", "content": record.text},
            ]

    async def closed(self) -> Window:
        """Keep every slot busy until there is nothing left, or the time is over."""
        job = self.job
        source = enumerate(job.conversations, job.first_index)
        num_slots = min(job.concurrency, len(job.conversations))
        await asyncio.gather(*(self._slot(number, num_slots, source) for number in range(num_slots)))
        return Window(max(self.starts_ns, default=0), min(self.ends_ns, default=0))

    async def _slot(self, number: int, num_slots: int, source: Iterator[tuple[int, Conversation]]) -> None:
        if number < len(self.job.ramp):
            await self.converse(-1 - number, self.job.ramp[number], 0, is_ramp=True)
        is_first = True
        for index, conversation in source:
            if is_first:
                self.starts_ns.append(now_ns())
                is_first = False
            await self.converse(index, conversation, 0)
            if self._is_over(num_slots):
                break
        self.ends_ns.append(now_ns())

    def _is_over(self, num_slots: int) -> bool:
        """Whether the duration has passed since the last slot began to count."""
        if self.job.duration_s is None or len(self.starts_ns) < num_slots:
            return False
        return now_ns() - max(self.starts_ns) >= self.job.duration_s * 1e9

    async def open(self) -> Window:
        """Send each request at its time."""
        begun_ns = now_ns()
        async with asyncio.TaskGroup() as group:
            for index, (offset_s, conversation) in enumerate(
                zip(self.job.offsets_s, self.job.conversations, strict=True), self.job.first_index
            ):
                due_ns = begun_ns + round(offset_s * 1e9)
                while (left_ns := due_ns - now_ns()) > 0:  # noqa: ASYNC110 - a timer may come too early
                    await asyncio.sleep(left_ns * 1e-9)
                group.create_task(self.converse(index, conversation, due_ns))
        last_s = self.job.offsets_s[-1] if self.job.offsets_s else 0.0
        return Window(begun_ns, begun_ns + round(last_s * 1e9))


async def run_job(
    job: Job,
    ready: Callable[[], Any] = lambda: None,
    on_counters: Callable[[Counters], None] = lambda _: None,
) -> LoadResult:
    """Connect, await `ready` (where several processes meet), do the job, and return its records."""
    target = connect(job.spec)
    await target.open()
    counters = Counters()
    load = _Load(job, target, counters)
    try:
        await target.prepare(job.concurrency if job.mode != "open" else 1)
        if (waiting := ready()) is not None:
            await waiting
        clock = _Clock()
        reporter = asyncio.create_task(_report(counters, on_counters))
        window = await (load.open() if job.mode == "open" else load.closed())
        client = await clock.stop(target.num_bytes)
        reporter.cancel()
        on_counters(counters)
    finally:
        await target.close()
    return LoadResult(load.records, window, client)


async def _report(counters: Counters, on_counters: Callable[[Counters], None]) -> None:
    while True:
        await asyncio.sleep(_COUNTERS_EVERY_S)
        on_counters(counters)


def split(job: Job, num_processes: int) -> list[Job]:
    """Divide a job among processes: its slots, its requests, and the schedule of open loop, turn by turn."""
    num = min(num_processes, job.concurrency if job.mode != "open" else len(job.conversations)) or 1
    return [
        replace(
            job,
            conversations=job.conversations[part::num],
            ramp=job.ramp[part::num],
            offsets_s=job.offsets_s[part::num],
            concurrency=len(range(part, job.concurrency, num)),
            first_index=part * 1_000_000,
        )
        for part in range(num)
    ]


def merge(results: Sequence[LoadResult]) -> LoadResult:
    """Put the parts of a level together: the window in which all of them were steady, the busiest client's figures."""
    return LoadResult(
        records=[record for result in results for record in result.records],
        window=Window(
            max(result.window.start_ns for result in results), min(result.window.end_ns for result in results)
        ),
        client=ClientFigures(
            max(result.client.loop_lag_p99_s for result in results),
            max(result.client.cpu_share for result in results),
            sum(result.client.num_bytes for result in results),
            len(results),
        ),
    )
