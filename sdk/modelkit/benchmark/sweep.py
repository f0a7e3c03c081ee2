"""Where a server saturates: which level comes next, when to stop, and what the curve says."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from modelkit.benchmark.metrics import has_failed

__all__ = ["OPEN_FRACTIONS", "is_saturated", "summarize"]

# Shares of the highest request rate that closed loop has reached, tried in open loop.
OPEN_FRACTIONS: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_MIN_GAIN = 0.05
_MIN_ATTAINMENT = 0.9

Level = Mapping[str, Any]


def is_saturated(levels: Sequence[Level]) -> bool:
    """Whether doubling the callers once more is not worth it: the last one gained under 5%, or broke the objectives.

    So did one whose requests failed.
    """
    points = _points(levels)
    if not points:
        return False
    if any(has_failed(level["metrics"]) for level in points[-1]) or _attainment(points[-1]) < _MIN_ATTAINMENT:
        return True
    if len(points) < 2:  # noqa: PLR2004 - a gain takes two
        return False
    return _throughput(points[-1]) < (1 + _MIN_GAIN) * _throughput(points[-2])


def summarize(levels: Sequence[Level]) -> dict[str, Any]:
    """Return what a sweep found of one subject: peak, knee, goodput, and the highest rate within the objectives.

    The knee is where throughput over latency is greatest (Kleinrock's power): beyond it callers wait more than they win.
    A level whose requests failed has neither.
    """
    levels = [level for level in levels if not has_failed(level["metrics"])]
    closed = _points(level for level in levels if level["mode"] == "closed")
    opened = _points(level for level in levels if level["mode"] == "open")
    result: dict[str, Any] = {}
    if closed:
        peak = max(closed, key=_throughput)
        result["peak_tok_s"] = _throughput(peak)
        result["peak_concurrency"] = peak[0]["concurrency"]
        result["peak_req_s"] = max(_median(point, "req_s") for point in closed)
        result["knee_concurrency"] = max(closed, key=_power)[0]["concurrency"]
    goodputs = [_median(point, "goodput_req_s") for point in (*closed, *opened)]
    if any(goodputs):
        result["max_goodput_req_s"] = max(goodputs)
    within = [
        point[0]["rate"]
        for point in opened
        if _attainment(point) >= _MIN_ATTAINMENT
        and all(all(level["metrics"]["slo"].values()) for level in point)
    ]
    if opened and opened[0][0]["metrics"]["slo"]:
        result["max_rate_within_slo"] = max(within, default=None)
    return result


def _points(levels: Iterable[Level]) -> list[list[Level]]:
    """Group the repeats of each load, in the order of the load."""
    groups: dict[float, list[Level]] = {}
    for level in levels:
        groups.setdefault(level["rate"] if level["mode"] == "open" else level["concurrency"], []).append(
            level
        )
    return [groups[load] for load in sorted(groups)]


def _median(point: Sequence[Level], name: str) -> float:
    return float(median(level["metrics"][name] or 0.0 for level in point))


def _throughput(point: Sequence[Level]) -> float:
    return float(median(throughput(level["metrics"]) for level in point))


def throughput(metrics: Mapping[str, Any]) -> float:
    """Return the steady output tokens/s; those of the whole run where no part of it was steady."""
    return float(metrics["out_tok_s_steady"] or metrics["out_tok_s_whole"] or 0.0)


def _power(point: Sequence[Level]) -> float:
    latencies = [level["metrics"]["e2e_s"]["mean"] for level in point if level["metrics"]["e2e_s"]]
    latencies = [latency for latency in latencies if latency]
    return _throughput(point) / median(latencies) if latencies else 0.0


def _attainment(point: Sequence[Level]) -> float:
    found = [level["metrics"]["slo_attainment"] for level in point]
    return float(median(found)) if all(share is not None for share in found) else 1.0
