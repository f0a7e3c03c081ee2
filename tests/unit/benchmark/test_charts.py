import xml.etree.ElementTree as ET

import pytest

from modelkit.benchmark.charts import Bar, Line, bar_chart, line_chart, steps, thinned

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg):
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def test_bars_are_as_high_as_their_values():
    root = parse(
        bar_chart("T & <t>", "tokens/s", {"m1": {"a": Bar(100), "b": Bar(50, 40, 60)}, "m2": {"a": Bar(25)}})
    )
    heights = [float(bar.get("height")) for bar in root.iter(f"{SVG}rect")]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert heights[0] == pytest.approx(4 * heights[2], abs=0.2)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == ["m1, a: 100", "m1, b: 50", "m2, a: 25"]
    assert root.get("aria-label") == "T & <t>"


def test_a_line_goes_through_its_points():
    root = parse(line_chart("t", "x", "y", [Line("one", [(0, 0), (5, 50), (10, 100)])]))
    (curve,) = root.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in curve.get("points").split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2  # SVG counts from the top
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_a_doubling_axis_is_even():
    root = parse(line_chart("t", "x", "y", [Line("one", [(1, 1), (2, 1), (4, 1)])], log_x=True))
    (curve,) = root.iter(f"{SVG}polyline")
    lefts = [float(point.split(",")[0]) for point in curve.get("points").split()]
    assert lefts[1] - lefts[0] == pytest.approx(lefts[2] - lefts[1], abs=0.2)


@pytest.mark.parametrize("points", [[(1, 1)], [(1, 0), (1, 0)], [(1, float("inf")), (2, 3)], [(0.0001, 1e9)]])
def test_odd_data_still_makes_a_chart(points):
    assert "nan" not in line_chart("t", "x", "y", [Line("one", points)])
    parse(line_chart("t", "x", "y", [Line("one", points)]))


def test_nothing_to_draw_is_no_chart():
    assert line_chart("t", "x", "y", []) == ""
    assert bar_chart("t", "y", {"m": {"a": Bar(None)}}) == ""
    assert bar_chart("t", "y", {}) == ""


def test_long_curves_are_thinned_with_their_ends():
    points = [(float(number), 0.0) for number in range(10_000)]
    kept = thinned(points, 100)
    assert len(kept) == 100
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert steps([(0, 1), (1, 2)]) == [(0, 1), (1, 1), (1, 2)]
