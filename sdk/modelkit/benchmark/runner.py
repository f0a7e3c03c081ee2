"""A run: for each subject find out how it is spoken to, then warm up and measure one level after the other."""

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path
from typing import Any, Final, Protocol

from modelkit.benchmark.load import Conversation, Counters, Job, LoadResult, split
from modelkit.benchmark.machine import Sampler
from modelkit.benchmark.metrics import MAX_CLIENT_CPU, Mode, measure
from modelkit.benchmark.objectives import Objective
from modelkit.benchmark.record import Record
from modelkit.benchmark.results import Store
from modelkit.benchmark.roofline import Architecture, find_gpu, roofline
from modelkit.benchmark.sweep import OPEN_FRACTIONS, is_saturated, summarize, throughput
from modelkit.benchmark.targets import Endpoint, TargetSpec, Turn, connect
from modelkit.benchmark.tokens import Texts, WordTexts
from modelkit.benchmark.worker import run_jobs
from modelkit.benchmark.workload import (
    Trace,
    Workload,
    fingerprint,
    make_conversations,
    poisson_offsets,
    shortened,
)
from modelkit.errors import ModelkitError, UsageError

__all__ = ["LevelPlan", "Settings", "Subject", "Watcher", "planned", "run_subject"]

_WARM_UP_TOKENS = 32
_WARM_UP_AGREEMENT = 0.05
_PROBE_TOKENS = (24, 240)
# A text need not encode to the tokens that it was decoded from; far more than this apart is another count.
_MAX_USAGE_ERROR = 0.3
_MAX_POOL = 20_000
# What servers answer to a field that they do not know.
_REFUSALS: Final = frozenset({"INVALID_ARGUMENT", "HTTP_400", "HTTP_422"})
_ABSENCES: Final = frozenset({"NOT_FOUND", "UNIMPLEMENTED", "HTTP_404", "HTTP_405"})


class Watcher(Protocol):
    """Hears how a run goes; the command line draws it."""

    def stage(self, text: str) -> None:
        """Something else goes on now."""

    def begin(self, plan: "LevelPlan", total: int | None) -> None:
        """A level begins, of so many requests."""

    def counters(self, counters: Counters) -> None:
        """It is so far."""

    def end(self, level: dict[str, Any]) -> None:
        """It is finished and kept."""

    def warn(self, text: str, cure: str = "") -> None:
        """Something is doubtful."""


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level: a load, held for a while."""

    subject: str
    mode: Mode
    repeat: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def id(self) -> str:
        """Its name in the run's files."""
        return f"{self.subject}/{self.load}/{self.repeat}"

    @property
    def load(self) -> str:
        """How a person would say it."""
        if self.mode == "open":
            return f"rate {self.rate:.4g}/s" if self.rate is not None else "trace"
        return f"{'burst ' if self.mode == 'burst' else ''}c={self.concurrency}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured of every subject."""

    workload: Workload
    concurrency: tuple[int, ...] = (1, 100)
    sweep_to: int | None = None  # doubles the last concurrency up to this, until it is saturated
    rates: tuple[float, ...] = ()
    trace: Trace | None = None
    burst: bool = False
    num_requests: tuple[int, ...] = ()  # one for all levels, or one for each concurrency
    duration_s: float | None = None
    repeats: int = 1
    objectives: tuple[Objective, ...] = ()
    warm_up_rounds: int = 5
    processes: int | None = None


@dataclass(slots=True)
class Subject:
    """One thing to measure: a server, how it is reached, and what is known of it for the report."""

    name: str
    spec: TargetSpec
    texts: Texts
    sampler: Sampler
    info: dict[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None
    gpu_name: str = ""
    num_gpus: int = 1


async def run_subject(subject: Subject, settings: Settings, store: Store, watcher: Watcher) -> None:
    """Measure every level of a subject that the store does not have yet. Raises ModelkitError where it cannot be."""
    if all(store.level(plan.id) for plan in planned(subject.name, settings)) and settings.sweep_to is None:
        return
    watcher.stage(f"asking {subject.name} how it wants to be asked")
    session = _Session(subject, settings, store, watcher)
    await session.probe()
    store.set_subject({"name": subject.name, **subject.info, **session.found()})
    async for plan in session.plans():
        if store.level(plan.id) is None:
            await session.level(plan)
    if settings.sweep_to is not None:
        store.set_subject({"name": subject.name, "sweep": summarize(session.levels())})


def planned(name: str, settings: Settings) -> Iterator[LevelPlan]:
    """Yield the levels that are known beforehand: all but those of a sweep."""
    mode: Mode = "burst" if settings.burst else "closed"
    if settings.trace is not None:
        yield from (LevelPlan(name, "open", repeat) for repeat in range(settings.repeats))
        return
    for rate in settings.rates:
        yield from (LevelPlan(name, "open", repeat, rate=rate) for repeat in range(settings.repeats))
    if not settings.rates:
        for number in settings.concurrency:
            yield from (LevelPlan(name, mode, repeat, number) for repeat in range(settings.repeats))


class _Session:
    def __init__(self, subject: Subject, settings: Settings, store: Store, watcher: Watcher) -> None:
        self.subject = subject
        self.settings = settings
        self.store = store
        self.watcher = watcher
        self.spec = subject.spec
        self.overhead_tokens = 0
        # Random weights write random ids, whose text has another number of tokens when it is tokenized again.
        self.needs_token_check = subject.info.get("weights") != "random"
        self.num_processes = settings.processes or 1

    def found(self) -> dict[str, Any]:
        """Return what the probe has found, for the report."""
        return {
            "protocol": self.spec.protocol,
            "endpoint": self.spec.endpoint,
            "served_model": self.spec.model,
            "exact_length": self.spec.exact_length,
            "running_usage": self.spec.running_usage,
            "overhead_tokens": self.overhead_tokens,
            "prompt_lengths": "words" if isinstance(self.subject.texts, WordTexts) else "tokenizer",
        }

    def levels(self) -> list[dict[str, Any]]:
        """Return the finished levels of this subject."""
        return [level for level in self.store.run["levels"] if level["subject"] == self.subject.name]

    async def plans(self) -> AsyncIterator[LevelPlan]:
        """Yield the levels; those of a sweep follow from the ones before."""
        for plan in planned(self.subject.name, self.settings):
            yield plan
        limit = self.settings.sweep_to
        if limit is None:
            return
        number, repeats = self.settings.concurrency[-1], range(self.settings.repeats)
        while not is_saturated(self._closed()) and (number := number * 2) <= limit:
            for repeat in repeats:
                yield LevelPlan(self.subject.name, "closed", repeat, number)
        peak = summarize(self._closed())["peak_req_s"]
        for fraction in OPEN_FRACTIONS:
            for repeat in repeats:
                yield LevelPlan(self.subject.name, "open", repeat, rate=round(peak * fraction, 4))

    def _closed(self) -> list[dict[str, Any]]:
        return [level for level in self.levels() if level["mode"] == "closed"]

    # ------------------------------------------------------------------------------------------------- before measuring

    async def probe(self) -> None:
        """Ask something small until the server takes it, dropping what it refuses; learn what its template adds."""
        tried: list[Record] = []
        for spec in self._dialects():
            record = await self._ask(spec, *self._probe_text(_PROBE_TOKENS[0]))
            tried.append(record)
            if record.is_ok:
                break
            if record.status not in _REFUSALS | _ABSENCES:
                break
        if not tried[-1].is_ok:
            raise _unmeasurable(self.spec, tried[0])
        self.spec = spec
        if not spec.exact_length:
            self.watcher.warn(
                f"{self.subject.name} takes no ignore_eos: its answers end when it likes",
                cure="compare tokens/s, not E2E, with servers that answer in full",
            )
        await self._calibrate(tried[-1])

    def _dialects(self) -> Iterator[TargetSpec]:
        """Yield the ways to ask, the best first."""
        endpoints: tuple[Endpoint, ...] = (
            ("chat",) if self.spec.endpoint == "chat" else ("completions", "chat")
        )
        for endpoint in endpoints:
            for exact, running in ((True, True), (True, False), (False, True), (False, False)):
                yield replace(self.spec, endpoint=endpoint, exact_length=exact, running_usage=running)

    async def _calibrate(self, first: Record) -> None:
        texts, words = self.subject.texts, _PROBE_TOKENS
        if isinstance(texts, WordTexts):
            second = await self._ask(self.spec, *self._probe_text(words[1]))
            texts.calibrate([(words[0], first.prompt_tokens), (words[1], second.prompt_tokens)])
        elif first.prompt_tokens and first.expected_prompt_tokens:
            self.overhead_tokens = max(0, first.prompt_tokens - first.expected_prompt_tokens)

    def _probe_text(self, num: int) -> tuple[str, int]:
        generator = random.Random(f"{self.settings.workload.seed}/probe/{num}")  # noqa: S311
        return self.subject.texts.make(num, generator)

    async def _ask(self, spec: TargetSpec, text: str, expected: int) -> Record:
        target = connect(spec)
        await target.open()
        try:
            self.spec = replace(self.spec, model=target.spec.model)
            record = Record(0, 1, time.perf_counter_ns(), expected_prompt_tokens=expected)
            await target.ask(Turn(text, 1), (), record)
        finally:
            await target.close()
        return record

    async def warm_up(self, plan: LevelPlan) -> dict[str, Any]:
        """Send short requests, as many as will be in flight, until two rounds agree: kernels compile, caches fill."""
        num = plan.concurrency or 8
        rates: list[float] = []
        for number in range(self.settings.warm_up_rounds):
            self.watcher.stage(f"{self.subject.name}, {plan.load}: warm-up, round {number + 1}")
            made = self._conversations(num, f"warm-up/{plan.load}/{plan.repeat}/{number}")
            short = [
                Conversation((replace(one.turns[0], output_tokens=_shorter(one)),), one.system)
                for one in made
            ]
            job = Job(replace(self.spec, keep_text=self.needs_token_check), "burst", short, num)
            result = await run_jobs([job])
            self._check_warm_up(result.records)
            rates.append(_tokens_per_s(result))
            if self.needs_token_check:
                self.needs_token_check = False
                self._check_tokens(result.records)
            if len(rates) > 1 and abs(rates[-1] - rates[-2]) <= _WARM_UP_AGREEMENT * max(rates[-2:]):
                return {"rounds": len(rates), "agreed": True}
        return {"rounds": len(rates), "agreed": not rates}

    def _check_warm_up(self, records: Sequence[Record]) -> None:
        failed = [record for record in records if not record.is_ok]
        if len(failed) == len(records):
            raise _unmeasurable(self.spec, failed[0])

    def _check_tokens(self, records: Sequence[Record]) -> None:
        """Compare the usage that the server told with what the tokenizer makes of its text."""
        counted = sum(self.subject.texts.count(record.text) for record in records if record.is_ok)
        told = sum(record.output_tokens for record in records if record.is_ok)
        if not counted:
            return
        check = {"usage_tokens": told, "tokenizer_tokens": counted}
        self.store.set_subject({"name": self.subject.name, "token_check": check})
        if abs(counted - told) > _MAX_USAGE_ERROR * told:
            self.watcher.warn(
                f"{self.subject.name} says that it wrote {told} tokens; by the tokenizer its text has {counted}",
                cure="where the tokenizer is the model's, the server counts wrong: do not trust its tokens/s",
            )

    # ------------------------------------------------------------------------------------------------------- measuring

    async def level(self, plan: LevelPlan) -> None:
        """Warm up, measure, keep; once more with more processes where one was too few."""
        warm_up = await self.warm_up(plan)
        while True:
            job, prompts = self._job(plan)
            self.watcher.begin(plan, None if self.settings.duration_s else _num_requests(job))
            started_at = _now()
            async with self.subject.sampler.sampling() as machine:
                result = await run_jobs(split(job, self.num_processes), self.watcher.counters)
            ended_at = _now()
            if not self._needs_more_processes(result):
                break
        metrics = measure(
            result.records,
            mode=plan.mode,
            window=result.window,
            concurrency=min(plan.concurrency or 0, len(job.conversations)) or None,
            objectives=self.settings.objectives,
            client=result.client,
        )
        workload = self.settings.workload
        num_tokens = sum(record.output_tokens for record in result.records)
        level = {
            "id": plan.id,
            "subject": plan.subject,
            "mode": plan.mode,
            "concurrency": plan.concurrency,
            "rate": plan.rate if plan.mode != "open" or plan.rate else _trace_rate(self.settings.trace),
            "repeat": plan.repeat,
            "load": plan.load,
            "started_at": started_at,
            "ended_at": ended_at,
            "input_tokens": str(workload.input_tokens),
            "output_tokens": str(workload.output_tokens),
            "prompt_set": prompts,
            "warm_up": warm_up,
            "window_ns": [result.window.start_ns, result.window.end_ns],
            "metrics": metrics,
            "machine": machine.as_json(num_tokens),
            "roofline": self._roofline(plan, metrics),
        }
        self.store.add(level, result.records)
        self.watcher.end(level)

    def _job(self, plan: LevelPlan) -> tuple[Job, str]:
        settings = self.settings
        num = self._num_requests(plan)
        self.watcher.stage(f"{plan.subject}, {plan.load}: making {num} prompts")
        stream = f"{plan.load}/{plan.repeat}"
        made = self._conversations(num, stream, settings.trace)
        job = Job(
            replace(self.spec, keep_text=any(len(one.turns) > 1 for one in made)),
            plan.mode,
            made,
            plan.concurrency or 1,
            duration_s=settings.duration_s,
        )
        if plan.mode == "open":
            seed = f"{settings.workload.seed}/{stream}"
            job.offsets_s = (
                settings.trace.offsets_s if settings.trace else poisson_offsets(plan.rate or 1.0, num, seed)
            )
        elif plan.mode == "closed" and (plan.concurrency or 1) > 1 and num > 1:
            ramp = self._conversations(min(plan.concurrency or 1, num), f"{stream}/ramp")
            job.ramp = shortened(ramp, random.Random(f"{settings.workload.seed}/{stream}/ramp"))  # noqa: S311
        return job, fingerprint(made)

    def _num_requests(self, plan: LevelPlan) -> int:
        settings = self.settings
        if settings.trace is not None:
            return len(settings.trace.offsets_s)
        if plan.mode == "open" and settings.duration_s:
            return max(1, round((plan.rate or 1.0) * settings.duration_s))
        if settings.duration_s:
            return min(_MAX_POOL, self._pool(plan.concurrency or 1, settings.duration_s))
        if settings.num_requests:
            return self._number_of(settings.num_requests, plan)
        if plan.mode == "open":
            return max(100, round((plan.rate or 1.0) * 30))
        return max(10, (1 if plan.mode == "burst" else 3) * (plan.concurrency or 1))

    def _number_of(self, numbers: tuple[int, ...], plan: LevelPlan) -> int:
        """Return the number for a level: each has its own, or the last one goes on."""
        loads: tuple[float, ...] = self.settings.rates or self.settings.concurrency
        load = plan.rate if plan.mode == "open" else plan.concurrency
        place = loads.index(load) if load in loads else len(numbers)
        return numbers[min(place, len(numbers) - 1)]

    def _pool(self, concurrency: int, duration_s: float) -> int:
        """Return how many prompts are enough for a duration: nobody decodes faster than this per caller."""
        fastest_s = max(0.01, self.settings.workload.output_tokens.mean / 1000)
        return max(2 * concurrency, round(concurrency * duration_s / fastest_s))

    def _conversations(self, num: int, stream: str, trace: Trace | None = None) -> list[Conversation]:
        return make_conversations(
            self.settings.workload,
            self.subject.texts,
            num,
            stream=stream,
            overhead_tokens=self.overhead_tokens,
            trace=trace,
        )

    def _needs_more_processes(self, result: LoadResult) -> bool:
        share = result.client.cpu_share
        if self.settings.processes is not None or share <= MAX_CLIENT_CPU:
            return False
        if self.num_processes * 2 > (cpu_count() or 1):
            return False
        self.num_processes *= 2
        self.watcher.warn(
            f"the client took {share:.0%} of a core, too much to be trusted: again with {self.num_processes} processes"
        )
        return True

    def _roofline(self, plan: LevelPlan, metrics: dict[str, Any]) -> dict[str, Any] | None:
        subject = self.subject
        gpu = find_gpu(subject.gpu_name) if subject.gpu_name else None
        if (
            subject.architecture is None
            or gpu is None
            or plan.concurrency is None
            or not metrics["output_tokens"]
        ):
            return None
        best = roofline(
            subject.architecture,
            gpu,
            concurrency=plan.concurrency,
            input_tokens=metrics["prompt_tokens"]["mean"],
            output_tokens=metrics["output_tokens"]["mean"],
            num_gpus=subject.num_gpus,
        )
        reached = throughput(metrics)
        return {
            "decode_tok_s": round(best.decode_tok_s, 1),
            "with_prefill_tok_s": round(best.with_prefill_tok_s, 1),
            "prefill_ms": round(best.prefill_s * 1e3, 2),
            "share": round(reached / best.with_prefill_tok_s, 4),
            "gpu_figures_measured": gpu.is_measured,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _num_requests(job: Job) -> int:
    return len(job.ramp) + sum(len(conversation.turns) for conversation in job.conversations)


def _shorter(conversation: Conversation) -> int:
    return min(_WARM_UP_TOKENS, conversation.turns[0].output_tokens)


def _tokens_per_s(result: LoadResult) -> float:
    ended, sent = max(r.ended_ns for r in result.records), min(r.sent_ns for r in result.records)
    return sum(record.output_tokens for record in result.records) / ((ended - sent) * 1e-9)


def _trace_rate(trace: Trace | None) -> float | None:
    if trace is None or not trace.offsets_s[-1]:
        return None
    return round(len(trace.offsets_s) / trace.offsets_s[-1], 4)


def _unmeasurable(spec: TargetSpec, record: Record) -> ModelkitError:
    message = f"{spec.url} answers no request: {record.status}: {record.error}"
    if record.status in _REFUSALS:
        return UsageError(
            message, cure="see --input-tokens and --output-tokens, and the model's max_model_len"
        )
    return ModelkitError(message, cure="see the server's log")


def default_folder(base: Path, run_id: str) -> Path:
    """Return where a run is kept that nobody has named a folder for."""
    return base / ".modelkit" / "bench" / run_id
