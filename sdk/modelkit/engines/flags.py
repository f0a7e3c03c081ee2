"""How options become an engine's command line: small makers that the adapters' tables are written with."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from modelkit.errors import UsageError

__all__ = [
    "Flags",
    "choice",
    "flag",
    "json_flag",
    "pairs",
    "refuse",
    "render_args",
    "render_options",
    "speculative",
    "switch",
]

# Turns the value of one option into arguments.
Maker: TypeAlias = Callable[[Any], list[str]]
# An adapter's table: modelkit's name of an option, and how this engine is told.
Flags: TypeAlias = Mapping[str, Maker]


def flag(name: str) -> Maker:
    """`--name value`."""
    return lambda value: [name, str(value)]


def switch(on: str | None, off: str | None = None) -> Maker:
    """`--on` for true and `--off` for false; None where that is what the engine does anyway."""

    def make(value: Any) -> list[str]:
        name = on if value else off
        return [name] if name else []

    return make


def json_flag(name: str) -> Maker:
    """`--name {"json": ...}`."""
    return lambda value: [name, json.dumps(value, separators=(",", ":"))]


def pairs(name: str, *before: str) -> Maker:
    """`--before --name key=value key=value` of a mapping."""
    return lambda value: [*before, name, *(f"{key}={item}" for key, item in value.items())] if value else []


def speculative(draft_model: str, *, spell_method: Callable[[str], str] = str) -> Maker:
    """Speculative settings, named as vLLM does, in the spelling that SGLang and LMDeploy share; `draft_model` is where they differ."""
    names = {
        "method": "--speculative-algorithm",
        "model": draft_model,
        "num_speculative_tokens": "--speculative-num-draft-tokens",
    }

    def make(value: Any) -> list[str]:
        arguments: list[str] = []
        for key, item in value.items():
            name = names.get(key, f"--speculative-{key.replace('_', '-')}")
            arguments += [name, spell_method(str(item)) if key == "method" else str(item)]
        return arguments

    return make


def choice(name: str, values: Mapping[Any, str]) -> Maker:
    """`--name X`, where X is this engine's word for the value; a value without one is refused."""

    def make(value: Any) -> list[str]:
        if value not in values:
            raise UsageError(
                f"this engine has no '{value}' here", cure=f"use one of: {', '.join(map(str, values))}"
            )
        return [name, values[value]] if values[value] else []

    return make


def refuse(reason: str) -> Maker:
    """An option that the engine does not have: asking for it is an error that says why."""

    def make(value: Any) -> list[str]:
        if value in (None, False, {}, ()):
            return []
        raise UsageError(reason, cure="remove the option, or choose another engine")

    return make


def render_options(engine: str, flags: Flags, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments for the options that are set. Raises UsageError, naming the option."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is None or name not in flags:
            continue
        try:
            arguments += flags[name](value)
        except UsageError as error:
            raise UsageError(f"engine.{name} with {engine}: {error.message}", cure=error.cure) from None
    return arguments


def render_args(args: Mapping[str, Any]) -> list[str]:
    """Return `engine.args` as the engine spells them: true is a bare flag, false leaves it out, a list repeats."""
    arguments: list[str] = []
    for key, value in args.items():
        name = key if key.startswith("-") else f"--{key}"
        if value is False:
            continue
        if value is True or value is None:
            arguments.append(name)
        elif isinstance(value, list):
            arguments += [name, *map(str, value)]
        elif isinstance(value, dict):
            arguments += [name, json.dumps(value, separators=(",", ":"))]
        else:
            arguments += [name, str(value)]
    return arguments
