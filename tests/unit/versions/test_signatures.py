"""Compatibility: what breaks the callers of the last version, said in one sentence each, and what does not."""
# ruff: noqa: B008 - a Field as a default is how an author writes limits

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from modelkit import Field, Model, method
from modelkit.model.signature import method_names, read_signature
from modelkit.versions.signatures import breaking_changes, signatures_document


def document(function, name="predict"):
    function.__name__ = name
    made = type("Made", (Model,), {name: method(function), "__module__": __name__})
    return signatures_document({each: read_signature(made, each) for each in method_names(made)})


@dataclass
class Box:
    x: int
    label: str = ""


@dataclass
class BoxWithScore:
    x: int
    score: float
    label: str = ""


@dataclass
class BoxWithout:
    x: int


BREAKING = [
    (lambda self, a: a, {"a": str, "return": str}, lambda self: "", {"return": str}, "argument 'a' was removed"),
    (lambda self, a: a, {"a": str, "return": str}, lambda self, b: b, {"b": str, "return": str},
     "argument 'a' was renamed to 'b'"),
    (lambda self, a="": a, {"a": str, "return": str}, lambda self, a: a, {"a": str, "return": str},
     "argument 'a' has no default any more"),
    (lambda self: "", {"return": str}, lambda self, b: "", {"b": str, "return": str},
     "argument 'b' was added without a default"),
    (lambda self, a: "", {"a": str | int, "return": str}, lambda self, a: "", {"a": str, "return": str},
     "argument 'a' took str | int and takes str now"),
    (lambda self, a: "", {"a": str, "return": str}, lambda self, a: "", {"a": Literal["x"], "return": str},
     "argument 'a' took str and takes 'x' now"),
    (lambda self, a: "", {"a": list[float], "return": str}, lambda self, a: "", {"a": list[int], "return": str},
     "argument 'a' took list[float] and takes list[int] now"),
    (lambda self, a=Field(default=1): "", {"a": int, "return": str},
     lambda self, a=Field(default=1, ge=0): "", {"a": int, "return": str}, "argument 'a' has a narrower minimum"),
    (lambda self, a=Field(default=1, le=9): "", {"a": int, "return": str},
     lambda self, a=Field(default=1, le=5): "", {"a": int, "return": str}, "argument 'a' has a narrower maximum"),
    (lambda self, a: "", {"a": Box, "return": str}, lambda self, a: "", {"a": BoxWithScore, "return": str},
     "argument 'a' took Box(x: int, label: str) and takes BoxWithScore(x: int, score: float, label: str) now"),
    (lambda self, a: "", {"a": Box, "return": str}, lambda self, a: "", {"a": BoxWithout, "return": str},
     "argument 'a' took Box(x: int, label: str) and takes BoxWithout(x: int) now"),
    (lambda self: "", {"return": str}, lambda self: 1, {"return": int}, "it returned str and returns int now"),
    (lambda self: "", {"return": str}, lambda self: "", {"return": str | None},
     "it returned str and returns str | None now"),
    (lambda self: "", {"return": Box}, lambda self: "", {"return": BoxWithout},
     "it returned Box(x: int, label: str) and returns BoxWithout(x: int) now"),
    (lambda self: "", {"return": str}, lambda self: iter(()), {"return": Iterator[str]},
     "it was unary and is server_stream now"),
]  # fmt: skip

HARMLESS = [
    (lambda self, a: "", {"a": str, "return": str}, lambda self, a="x": "", {"a": str, "return": str}),
    (lambda self, a: "", {"a": str, "return": str}, lambda self, a, b=1: "", {"a": str, "b": int, "return": str}),
    (lambda self, a: "", {"a": str, "return": str}, lambda self, a: "", {"a": str | bytes, "return": str}),
    (lambda self, a: "", {"a": int, "return": str}, lambda self, a: "", {"a": float, "return": str}),
    (lambda self, a: "", {"a": Literal["x"], "return": str}, lambda self, a: "", {"a": Literal["x", "y"], "return": str}),
    (lambda self, a: "", {"a": Literal["x"], "return": str}, lambda self, a: "", {"a": str, "return": str}),
    (lambda self, a: "", {"a": BoxWithout, "return": str}, lambda self, a: "", {"a": Box, "return": str}),
    (lambda self: "", {"return": str | None}, lambda self: "", {"return": str}),
    (lambda self: "", {"return": Box}, lambda self: "", {"return": BoxWithScore}),
    (lambda self, a=Field(default=1, ge=0): "", {"a": int, "return": str},
     lambda self, a=Field(default=1): "", {"a": int, "return": str}),
    (lambda self, a="x": "", {"a": str, "return": str}, lambda self, a="y": "", {"a": str, "return": str}),
]  # fmt: skip


def made(function, annotations):
    function.__annotations__ = annotations
    return document(function)


@pytest.mark.parametrize(("old", "old_types", "new", "new_types", "change"), BREAKING)
def test_what_breaks_callers_is_said(old, old_types, new, new_types, change):
    assert breaking_changes(made(old, old_types), made(new, new_types)) == [f"predict: {change}"]


@pytest.mark.parametrize(("old", "old_types", "new", "new_types"), HARMLESS)
def test_what_callers_can_live_with_is_not(old, old_types, new, new_types):
    assert breaking_changes(made(old, old_types), made(new, new_types)) == []


def test_a_method_that_is_gone():
    old = made(lambda self: "", {"return": str})
    assert breaking_changes(old, {"methods": {}}) == ["predict: the method was removed"]
    assert breaking_changes({"methods": {}}, old) == []


def test_the_document_is_json_and_always_the_same():
    def function(self, a=b"x", b=Box(1)): ...

    function.__annotations__ = {"a": bytes, "b": Box, "return": dict[str, list[int]]}
    first = json.dumps(document(function), sort_keys=True)
    assert first == json.dumps(document(function), sort_keys=True)
    assert breaking_changes(json.loads(first), json.loads(first)) == []
