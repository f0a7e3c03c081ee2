"""Small statistics, written out so that the report can say exactly what they are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

__all__ = ["Distribution", "nearest_rank", "wilson_interval"]

PERCENTILES = (50, 90, 95, 99)
_Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and nearest-rank percentiles of raw values. A failed request is +inf: it counts in every percentile.

    The mean is that of the finite values. JSON has no infinity, so there it is null.
    """

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float], weights: Iterable[float] | None = None) -> "Distribution | None":
        """Return the distribution of values that count `weights` times each; None where there are none."""
        pairs = sorted(
            (value, weight) for value, weight in zip(values, _weights(weights), strict=False) if weight > 0
        )
        if not pairs:
            return None
        ordered = [value for value, _ in pairs]
        ranks = list(accumulate(weight for _, weight in pairs))
        finite = [(value, weight) for value, weight in pairs if math.isfinite(value)]
        total = sum(weight for _, weight in finite)
        mean = sum(value * weight for value, weight in finite) / total if total else math.inf
        p50, p90, p95, p99 = (_at_rank(ordered, ranks, percent) for percent in PERCENTILES)
        return cls(round(ranks[-1]), mean, p50, p90, p95, p99, ordered[-1])

    def at(self, statistic: str) -> float:
        """Return "mean", "p50", "p90", "p95", "p99" or "max"."""
        return float(getattr(self, statistic))

    def as_json(self, scale: float = 1.0, digits: int = 4) -> dict[str, Any]:
        """Return all of it, times `scale`."""
        names = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")
        values = {name: _rounded(self.at(name) * scale, digits) for name in names}
        return {"n": self.n, **values}


def _weights(weights: Iterable[float] | None) -> Iterable[float]:
    if weights is not None:
        return weights
    from itertools import repeat

    return repeat(1.0)


def _at_rank(ordered: Sequence[float], ranks: Sequence[float], percent: float) -> float:
    """Return the first value whose cumulative weight reaches the rank."""
    from bisect import bisect_left

    rank = percent / 100 * ranks[-1]
    # What rounding adds to a sum must not push a rank to the next value.
    return ordered[min(bisect_left(ranks, rank * (1 - 1e-12)), len(ordered) - 1)]


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered) - 1e-9) - 1)]


def wilson_interval(num_met: int, num_all: int) -> tuple[float, float]:
    """Return the 95% interval of a share.

    Source: https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    """
    if not num_all:
        return 0.0, 1.0
    share, z2 = num_met / num_all, _Z_95**2
    centre = share + z2 / (2 * num_all)
    margin = _Z_95 * math.sqrt(share * (1 - share) / num_all + z2 / (4 * num_all**2))
    whole = 1 + z2 / num_all
    return max(0.0, (centre - margin) / whole), min(1.0, (centre + margin) / whole)


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
