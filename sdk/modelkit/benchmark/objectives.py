"""Service level objectives: `ttft_p95=500ms` is one of a level, and its limit is what each good request has to meet."""

import re
from dataclasses import dataclass
from typing import Final

from modelkit.errors import UsageError, closest

__all__ = ["Objective", "parse_objective"]

# What can be promised, and the unit in which a level's metrics have it.
METRICS: Final = {"ttft": "ms", "tpot": "ms", "itl": "ms", "e2e": "s"}
STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99", "max")
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_FORM = re.compile(
    r"(?P<name>[a-z0-9]+)_(?P<statistic>[a-z0-9]+)\s*=\s*(?P<number>[0-9.]+)\s*(?P<unit>[a-z]+)"
)
_EXAMPLE = "such as --slo ttft_p95=500ms, --slo itl_p99=50ms, --slo e2e_p90=20s"


@dataclass(frozen=True, slots=True)
class Objective:
    """One promise: this statistic of this metric is at most `limit_s` seconds."""

    metric: str
    statistic: str
    limit_s: float

    def __str__(self) -> str:
        unit = METRICS[self.metric]
        return f"{self.metric}_{self.statistic}={self.limit_s / _UNITS_S[unit]:g}{unit}"


def parse_objective(text: str) -> Objective:
    """Read `METRIC_STATISTIC=TIME`. Raises UsageError with the nearest valid spelling."""
    match = _FORM.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"'{text}' is no objective", cure=_EXAMPLE)
    name, statistic, unit = match["name"], match["statistic"], match["unit"]
    for given, known, what in (
        (name, METRICS, "metric"),
        (statistic, STATISTICS, "statistic"),
        (unit, _UNITS_S, "unit"),
    ):
        if given not in known:
            guess = closest(given, list(known))
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise UsageError(
                f"'{text}': there is no {what} '{given}'{hint}", cure=f"there are: {', '.join(known)}"
            )
    try:
        number = float(match["number"])
    except ValueError:
        raise UsageError(f"'{text}': '{match['number']}' is no number", cure=_EXAMPLE) from None
    return Objective(name, statistic, number * _UNITS_S[unit])
