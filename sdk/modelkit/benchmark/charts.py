"""Charts as SVG, by themselves: no library, no script, the same in a page and as a picture.

A chart says what it shows in a title and in its axes; every mark has a `<title>` with its numbers, which a browser shows
when pointed at. Colours are distinguishable without colour vision (Okabe and Ito's).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

__all__ = ["Bar", "Line", "bar_chart", "line_chart"]

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
_WIDTH, _HEIGHT = 640.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 20.0, 46.0, 76.0
_LEGEND_ROW, _CHAR = 18.0, 6.6
_STYLE = (
    'font-family="DejaVu Sans, system-ui, sans-serif" font-size="12" fill="#222" '
    f'viewBox="0 0 {_WIDTH:g} {{height:g}}" width="{_WIDTH:g}" height="{{height:g}}"'
)


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `labels` name its points where they have names."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    dashed: bool = False
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a group: a value, and the range that its repeats have."""

    value: float | None
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    *,
    log_x: bool = False,
    y_from_zero: bool = True,
) -> str:
    """Draw curves over a common axis."""
    points = [point for line in lines for point in line.points if all(map(math.isfinite, point))]
    if not points:
        return ""
    x = _Scale.of([at for at, _ in points], _LEFT, _WIDTH - _RIGHT, log=log_x)
    highest = [value for _, value in points]
    y = _Scale.of([*highest, *([0.0] if y_from_zero else [])], _HEIGHT - _BOTTOM, _TOP)
    marks = [
        mark
        for index, line in enumerate(lines)
        for mark in _curve(line, _colour(index), x, y, x_name, y_name)
    ]
    names = [line.name for line in lines]
    return _frame(
        title, [*_x_axis(x, x_name), *_y_axis(y, y_name), *marks], names, [line.dashed for line in lines]
    )


def bar_chart(title: str, y_name: str, groups: Mapping[str, Mapping[str, Bar]]) -> str:
    """Draw groups of bars: {group: {name: bar}}; a name has the same colour in every group."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    values = [
        value
        for bars in groups.values()
        for bar in bars.values()
        for value in (bar.value, bar.high)
        if value is not None
    ]
    if not values:
        return ""
    y = _Scale.of([0.0, *values], _HEIGHT - _BOTTOM, _TOP)
    room = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    width = room * 0.8 / max(1, len(names))
    marks = []
    for number, (group, bars) in enumerate(groups.items()):
        start = _LEFT + number * room + room * 0.1
        marks.append(_text(start + room * 0.4, _HEIGHT - _BOTTOM + 18, group, anchor="middle"))
        for index, name in enumerate(names):
            if (bar := bars.get(name)) is not None and bar.value is not None:
                marks += _bar(start + index * width, width, bar, f"{group}, {name}", _colour(index), y)
    return _frame(title, [*_y_axis(y, y_name), *marks], names, [False] * len(names))


# --------------------------------------------------------------------------------------------------------------- marks


def _curve(line: Line, colour: str, x: "_Scale", y: "_Scale", x_name: str, y_name: str) -> list[str]:
    labels = [*line.labels, *[""] * len(line.points)]
    points = [
        (at, value, label)
        for (at, value), label in zip(line.points, labels, strict=False)
        if math.isfinite(at) and math.isfinite(value)
    ]
    path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value, _ in points)
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    style = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
    drawn = [f'<polyline points="{path}" {style}><title>{escape(line.name)}</title></polyline>']
    for at, value, label in points if line.marks else ():
        said = escape(
            f"{line.name}{', ' + label if label else ''}: {x_name} {_number(at)}, {y_name} {_number(value)}"
        )
        place = f'cx="{x(at):.1f}" cy="{y(value):.1f}"'
        drawn.append(f'<circle {place} r="3.5" fill="{colour}"><title>{said}</title></circle>')
        if label:
            drawn.append(_text(x(at) + 6, y(value) - 6, label, size=10))
    return drawn


def _bar(left: float, width: float, bar: Bar, name: str, colour: str, y: "_Scale") -> list[str]:
    assert bar.value is not None
    top, bottom, middle = y(bar.value), y(0.0), left + width / 2
    box = f'x="{left + 1:.1f}" y="{top:.1f}" width="{max(1.0, width - 2):.1f}" height="{max(0.5, bottom - top):.1f}"'
    drawn = [f'<rect {box} fill="{colour}"><title>{escape(name)}: {_number(bar.value)}</title></rect>']
    value = _number(bar.value)
    if len(value) * _CHAR * 0.8 <= width + 6:
        drawn.append(_text(middle, y(max(bar.value, bar.high or 0.0)) - 5, value, anchor="middle", size=10))
    if bar.low is not None and bar.high is not None and bar.high > bar.low:
        drawn.append(
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(bar.low):.1f}" y2="{y(bar.high):.1f}" stroke="#222"/>'
        )
    return drawn


def _x_axis(x: "_Scale", name: str) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    drawn = [_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, name, anchor="middle")]
    for at in x.ticks():
        left = x(at)
        drawn.append(f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#888"/>')
        drawn.append(_text(left, bottom + 18, _number(at), anchor="middle"))
    return drawn


def _y_axis(y: "_Scale", name: str) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    drawn = [
        f'<text x="16" y="{middle:g}" text-anchor="middle" transform="rotate(-90 16 {middle:g})">{escape(name)}</text>'
    ]
    for value in y.ticks():
        top = y(value)
        drawn.append(
            f'<line x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{top:.1f}" y2="{top:.1f}" stroke="#ddd"/>'
        )
        drawn.append(_text(_LEFT - 6, top + 4, _number(value), anchor="end"))
    return drawn


def _frame(title: str, marks: Sequence[str], names: Sequence[str], dashed: Sequence[bool]) -> str:
    legend, rows = _legend(names, dashed)
    height = _HEIGHT + max(0, rows - 1) * _LEGEND_ROW
    head = f'<text x="{_WIDTH / 2:g}" y="22" text-anchor="middle" font-size="15" font-weight="bold">{escape(title)}</text>'
    axis = f'<line x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{_HEIGHT - _BOTTOM:g}" y2="{_HEIGHT - _BOTTOM:g}" stroke="#888"/>'
    style = _STYLE.format(height=height)
    label = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" {style}>\n'
        + "\n".join([head, *marks, axis, *legend])
        + "\n</svg>"
    )


def _legend(names: Sequence[str], dashed: Sequence[bool]) -> tuple[list[str], int]:
    drawn, left, row = [], _LEFT, 0
    for index, (name, is_dashed) in enumerate(zip(names, dashed, strict=True)):
        width = 30 + len(name) * _CHAR
        if left + width > _WIDTH - _RIGHT and left > _LEFT:
            left, row = _LEFT, row + 1
        top = _HEIGHT - _BOTTOM + 62 + row * _LEGEND_ROW
        dash = ' stroke-dasharray="4 3"' if is_dashed else ""
        drawn.append(
            f'<line x1="{left:.1f}" x2="{left + 16:.1f}" y1="{top - 4:g}" y2="{top - 4:g}" stroke="{_colour(index)}" stroke-width="4"{dash}/>'
        )
        drawn.append(_text(left + 21, top, name))
        left += width
    return drawn, row + 1


def _text(left: float, top: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


# --------------------------------------------------------------------------------------------------------------- scales


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels, over round numbers."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, log: bool = False) -> "_Scale":
        low, high = min(values), max(values)
        if log and low > 0:
            return cls(low, high if high > low else low * 2, start, end, log=True)
        step = _step(low, high)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high if high > low else low + 1, start, end)

    def __call__(self, value: float) -> float:
        of: Callable[[float], float] = math.log if self.log else float
        share = (of(value) - of(self.low)) / (of(self.high) - of(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values between the ends."""
        if self.log:
            powers = range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)
            doubles = [2.0**power for power in powers]
            return [value for value in doubles if self.low * 0.999 <= value <= self.high * 1.001]
        step = _step(self.low, self.high)
        return [self.low + step * number for number in range(round((self.high - self.low) / step) + 1)]


def _step(low: float, high: float) -> float:
    """Return 1, 2 or 5 times a power of ten: about five of them between the ends."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    return float(next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5))  # noqa: PLR2004 - about five ticks


def _number(value: float) -> str:
    if value and abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:,.1f}"  # noqa: PLR2004


def thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Return at most so many points of a long curve, its ends among them."""
    if len(points) <= most:
        return list(points)
    step = len(points) / (most - 1)
    chosen = [points[min(len(points) - 1, int(index * step))] for index in range(most - 1)]
    return [*chosen, points[-1]]


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve that holds each value until the next."""
    drawn = [points[0]] if points else []
    for (_, before), (at, value) in pairwise(points):
        drawn += [(at, before), (at, value)]
    return drawn
