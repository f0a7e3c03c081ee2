"""YAML 1.2's core schema, not 1.1's; aliases within bounds; each node's place."""

import math

import pytest

from modelkit.config.parse import parse
from modelkit.config.source import Source
from modelkit.config.tree import MapNode, find, to_python


def value_of(text):
    tree, problems = parse(Source(text))
    assert problems == []
    return to_python(tree)


def only_problem(text):
    _, [problem] = parse(Source(text))
    return problem.line, problem.column, problem.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("12", 12),
        ("-12", -12),
        ("+12", 12),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("3.10", 3.1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        (".inf", math.inf),
        ("=", "="),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 3.10", "3.10"),
        ("!!int 0o17", 15),
        ("!!float 1", 1.0),
        ("!!bool true", True),
        ("!!null ~", None),
        ("9" * 5000, "9" * 5000),
        ("1e999", math.inf),
    ],
)
def test_scalars(text, expected):
    assert value_of(f"a: {text}\n") == {"a": expected}


def test_not_a_number_is_a_number():
    assert math.isnan(value_of("a: .nan")["a"])


def test_keys_are_text():
    assert value_of("{1: a, true: b, ~: c, 3.10: d, no: e}") == {
        "1": "a", "true": "b", "~": "c", "3.10": "d", "no": "e",
    }  # fmt: skip


def test_merge_keys_do_not_override():
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: *a, x: 3}\nd: {x: 4, <<: [*a, *b]}\n"
    assert value_of(text) == {
        "a": {"x": 1, "y": 1},
        "b": {"y": 2, "z": 2},
        "c": {"x": 3, "y": 1},
        "d": {"x": 4, "y": 1, "z": 2},
    }


def test_a_quoted_merge_key_is_a_key():
    assert value_of("'<<': 1") == {"<<": 1}


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "\ufeff"])
def test_nothing_is_not_a_tree(text):
    tree, problems = parse(Source(text.removeprefix("\ufeff")))
    assert problems == []
    assert tree is None or to_python(tree) is None


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: 1\na: 2", 2, 1, "'a' is given twice; the first is on line 1"),
        ("a: {b: 1, b: 2}", 1, 11, "'b' is given twice; the first is on line 1"),
        ("1: a\n'1': b", 2, 1, "'1' is given twice; the first is on line 1"),
        ("? [a]\n: b", 1, 3, "a key must be a single word, not a list or a mapping"),
        ("a: &a [*a]", 1, 4, "this anchor contains an alias of itself"),
        ("a: {<<: 1}", 1, 9, "'<<' merges mappings, and this is none"),
        ("a: !local x", 1, 4, "the tag '!local' is not supported"),
        ("a: !!set {x}", 1, 4, "the tag '!!set' is not supported"),
        ("a: !!binary eA==", 1, 4, "the tag '!!binary' is not supported"),
        ("a: !!int x", 1, 4, "'x' is not of the type its tag says"),
        ("a: !!bool yes", 1, 4, "'yes' is not of the type its tag says"),
        ("a: !!float x", 1, 4, "'x' is not of the type its tag says"),
        ("a: !!null x", 1, 4, "'x' is not of the type its tag says"),
        ('a: "\\ud800"', 1, 4, "an escape names half a character"),
        ('a: "\\UFFFFFFFF"', 1, 1, "this is not YAML: Python int too large to convert to C int"),
        ("a: x\n---\nb: y", 3, 1, "a second document starts above this line"),
        ("a: x\n---\n", 3, 1, "a second document starts above this line"),
        (
            "%YAML 3.0\n---\na: b",
            1,
            1,
            "this is not YAML: found incompatible YAML document (version 1.* is required)",
        ),
        ("- a:\n  -\tb: c\n\td: e", 2, 4, "a tab in the indentation"),
    ],
)
def test_problems(text, line, column, message):
    assert only_problem(text) == (line, column, message)


def test_an_alias_points_at_its_anchor():
    tree, _ = parse(Source("a: &x {b: 1}\nc: *x\n"))
    assert isinstance(tree, MapNode)
    assert find(tree, ("c", "b")).value.span.line == 1


def test_line_breaks_are_yamls():
    tree, _ = parse(Source("a: 1\rb: 2\r\nc: 3\x85d: 4\u2028e: 5\n"))
    assert [find(tree, (key,)).key.problem("").line for key in "abcde"] == [1, 2, 3, 4, 5]
    assert [find(tree, (key,)).key.problem("").column for key in "abcde"] == [1] * 5
    assert find(tree, ("c",)).key.problem("").source == "c: 3"


def test_a_part_of_a_text_can_be_parsed_with_its_place_in_the_whole():
    source = Source("--set x=[1, two]")
    tree, _ = parse(source, 8)
    assert to_python(tree) == [1, "two"]
    assert find(tree, (1,)).value.span.problem("").column == 13
