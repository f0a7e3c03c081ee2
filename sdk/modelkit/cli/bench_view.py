"""What `modelkit bench` shows: lines while it runs (a live one on a terminal), and a table at the end."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelkit.cli import console
from modelkit.errors import ModelkitError

if TYPE_CHECKING:
    from pathlib import Path

    from modelkit.benchmark.load import Counters
    from modelkit.benchmark.runner import LevelPlan

__all__ = ["View", "table"]

_LINE_EVERY_S = 10.0
_SMALL = 100  # below so many requests a 99th percentile says little


class View:
    """Shows how a run goes. On a terminal one line changes; elsewhere there is a line for each stage and each 10 s."""

    def __init__(self) -> None:
        self._live: Any = None
        self._plan: LevelPlan | None = None
        self._total: int | None = None
        self._begun = self._told = 0.0
        self._stage = ""

    def __enter__(self) -> Self:
        if console.is_interactive():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """Something else goes on now."""
        self._stage = text
        if self._live is None:
            console.info(f"{text}...")
        else:
            self._show(text)

    def begin(self, plan: "LevelPlan", total: int | None) -> None:
        """A level begins."""
        self._plan, self._total = plan, total
        self._begun = self._told = time.monotonic()
        self.stage(f"{plan.subject}, {plan.load}: measuring")

    def counters(self, counters: "Counters") -> None:
        """Show how far it is."""
        now = time.monotonic()
        elapsed_s = max(now - self._begun, 1e-9)
        total = f" of {self._total}" if self._total else ""
        done = max(1, counters.num_done - counters.num_failed)
        text = (
            f"{self._stage}: {counters.num_done}{total} requests, {counters.num_started - counters.num_done} in flight, "
            f"{counters.num_tokens / elapsed_s:,.0f} tokens/s, TTFT {counters.ttft_s / done * 1e3:,.0f} ms"
        )
        text += f", {counters.num_failed} failed" if counters.num_failed else ""
        if self._live is not None:
            self._show(f"{text}, {elapsed_s:.0f} s")
        elif now - self._told >= _LINE_EVERY_S:
            self._told = now
            console.info(f"  {text}, {elapsed_s:.0f} s")

    def end(self, level: dict[str, Any], log: "Path | None") -> None:
        """Say what a level gave, or that it failed."""
        from modelkit.benchmark.metrics import failures, has_failed

        metrics = level["metrics"]
        rate = metrics["out_tok_s_steady"] or metrics["out_tok_s_whole"] or 0.0
        if self._live is not None:
            self._show("")
        if has_failed(metrics):
            console.warning(
                f"{level['subject']}, {level['load']}: {failures(metrics)}",
                cure=f"the server's log{f' is {log}' if log else ' says more'}; the same command with --output measures it again",
            )
            return
        console.success(
            f"{level['subject']}, {level['load']}: {rate:,.1f} tokens/s, TTFT {_cell(metrics, 'ttft_ms', 'p50')} ms, "
            f"ITL {_cell(metrics, 'itl_ms', 'p50')} ms at the median, {metrics['n_ok']} requests"
            + (f", {metrics['n_err']} failed" if metrics["n_err"] else "")
            + (f", {metrics['n_short']} of another length" if metrics["n_short"] else "")
        )

    def warn(self, text: str, cure: str = "") -> None:
        """Show something doubtful."""
        console.warning(text, cure=cure)

    def fail(self, error: ModelkitError) -> None:
        """Show why something could not be measured."""
        console.error(error)

    def _show(self, text: str) -> None:
        from rich.text import Text

        self._live.update(Text(text, overflow="ellipsis", no_wrap=True))


# (heading, metric, statistic, format); a statistic of None is a plain number.
_COLUMNS: Sequence[tuple[str, str, str | None, str]] = (
    ("tok/s", "rate", None, ",.1f"),
    ("req/s", "req_s", None, ",.2f"),
    ("TTFT p50", "ttft_ms", "p50", ",.1f"),
    ("p99", "ttft_ms", "p99", ",.1f"),
    ("ITL p50", "itl_ms", "p50", ",.2f"),
    ("p99", "itl_ms", "p99", ",.2f"),
    ("TPOT p50", "tpot_ms", "p50", ",.2f"),
    ("E2E p50", "e2e_s", "p50", ",.2f"),
    ("tok/s each", "req_tok_s_decode", "p50", ",.1f"),
)


def table(run: Mapping[str, Any]) -> str:
    """Draw the levels; times are in ms, E2E in s. A p99 of fewer than 100 requests is in brackets."""
    optional = _optional(run)
    headings = [
        "",
        "load",
        "ok",
        *(heading for heading, *_ in _COLUMNS),
        *(heading for heading, _ in optional),
    ]
    rows = [headings]
    for level in run["levels"]:
        metrics = level["metrics"] | {
            "rate": level["metrics"]["out_tok_s_steady"] or level["metrics"]["out_tok_s_whole"]
        }
        lost = metrics["n_err"] + metrics["n_short"]
        count = f"{metrics['n_ok']}" + (f" ({lost} lost)" if lost else "")
        cells = [_formatted(metrics, name, which, form) for _, name, which, form in _COLUMNS]
        rows.append([level["subject"], level["load"], count, *cells, *(read(level) for _, read in optional)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines = [
        "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]).rstrip()
        for row in rows
    ]
    lines[0] = console.paint(lines[0], "bold", sys.stdout)
    return "\n".join(lines)


def _optional(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the columns that some level has something for."""
    levels = run["levels"]
    columns: list[tuple[str, Any]] = []
    if any(level["roofline"] for level in levels):
        columns.append(
            ("of roofline", lambda level: f"{level['roofline']['share']:.0%}" if level["roofline"] else "-")
        )
    if any(level["metrics"]["slo"] for level in levels):
        columns.append(("goodput", lambda level: f"{level['metrics']['goodput_req_s'] or 0:.2f}"))
        columns.append(("SLO", lambda level: "met" if all(level["metrics"]["slo"].values()) else "missed"))
    return columns


def _formatted(metrics: Mapping[str, Any], name: str, which: str | None, form: str) -> str:
    value = metrics.get(name)
    if which is not None and value is not None:
        few = which == "p99" and value["n"] < _SMALL
        value = value[which]
        if few and value is not None:
            return f"({value:{form}})"
    return "-" if value is None else f"{value:{form}}"


def _cell(metrics: Mapping[str, Any], name: str, which: str) -> str:
    return _formatted(metrics, name, which, ",.1f")
