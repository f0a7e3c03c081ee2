"""From a model folder to a checked Config, or to the list of everything that is wrong with it.

The layers, each laid over the one before: config.yaml, the overlay of an environment, `--set`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from modelkit.config import clarifai, instances
from modelkit.config.folder import find_config, read_config, read_overlay
from modelkit.config.models import Config
from modelkit.config.overrides import apply_overrides
from modelkit.config.parse import parse
from modelkit.config.source import Source, Span
from modelkit.config.tree import ListNode, MapNode, find, merge
from modelkit.config.validation import validate
from modelkit.errors import ConfigError, Problem

__all__ = ["ENVIRONMENT_VARIABLE", "check_config", "load_config", "place_of"]

ENVIRONMENT_VARIABLE = "MODELKIT_ENV"


def load_config(path: Path, *, environment: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a model folder (or of the file given). Raises ConfigError with all problems.

    `environment` names an overlay: `prod` lays config.prod.yaml over config.yaml. It defaults to the environment
    variable MODELKIT_ENV. `overrides` are settings such as `compute.num_accelerators=2`.
    """
    config, problems = check_config(path, environment=environment, overrides=overrides)
    if config is None:
        raise ConfigError(problems)
    return config


def check_config(
    path: Path, *, environment: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Config | None, list[Problem]]:
    """Return the config, None where it has errors, and every problem found, warnings included; see `load_config`."""
    problems: list[Problem] = []
    root = _read_layers(path, environment, problems)
    if root is None:
        root, override_problems = apply_overrides(MapNode({}, Source("").span(0)), overrides)
        return None, problems + override_problems
    root, override_problems = apply_overrides(root, overrides)
    root, instance_problems = instances.fill_in(root)
    config, value_problems = validate(root, find_config(path).parent)
    problems += override_problems + instance_problems + value_problems
    problems.sort(key=_reading_order)
    is_broken = any(problem.severity == "error" for problem in problems)
    return None if is_broken else config, problems


def place_of(
    path: Path,
    keys: Sequence[tuple[str, ...]],
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
) -> Span | None:
    """Return where the first of the keys that is written has its value; None where none of them is.

    For what is found wrong with a value later than the config was read; the arguments are those it was read with.
    """
    root = _read_layers(path, environment, [])
    if root is None:
        return None
    root, _ = apply_overrides(root, overrides)
    entries = (find(root, key) for key in keys)
    return next((entry.value.span for entry in entries if entry is not None), None)


def _read_layers(path: Path, environment: str | None, problems: list[Problem]) -> MapNode | None:
    """Return config.yaml with its overlay merged in; None where either cannot be read."""
    environment = os.environ.get(ENVIRONMENT_VARIABLE) if environment is None else environment
    sources = [read_config(path)]
    if environment and isinstance(sources[0], Source):
        sources.append(read_overlay(find_config(path), environment))
    layers = [_read_layer(source, problems) for source in sources]
    root = layers[0]
    for layer in layers[1:]:
        if root is None or layer is None:
            return None
        merged = merge(root, layer)
        assert isinstance(merged, MapNode)
        root = merged
    return root


def _read_layer(source: Source | Problem, problems: list[Problem]) -> MapNode | None:
    """Return one file's tree in our spelling; None, and why, where it is no mapping at all."""
    if isinstance(source, Problem):
        problems.append(source)
        return None
    tree, found = parse(source)
    problems += found
    start = source.span(0)
    if tree is None:
        if not found:
            problems.append(
                start.problem("the file is empty", "it needs at least 'model:' with an 'id:' below it")
            )
        return None
    if not isinstance(tree, MapNode):
        kind = "a list" if isinstance(tree, ListNode) else "a single value"
        cure = "write sections such as 'model:' at the top level" + (
            ", without '- '" if kind == "a list" else ""
        )
        problems.append(tree.span.problem(f"the file holds {kind}, not sections", cure))
        return None
    tree, found = clarifai.adopt(tree)
    problems += found
    return tree


def _reading_order(problem: Problem) -> tuple[bool, int, str, int, int]:
    """Sort by file, the base before its overlay, and by place; options come last."""
    name = "" if problem.path is None else problem.path.name
    return problem.path is None, len(name), name, problem.line or 0, problem.column or 0
