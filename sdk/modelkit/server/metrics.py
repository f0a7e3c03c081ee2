"""What a server has done, counted: calls, tokens, and times, in Prometheus' format when somebody asks.

Counting happens in the predictor, so that gRPC and HTTP are counted alike, and only on the event loop's thread: plain
integers and no locks, about 1 µs a call and 0.3 µs a streamed item. Labels are method names and status codes, so there
are as many time series as the model has methods, whatever callers send.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelkit.errors import ModelkitError
from modelkit.model import Request

__all__ = ["CONTENT_TYPE", "CallMetrics", "CallTimer", "Gauges", "render"]

# The classic text format, which every scraper reads.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# A name that no method can have: calls of methods that do not exist share one time series.
_UNKNOWN: Final = "(unknown)"

# Event loops count in milliseconds, so a timer may ring that much before its time by the clock.
_TIMER_SLACK_S: Final = 0.005

# Seconds. A unary call of a small model takes a millisecond, a long generation minutes.
_CALL_BOUNDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)
_FIRST_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_GAP_BOUNDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    1,
    5,
)

Gauges = Mapping[str, tuple[str, Callable[[], float]]]


class _Histogram:
    """Counts by upper bound; cheaper than the library's, which takes a lock and walks its buckets in Python."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, how many were at most that) as Prometheus wants it."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        sums: list[tuple[str, float]] = []
        so_far = 0
        for name, count in zip(names, self.counts, strict=True):
            so_far += count
            sums.append((name, so_far))
        return sums


class _MethodStats:
    """The numbers of one method."""

    __slots__ = ("cached_tokens", "codes", "duration", "first", "gap", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.duration = _Histogram(_CALL_BOUNDS)
        self.first = _Histogram(_FIRST_BOUNDS)
        self.gap = _Histogram(_GAP_BOUNDS)
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0


class CallTimer:
    """Counts one call: enter it when the call comes, `item()` with each streamed item, leave it when the call ends.

    The code is read off the error that leaves with it: a CallError's own, CANCELLED (or DEADLINE_EXCEEDED, once the
    caller's deadline has passed) where the call was cancelled or its stream closed early.
    """

    __slots__ = ("_last", "_request", "_started", "_stats")

    def __init__(self, stats: _MethodStats, request: Request) -> None:
        self._stats = stats
        self._request = request
        self._started = time.perf_counter()
        self._last = 0.0

    def item(self) -> None:
        """Note that an item is on its way to the caller."""
        now = time.perf_counter()
        if self._last:
            self._stats.gap.observe(now - self._last)
        else:
            self._stats.first.observe(now - self._started)
        self._last = now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stats, usage = self._stats, self._request.usage
        stats.codes["OK" if error is None else self._code(error)] += 1
        stats.duration.observe(time.perf_counter() - self._started)
        stats.prompt_tokens += usage.prompt_tokens
        stats.output_tokens += usage.output_tokens
        stats.cached_tokens += usage.cached_tokens

    def _code(self, error: BaseException) -> str:
        if isinstance(error, ModelkitError):
            return error.grpc_status
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            remaining_s = self._request.time_remaining_s()
            is_late = remaining_s is not None and remaining_s < _TIMER_SLACK_S
            return "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
        return "INTERNAL"


class CallMetrics:
    """The numbers of every method of one model."""

    def __init__(self, methods: Iterable[str]) -> None:
        self._stats = {name: _MethodStats() for name in (*methods, _UNKNOWN)}

    def call(self, request: Request) -> CallTimer:
        """Return a timer for a call that has just come."""
        return CallTimer(self._stats.get(request.method) or self._stats[_UNKNOWN], request)

    def collect(self) -> Iterator[Metric]:
        """Yield everything counted so far, of the methods that have been called."""
        called = {name: stats for name, stats in self._stats.items() if stats.codes}
        calls = CounterMetricFamily(
            "modelkit_calls", "Calls that have ended, by method and status code.", labels=["method", "code"]
        )
        for name, stats in called.items():
            for code, count in sorted(stats.codes.items()):
                calls.add_metric([name, code], count)
        yield calls
        for name, what in _TOKENS.items():
            tokens = CounterMetricFamily(f"modelkit_{name}", what, labels=["method"])
            for method, stats in called.items():
                tokens.add_metric([method], getattr(stats, name))
            yield tokens
        for attribute, (metric_name, what) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(metric_name, what, labels=["method"])
            for method, stats in called.items():
                histogram: _Histogram = getattr(stats, attribute)
                if any(histogram.counts):
                    family.add_metric([method], histogram.cumulative(), histogram.total)
            yield family


_TOKENS: Mapping[str, str] = {
    "prompt_tokens": "Tokens of prompts.",
    "output_tokens": "Tokens of answers.",
    "cached_tokens": "Tokens of prompts that were found in the engine's prefix cache.",
}
_HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    "duration": (
        "modelkit_call_duration_seconds",
        "Time from a call's arrival to its end, waiting included.",
    ),
    "first": (
        "modelkit_time_to_first_item_seconds",
        "Time from a streaming call's arrival to its first item.",
    ),
    "gap": ("modelkit_inter_item_seconds", "Time between two consecutive items of a stream."),
}


def render(metrics: CallMetrics, gauges: Gauges, info: Mapping[str, str]) -> bytes:
    """Return everything in Prometheus' text format, with this process's own CPU, memory and files.

    `gauges` are read now: name to (description, function). `info` becomes the labels of `modelkit_info`.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Snapshot(metrics, gauges, info))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, metrics: CallMetrics, gauges: Gauges, info: Mapping[str, str]) -> None:
        self._metrics, self._gauges, self._info = metrics, gauges, info

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("modelkit", "What is served, and by which version.", value=dict(self._info))
        for name, (what, read) in self._gauges.items():
            yield GaugeMetricFamily(name, what, value=read())
        yield from self._metrics.collect()
