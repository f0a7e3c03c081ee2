"""`--set compute.num_accelerators=2`: one value laid over the config, its place being the option itself.

A name that has dots is put in quotes: `--set 'checkpoints.additional."v1.5".revision=main'`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from modelkit.config.clarifai import MOVED
from modelkit.config.parse import parse
from modelkit.config.source import Source, Span
from modelkit.config.tree import Entry, ListNode, MapNode, Node, Scalar
from modelkit.errors import Problem

__all__ = ["apply_overrides"]

_OPTION = "--set "
_NAME = r"""(?:"[^"]+"|'[^']+'|[^.\[\]=\s"'][^.\[\]=\s]*)"""
_PATH = re.compile(rf"{_NAME}(?:\.{_NAME}|\[[0-9]+\])*")
_STEP = re.compile(rf"{_NAME}|[0-9]+")


class _Step(NamedTuple):
    name: str
    span: Span
    is_index: bool = False  # written in brackets


class _CannotSetError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def apply_overrides(root: MapNode, overrides: Sequence[str]) -> tuple[MapNode, list[Problem]]:
    """Return the tree with `path=value` settings laid over it, later ones on top, and what is wrong with them."""
    problems: list[Problem] = []
    for override in overrides:
        source = Source(_OPTION + override)
        path = _PATH.match(source.text, len(_OPTION))
        if path is None or not source.text.startswith("=", path.end()):
            place = source.span(len(_OPTION), len(source.text))
            problems.append(
                place.problem("a setting is a path, '=' and a value", "such as compute.num_accelerators=2")
            )
            continue
        value, found = parse(source, path.end() + 1)
        problems += found
        if found:
            continue
        steps = _translate(
            [
                _Step(_unquoted(step[0]), source.span(*step.span()), source.text[step.start() - 1] == "[")
                for step in _STEP.finditer(*_range(path))
            ]
        )
        try:
            root = _set_in_map(root, steps, value or Scalar(None, "", source.span(len(source.text))))
        except _CannotSetError as error:
            problems.append(error.problem)
    return root, problems


def _unquoted(name: str) -> str:
    return name[1:-1] if name[0] in "\"'" else name


def _range(match: re.Match[str]) -> tuple[str, int, int]:
    return match.string, *match.span()


def _translate(steps: list[_Step]) -> list[_Step]:
    """Put our names in the place of Clarifai's."""
    for old, new in MOVED.items():
        if tuple(step.name for step in steps[: len(old)]) == old:
            place = steps[len(old) - 1].span
            steps = [*(_Step(name, place) for name in new), *steps[len(old) :]]
    return steps


def _set(node: Node | None, steps: Sequence[_Step], value: Node) -> Node:
    if not steps:
        return value
    if isinstance(node, ListNode):
        return _set_in_list(node, steps, value)
    if isinstance(node, MapNode):
        return _set_in_map(node, steps, value)
    step = steps[0]
    if node is None or node.value is None:
        if step.is_index:
            return _set_in_list(ListNode((), step.span), steps, value)
        return _set_in_map(MapNode({}, step.span), steps, value)
    message = f"there is no '{step.name}' here: what is set above it is a single value"
    raise _CannotSetError(step.span.problem(message, "shorten the path"))


def _set_in_map(node: MapNode, steps: Sequence[_Step], value: Node) -> MapNode:
    step, rest = steps[0], steps[1:]
    below = node.entries.get(step.name)
    child = _set(below.value if below else None, rest, value)
    return node.having(step.name, Entry(below.key if below and rest else step.span, child))


def _set_in_list(node: ListNode, steps: Sequence[_Step], value: Node) -> ListNode:
    step, rest = steps[0], steps[1:]
    num = len(node.items)
    if not step.name.isdecimal() or len(step.name) > 6 or int(step.name) > num:  # noqa: PLR2004 - int() has a limit
        cure = (
            f"write a number from 0 to {num}; {num} adds an item"
            if num
            else "write 0, which adds the first item"
        )
        raise _CannotSetError(step.span.problem(f"'{step.name}' is no item of this list of {num}", cure))
    index = int(step.name)
    child = _set(node.items[index] if index < num else None, rest, value)
    return ListNode((*node.items[:index], child, *node.items[index + 1 :]), node.span)
