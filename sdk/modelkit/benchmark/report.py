"""The report: one HTML page that needs nothing else, with the charts that a comparison of engines shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Final

from modelkit.benchmark.charts import Bar, Line, bar_chart, line_chart, steps, thinned
from modelkit.benchmark.metrics import failures, has_failed, latencies
from modelkit.benchmark.record import Record
from modelkit.benchmark.results import load_records, load_run
from modelkit.benchmark.sweep import throughput
from modelkit.errors import UsageError

__all__ = ["Written", "render_page", "together", "write_report"]

_TIMELINE_BINS = 120
_SMALL = 100
NS: Final = 1e-9

Level = Mapping[str, Any]
Chart = tuple[str, str]  # (name, SVG)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    page: Path
    num_charts: int
    pngs: tuple[Path, ...]


@dataclass(slots=True)
class _Data:
    """All runs of a page: their levels, and the requests of each."""

    runs: list[dict[str, Any]]
    levels: list[tuple[Level, list[Record]]]

    def subjects(self) -> Iterator[dict[str, Any]]:
        """Yield the subjects of all runs."""
        for run in self.runs:
            yield from run["subjects"]

    def models(self) -> "Iterator[tuple[str, _Data]]":
        """Yield each model with what was measured of it."""
        of = {subject["name"]: str(subject.get("model") or "") for subject in self.subjects()}
        for model in dict.fromkeys(of.get(level["subject"], "") for level, _ in self.levels):
            levels = [pair for pair in self.levels if of.get(pair[0]["subject"], "") == model]
            yield model, _Data(self.runs, levels)


def write_report(folders: Sequence[Path], page: Path, *, title: str | None = None) -> Written:
    """Write the page of one or several runs, and each chart as a PNG beside it where the library for that is installed.

    Raises UsageError where a folder holds no run, or the page cannot be written.
    """
    data = _load(folders)
    # A bar of an engine that answered a tenth of the requests would be read as its speed; the table has its figures.
    drawn = [(level, records) for level, records in data.levels if not has_failed(level["metrics"])]
    charts = list(_charts(_Data(data.runs, drawn)))
    html = render_page(data.runs, data.levels, charts, title or _title(data))
    try:
        page.write_text(html, encoding="utf-8")
        # Several pages may lie in one folder.
        name = "charts" if page.stem == "report" else f"{page.stem}-charts"
        pngs = tuple(_write_pngs(charts, page.with_name(name)))
    except OSError as error:
        raise UsageError(
            f"cannot write {page}: {error.strerror}", cure="name a file that can be written"
        ) from error
    return Written(page, len(charts), pngs)


def together(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the subjects and levels of several runs as those of one."""
    data = _load(folders)
    return {
        "subjects": list(data.subjects()),
        "levels": [level for level, _ in data.levels],
        "failed": [each for run in data.runs for each in run.get("failed", ())],
    }


def _load(folders: Sequence[Path]) -> _Data:
    data = _Data([], [])
    seen: set[str] = set()
    for folder in folders:
        run = load_run(folder)
        records = load_records(folder if folder.is_dir() else folder.parent)
        data.runs.append(run)
        for level in run["levels"]:
            # The same subject in two runs is two subjects on one page.
            twice = {"subject": f"{level['subject']} ({run['run_id']})"} if level["id"] in seen else {}
            data.levels.append(({**level, **twice}, records.get(level["id"], [])))
        seen |= {level["id"] for level in run["levels"]}
    return data


def _title(data: _Data) -> str:
    names = list(dict.fromkeys(str(subject.get("model") or subject["name"]) for subject in data.subjects()))
    return f"{', '.join(names)}: modelkit bench"


# ----------------------------------------------------------------------------------------------------------------- charts


def _charts(data: _Data) -> Iterator[Chart]:
    """Yield every chart that the levels have something for: bars of all models, curves of each."""
    for name, svg in _bars(data):
        if svg:
            yield name, svg
    models = list(data.models())
    for model, part in models:
        note = f", {model}" if len(models) > 1 else ""
        for draw in (_sweeps, _distributions, _timelines):
            for name, svg in draw(part, note):
                if svg:
                    yield f"{name}{note}", svg


def _bars(data: _Data) -> Iterator[Chart]:
    """Yield TTFT and tokens/s of each subject at each load."""
    by_load = _by_load(data)
    if len(by_load) > 8:  # noqa: PLR2004 - a sweep; curves show it better
        return
    for load, subjects in by_load.items():
        rate = {
            name: _bar([throughput(level["metrics"]) for level in levels])
            for name, levels in subjects.items()
        }
        ttft = {name: _bar([_p50(level, "ttft_ms") for level in levels]) for name, levels in subjects.items()}
        yield f"tokens-per-s {load}", bar_chart(f"Output tokens/s, {load}", "tokens/s", _by_model(data, rate))
        yield (
            f"ttft {load}",
            bar_chart(f"Time to first token, {load}", "ms at the median", _by_model(data, ttft)),
        )
        decode = {
            name: _bar([_p50(level, "req_tok_s_decode") for level in levels])
            for name, levels in subjects.items()
        }
        yield (
            f"decode {load}",
            bar_chart(f"Tokens/s of one request, {load}", "tokens/s", _by_model(data, decode)),
        )
        share = {
            name: _bar([level["roofline"]["share"] * 100 for level in levels if level["roofline"]])
            for name, levels in subjects.items()
        }
        yield f"roofline {load}", bar_chart(f"Share of the roofline, {load}", "%", _by_model(data, share))


def _by_model(data: _Data, bars: Mapping[str, Bar | None]) -> dict[str, dict[str, Bar]]:
    """Group bars by model, a colour for each engine; subjects without an engine are a group of their own."""
    info = {subject["name"]: subject for subject in data.subjects()}
    groups: dict[str, dict[str, Bar]] = {}
    for name, bar in bars.items():
        if bar is None:
            continue
        subject = info.get(name, {})
        model = str(subject.get("model") or "")
        label = name.removeprefix(f"{model} ") if model else name
        groups.setdefault(model, {})[label] = bar
    return groups


def _sweeps(data: _Data, note: str) -> Iterator[Chart]:
    """Yield the curves over the load: throughput, throughput for each caller, and latency over throughput."""
    closed = _points(data, ("closed", "burst"), "concurrency")
    opened = _points(data, ("open",), "rate")
    if any(len(points) > 1 for points in closed.values()):
        yield (
            "throughput",
            line_chart(
                f"Throughput{note}",
                "callers",
                "tokens/s",
                [*_lines(closed, _load_of, _rate), *_rooflines(closed)],
                log_x=True,
            ),
        )
        yield (
            "pareto",
            line_chart(
                f"What one caller gets, and all together{note}",
                "tokens/s of all",
                "tokens/s of one",
                _lines(closed, _rate, lambda levels: _median_p50(levels, "req_tok_s_decode"), labelled=True),
            ),
        )
        yield (
            "latency-throughput",
            line_chart(
                f"Latency against throughput{note}",
                "tokens/s",
                "TTFT p50, ms",
                _lines(closed, _rate, lambda levels: _median_p50(levels, "ttft_ms"), labelled=True),
            ),
        )
    if any(len(points) > 1 for points in opened.values()):
        yield (
            "rate-ttft",
            line_chart(
                f"Open loop: time to first token from the scheduled time{note}",
                "requests/s",
                "TTFT p99, ms",
                _lines(opened, _load_of, lambda levels: _median_of(levels, "ttft_sched_ms", "p99")),
            ),
        )
        yield (
            "goodput",
            line_chart(
                f"Goodput{note}",
                "requests/s asked",
                "requests/s within the objectives",
                _lines(opened, _load_of, lambda levels: _plain(levels, "goodput_req_s")),
            ),
        )


def _distributions(data: _Data, note: str) -> Iterator[Chart]:
    """Yield TTFT and ITL as cumulative shares, a chart for each load (the first repeat)."""
    loads = list(_by_load(data))
    chosen = loads if len(loads) <= 4 else [loads[0], loads[-1]]  # noqa: PLR2004
    for load in chosen:
        ttft, itl = [], []
        for level, records in data.levels:
            if level["load"] != load or level["repeat"] or not records:
                continue
            found = [
                latencies(record, level["mode"]) for record in records if record.is_ok and not record.is_ramp
            ]
            ttft.append(
                Line(level["subject"], _cumulative([(one.ttft_sched * 1e3, 1) for one in found]), marks=False)
            )
            gaps = [(gap * 1e3, number) for one in found for gap, number in one.itl]
            itl.append(Line(level["subject"], _cumulative(gaps), marks=False))
        yield (
            f"ttft-cdf {load}",
            line_chart(f"Time to first token, {load}{note}", "ms", "share of requests, %", ttft),
        )
        yield (
            f"itl-cdf {load}",
            line_chart(f"Inter-token latency, {load}{note}", "ms (to p99.9)", "share of tokens, %", itl),
        )


def _timelines(data: _Data, note: str) -> Iterator[Chart]:
    """Yield requests in flight and tokens/s over time, of the heaviest load of each subject."""
    heaviest: dict[str, tuple[Level, list[Record]]] = {}
    for level, records in data.levels:
        if records and not level["repeat"]:
            known = heaviest.get(level["subject"])
            if known is None or _weight(level) >= _weight(known[0]):
                heaviest[level["subject"]] = (level, records)
    if not heaviest:
        return
    flights, rates = [], []
    for name, (level, records) in heaviest.items():
        label = f"{name}, {level['load']}"
        flights.append(Line(label, thinned(steps(_in_flight(records))), marks=False))
        rates.append(Line(label, _tokens_over_time(records), marks=False))
    yield "timeline-inflight", line_chart(f"Requests in flight over time{note}", "s", "requests", flights)
    yield "timeline-tokens", line_chart(f"Output tokens/s over time{note}", "s", "tokens/s", rates)


def _in_flight(records: Sequence[Record]) -> list[tuple[float, float]]:
    begun = min(record.sent_ns for record in records)
    changes = sorted(
        [((record.sent_ns - begun) * NS, 1) for record in records]
        + [((record.ended_ns - begun) * NS, -1) for record in records]
    )
    totals = accumulate(change for _, change in changes)
    return [(at, float(total)) for (at, _), total in zip(changes, totals, strict=True)]


def _tokens_over_time(records: Sequence[Record]) -> list[tuple[float, float]]:
    begun = min(record.sent_ns for record in records)
    length_s = max((record.ended_ns - begun) * NS for record in records)
    width_s = length_s / _TIMELINE_BINS
    bins = [0] * _TIMELINE_BINS
    for record in records:
        for at, number in zip(record.times_ns, record.tokens, strict=True):
            bins[min(_TIMELINE_BINS - 1, int((at - begun) * NS / width_s))] += number
    return [((index + 0.5) * width_s, number / width_s) for index, number in enumerate(bins)]


def _cumulative(pairs: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Return (value, share up to it in %), up to 99.9%: the rest would make the axis and hide the curve."""
    if not pairs:
        return []
    ordered = sorted(pairs)
    whole = sum(weight for _, weight in ordered)
    points, so_far = [(ordered[0][0], 0.0)], 0
    for value, weight in ordered:
        so_far += weight
        points.append((value, 100 * so_far / whole))
        if so_far >= 0.999 * whole:
            break
    return thinned(points)


# ------------------------------------------------------------------------------------------------------ reading of levels


def _by_load(data: _Data) -> dict[str, dict[str, list[Level]]]:
    groups: dict[str, dict[str, list[Level]]] = {}
    for level, _ in data.levels:
        groups.setdefault(level["load"], {}).setdefault(level["subject"], []).append(level)
    return groups


def _points(data: _Data, modes: Sequence[str], axis: str) -> dict[str, list[list[Level]]]:
    """Return the repeats of each load of each subject, by load."""
    groups: dict[str, dict[float, list[Level]]] = {}
    for level, _ in data.levels:
        if level["mode"] in modes and level[axis] is not None:
            groups.setdefault(level["subject"], {}).setdefault(level[axis], []).append(level)
    return {name: [found[at] for at in sorted(found)] for name, found in groups.items()}


def _lines(points: Mapping[str, list[list[Level]]], x: Any, y: Any, *, labelled: bool = False) -> list[Line]:
    lines = []
    for name, found in points.items():
        placed = [(x(levels), y(levels), levels[0]["load"]) for levels in found]
        usable = [(at, value, label) for at, value, label in placed if at is not None and value is not None]
        labels = [label for *_, label in usable] if labelled else []
        lines.append(Line(name, [(at, value) for at, value, _ in usable], labels))
    return lines


def _rooflines(points: Mapping[str, list[list[Level]]]) -> list[Line]:
    """Return what the hardware would allow at most, once for each different one."""
    curves: dict[tuple[tuple[float, float], ...], None] = {}
    for found in points.values():
        best = tuple(
            (float(levels[0]["concurrency"]), levels[0]["roofline"]["with_prefill_tok_s"])
            for levels in found
            if levels[0]["roofline"]
        )
        if len(best) > 1:
            curves[best] = None
    return [Line("roofline", list(curve), dashed=True, marks=False) for curve in curves]


def _bar(values: Sequence[float | None]) -> Bar | None:
    found = [value for value in values if value is not None]
    return Bar(median(found), min(found), max(found)) if found else None


def _p50(level: Level, name: str) -> float | None:
    values = level["metrics"][name]
    return values["p50"] if values else None


def _median_p50(levels: Sequence[Level], name: str) -> float | None:
    return _median_of(levels, name, "p50")


def _median_of(levels: Sequence[Level], name: str, which: str) -> float | None:
    found = [
        values[which]
        for level in levels
        if (values := level["metrics"][name]) is not None and values[which] is not None
    ]
    return median(found) if found else None


def _plain(levels: Sequence[Level], name: str) -> float | None:
    found = [level["metrics"][name] for level in levels if level["metrics"][name] is not None]
    return median(found) if found else None


def _rate(levels: Sequence[Level]) -> float:
    return float(median(throughput(level["metrics"]) for level in levels))


def _load_of(levels: Sequence[Level]) -> float:
    level = levels[0]
    return float(level["rate"] if level["mode"] == "open" else level["concurrency"])


def _weight(level: Level) -> float:
    return float(level["concurrency"] or level["rate"] or 0)


# ------------------------------------------------------------------------------------------------------------------- page


def render_page(
    runs: Sequence[Mapping[str, Any]],
    levels: Sequence[tuple[Level, Sequence[Record]]],
    charts: Sequence[Chart],
    title: str,
) -> str:
    """Return the page."""
    from importlib.resources import files

    from jinja2 import Environment

    source = files("modelkit.benchmark").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    page = environment.from_string(source).render(
        title=title,
        runs=runs,
        machines=list(dict.fromkeys(_machine(run["host"]) for run in runs)),
        workloads=list(dict.fromkeys(_asked(run["settings"]) for run in runs)),
        levels=[level for level, _ in levels],
        charts=charts,
        measured={level["subject"] for level, _ in levels},
        small=_SMALL,
        throughput=throughput,
        failed=[
            f"{level['subject']}, {level['load']}: {failures(level['metrics'])}; not in the charts, and no rank"
            for level, _ in levels
            if has_failed(level["metrics"])
        ],
    )
    return str(page)


def _machine(host: Mapping[str, Any]) -> str:
    gpus = [f"{gpu['name']} (driver {gpu['driver']})" for gpu in host["gpus"]]
    return ", ".join([*gpus, f"{host['num_cpus']} x {host['cpu']}", host["system"]])


def _asked(settings: Mapping[str, Any]) -> str:
    workload = settings["workload"]
    said = [
        f"{workload['input_tokens']} tokens in, {workload['output_tokens']} out, {workload['kind']} prompts"
    ]
    if workload.get("shared_prefix_tokens"):
        said.append(f"{workload['shared_prefix_tokens']} tokens of them shared")
    said.append(f"seed {workload['seed']}, temperature 0")
    if settings.get("slo"):
        said.append(f"objectives {', '.join(settings['slo'])}")
    return "; ".join(said)


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _write_pngs(charts: Sequence[Chart], folder: Path) -> Iterator[Path]:
    try:
        import resvg_py
    except ModuleNotFoundError:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in charts:
        safe = "".join(char if char.isalnum() or char in "=.-" else "-" for char in name)
        path = folder / f"{safe}.png"
        path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=2)))
        yield path
