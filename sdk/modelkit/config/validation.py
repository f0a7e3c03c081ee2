"""A tree of values to a Config, or to everything that is wrong with it: single values first, then the rules."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modelkit.config.explain import explain, nearest
from modelkit.config.keys import nearest_key
from modelkit.config.models import Config
from modelkit.config.quantities import FROM_FILE
from modelkit.config.rules import RULES, Finding, Subject
from modelkit.config.tree import MapNode, to_python
from modelkit.config.tree import Path as TreePath
from modelkit.errors import Problem

__all__ = ["validate"]

# Nobody reads more, and looking for the nearest name takes a millisecond each.
_MAX_EXPLAINED = 100

# Dropping a bad value can uncover one more: its section, then the config, lacks a required key.
_MAX_SALVAGES = 4


def validate(root: MapNode, model_dir: Path) -> tuple[Config | None, list[Problem]]:
    """Return the config, None where it has errors, and every problem found."""
    data = to_python(root)
    config, errors = _try(data)
    problems = [explain(error, root) for error in errors[:_MAX_EXPLAINED]]
    if len(errors) > _MAX_EXPLAINED:
        message = f"{len(errors) - _MAX_EXPLAINED} more problems with keys and values"
        end = root.span.source.span(len(root.span.source.text))
        problems.append(end.problem(message, "mend those that are listed first"))
    bad = [loc for error in errors for loc in _blame(error)]
    salvaged = config or _salvage(data, errors)
    if salvaged is not None:
        problems += [_locate(finding, root) for finding in _apply_rules(salvaged, model_dir, bad)]
    return config, problems


def _try(data: Any) -> tuple[Config | None, list[ErrorDetails]]:
    try:
        return Config.model_validate(data, by_name=False, by_alias=True, context=FROM_FILE), []
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)


def _salvage(data: Any, errors: Sequence[ErrorDetails]) -> Config | None:
    """Return a config without the bad values, so that the rules can look at the others in the same run."""
    for _ in range(_MAX_SALVAGES):
        # From the back, so that dropping one item of a list does not move the next.
        for loc in sorted(map(_culprit, errors), key=_sort_key, reverse=True):
            _drop(data, loc)
        data.setdefault("model", {"id": "unknown"})
        config, errors = _try(data)
        if config is not None:
            return config
    return None


def _blame(error: ErrorDetails) -> Iterable[TreePath]:
    """Yield the path of a bad value and, for an unknown key, of the key that was probably meant."""
    path: TreePath = error["loc"]
    yield path
    guess = nearest_key(path) if error["type"] == "extra_forbidden" else None
    if guess is not None:
        yield (*path[:-1], guess)


def _culprit(error: ErrorDetails) -> TreePath:
    """Return what to drop: the bad value, or the section that lacks a required one."""
    return error["loc"][:-1] if error["type"] == "missing" else error["loc"]


def _sort_key(loc: TreePath) -> list[tuple[bool, int, str]]:
    return [(isinstance(step, int), step, "") if isinstance(step, int) else (False, 0, step) for step in loc]


def _drop(data: Any, loc: TreePath) -> None:
    """Delete the value at `loc`, if it is still there."""
    if not loc:
        return
    *parents, last = loc
    for step in parents:
        if not _has(data, step):
            return
        data = data[step]
    if _has(data, last):
        del data[last]


def _has(data: Any, step: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(step, int) and step < len(data)
    return isinstance(data, dict) and step in data


def _apply_rules(config: Config, model_dir: Path, bad: Sequence[TreePath]) -> Iterable[Finding]:
    """Yield what the rules find, but nothing that rests on a value already known to be bad."""
    for rule in RULES:
        for finding in rule(Subject(config, model_dir)):
            touched = (finding.at, *finding.because_of)
            if not any(_overlap(path, loc) for path in touched for loc in bad):
                yield finding


def _overlap(one: TreePath, other: TreePath) -> bool:
    """Tell whether one path is the other, or leads to it."""
    num = min(len(one), len(other))
    return one[:num] == other[:num]


def _locate(finding: Finding, root: MapNode) -> Problem:
    entry = nearest(root, finding.at)
    return entry.value.span.problem(finding.message, finding.cure, severity=finding.severity)
