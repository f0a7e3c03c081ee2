"""Better, worse, or noise: what repeated levels of two runs say of each other."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Final

from modelkit.benchmark.metrics import failed_share, failures, has_failed
from modelkit.benchmark.sweep import throughput
from modelkit.errors import UsageError

__all__ = ["compare_runs", "comparison_lines", "winners"]

_CONFIDENCE = 0.95
_MIN_REPEATS = 2


@dataclass(frozen=True, slots=True)
class _Metric:
    """One column of the comparison: where it is, and whether more of it is better."""

    name: str
    more_is_better: bool
    key: str = ""
    statistic: str = ""

    def read(self, level: Mapping[str, Any]) -> float | None:
        metrics = level["metrics"]
        if not self.key:
            return throughput(metrics)
        values = metrics[self.key]
        return None if values is None else values[self.statistic]


_METRICS: Final = (
    _Metric("tokens/s", more_is_better=True),
    _Metric("TTFT p50 ms", more_is_better=False, key="ttft_ms", statistic="p50"),
    _Metric("TTFT p99 ms", more_is_better=False, key="ttft_ms", statistic="p99"),
    _Metric("ITL p50 ms", more_is_better=False, key="itl_ms", statistic="p50"),
    _Metric("ITL p99 ms", more_is_better=False, key="itl_ms", statistic="p99"),
    _Metric("E2E p50 s", more_is_better=False, key="e2e_s", statistic="p50"),
)


def compare_runs(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare the levels that two runs have in common; two runs of one subject each are compared whatever its name.

    Each row has the means, the change of B against A and its 95% interval by Welch's t-test over the repeats; the verdict
    is "noise" where the interval holds zero, "unknown" with fewer than two repeats. A level that failed has one row,
    the share of its requests that did. Raises UsageError where the runs have
    nothing in common.
    """
    groups_a, groups_b = _groups(first), _groups(second)
    names_a, names_b = {name for name, _ in groups_a}, {name for name, _ in groups_b}
    if len(names_a) == len(names_b) == 1:
        groups_b = {(next(iter(names_a)), load): levels for (_, load), levels in groups_b.items()}
    common = [key for key in groups_a if key in groups_b]
    if not common:
        raise UsageError(
            "the two runs have no level in common",
            cure="measure the same concurrency or rate, and the same engine",
        )
    if first["settings"]["workload"] != second["settings"]["workload"]:
        raise UsageError(
            "the two runs were asked different things: their workloads differ",
            cure="give both the same --input-tokens, --output-tokens, --seed and prompts",
        )
    return [
        {"subject": subject, "load": load, **row}
        for subject, load in common
        for row in _rows(groups_a[subject, load], groups_b[subject, load])
    ]


def comparison_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Draw the rows as a table."""
    width = max(len(row["metric"]) for row in rows)
    last = None
    for row in rows:
        if (row["subject"], row["load"]) != last:
            if last is not None:
                yield ""
            last = row["subject"], row["load"]
            yield f"{row['subject']}, {row['load']} ({row['repeats'][0]} and {row['repeats'][1]} repeats)"
        interval = (
            f"[{row['change_low']:+.1%}, {row['change_high']:+.1%}]"
            if row["change_low"] is not None
            else "[?]"
        )
        change = f"{row['change']:+.1%}" if row["change"] is not None else "?"
        yield (
            f"  {row['metric']:{width}}  {row['a']:>12,.2f}  {row['b']:>12,.2f}  {change:>8}  {interval:>20}  "
            f"{row['verdict']}"
        )


def _rows(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    shares = [mean(failed_share(level["metrics"]) for level in levels) for levels in (first, second)]
    failed = [any(has_failed(level["metrics"]) for level in levels) for levels in (first, second)]
    if any(failed):  # what a server gives that answers some requests only is nothing to compare
        yield {
            "metric": "% failed",
            "repeats": [len(first), len(second)],
            "a": shares[0] * 100,
            "b": shares[1] * 100,
            "change": None,
            "change_low": None,
            "change_high": None,
            "verdict": "unknown" if all(failed) else "worse" if failed[1] else "better",
        }
        return
    for metric in _METRICS:
        a = [value for level in first if (value := metric.read(level)) is not None]
        b = [value for level in second if (value := metric.read(level)) is not None]
        if a and b and mean(a):
            yield {"metric": metric.name, "repeats": [len(a), len(b)], **_difference(a, b, metric)}


def _difference(a: Sequence[float], b: Sequence[float], metric: _Metric) -> dict[str, Any]:
    base = mean(a)
    low, high = _welch(a, b)
    verdict = "unknown"
    if low is not None and high is not None:
        rises, falls = low > 0, high < 0
        better = rises if metric.more_is_better else falls
        verdict = "better" if better else "worse" if rises or falls else "noise"
    return {
        "a": base,
        "b": mean(b),
        "change": mean(b) / base - 1,
        "change_low": None if low is None else low / base,
        "change_high": None if high is None else high / base,
        "verdict": verdict,
    }


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95% interval of mean(b) - mean(a); None with too few repeats."""
    if min(len(a), len(b)) < _MIN_REPEATS:
        return None, None
    if len({*a}) == len({*b}) == 1:
        return b[0] - a[0], b[0] - a[0]
    try:
        from scipy.stats import ttest_ind
    except ModuleNotFoundError:
        raise UsageError(
            "comparing needs the library 'scipy'", cure="pip install 'modelkit-sdk[bench]'"
        ) from None
    with warnings.catch_warnings():
        # Repeats that agree to the last digit lose precision, as scipy says, and no verdict.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = ttest_ind(b, a, equal_var=False).confidence_interval(_CONFIDENCE)
    low, high = float(interval.low), float(interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)


def _groups(run: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for level in run["levels"]:
        groups.setdefault((level["subject"], level["load"]), []).append(level)
    return groups


def winners(run: Mapping[str, Any]) -> Iterator[str]:
    """Say who is first with each model at each load, by tokens/s and by TTFT, where several were measured.

    Who failed at a load has no rank there: an engine that answers a tenth of the requests is fast with those.
    """
    models = {subject["name"]: str(subject.get("model") or "") for subject in run["subjects"]}
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for level in run["levels"]:
        model = models.get(level["subject"], "")
        groups.setdefault((model, level["load"]), {}).setdefault(level["subject"], []).append(level)
    num_models = len({model for model, _ in groups})
    for (model, load), subjects in groups.items():
        if len(subjects) < 2:  # noqa: PLR2004 - nobody to be compared with
            continue
        where = f"{model}, {load}" if num_models > 1 else load
        named = {name.removeprefix(f"{model} "): levels for name, levels in subjects.items()}
        failed = {
            name: level["metrics"]
            for name, levels in named.items()
            for level in levels
            if has_failed(level["metrics"])
        }
        ranked = {name: levels for name, levels in named.items() if name not in failed}
        if len(ranked) > 1:
            yield _winner(where, ranked)
        for name, metrics in failed.items():
            yield f"{where}: {name} has no rank: {failures(metrics)}"


def _winner(load: str, subjects: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rates = {
        name: median(throughput(level["metrics"]) for level in levels) for name, levels in subjects.items()
    }
    fastest, slowest = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
    said = [f"{rates[fastest]:,.1f}"]
    if rates[slowest]:
        said.append(f"{rates[fastest] / rates[slowest] - 1:+.0%} over {slowest}")
    shares = [level["roofline"]["share"] for level in subjects[fastest] if level["roofline"]]
    if shares:
        said.append(f"{median(shares):.0%} of the roofline")
    line = f"{load}: most tokens/s {fastest} ({', '.join(said)})"
    waits = {name: median(found) for name, levels in subjects.items() if (found := [*_waits(levels)])}
    if waits:
        soonest = min(waits, key=waits.__getitem__)
        line += f"; soonest first token {soonest} ({waits[soonest]:.1f} ms)"
    limited = [
        name for name, levels in subjects.items() if any(level["metrics"]["verdict"] for level in levels)
    ]
    if limited:
        line += f"; client-limited: {', '.join(limited)}"
    return line


def _waits(levels: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    for level in levels:
        values = level["metrics"]["ttft_ms"]
        if values and values["p50"] is not None:
            yield values["p50"]
