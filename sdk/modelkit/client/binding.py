"""The arguments of a call, checked against the remote signature before anything is sent, as Python does for a local one."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit.client.description import MethodDescription
from modelkit.errors import InvalidArgumentError, Violation, closest

__all__ = ["bind", "merge_arguments", "name_arguments"]


def bind(method: MethodDescription, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name. Raises InvalidArgumentError with all that are unknown, missing or given twice."""
    arguments, violations = _name(method, args, kwargs)
    known = [argument.name for argument in method.arguments]
    violations += [Violation(name, _unknown(name, known)) for name in arguments if name not in known]
    violations += [
        Violation(argument.name, f"is missing; its type is {argument.type}")
        for argument in method.arguments
        if argument.required and argument.name not in arguments
    ]
    _raise_for(method, violations)
    return arguments


def name_arguments(
    method: MethodDescription, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the positional arguments their names and leave every other check to the server."""
    arguments, violations = _name(method, args, kwargs)
    _raise_for(method, violations)
    return arguments


def merge_arguments(arguments: Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Join `arguments={...}`, for names that the client's own parameters have taken, with the keyword arguments."""
    merged = {**(arguments or {}), **kwargs}
    if len(merged) < len(arguments or ()) + len(kwargs):
        twice = ", ".join(f"'{name}'" for name in kwargs if name in (arguments or {}))
        raise InvalidArgumentError(f"{twice} is given both by keyword and in arguments={{...}}")
    return merged


def _name(
    method: MethodDescription, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Violation]]:
    names = [argument.name for argument in method.arguments]
    if len(args) > len(names):
        takes = f"{len(names)} argument{'' if len(names) == 1 else 's'}"
        raise InvalidArgumentError(f"{method.name}() takes {takes}, {len(args)} were given", cure=method.hint)
    arguments = dict(zip(names, args, strict=False))
    violations = [Violation(name, "is given twice") for name in kwargs if name in arguments]
    return {**arguments, **kwargs}, violations


def _unknown(name: str, known: Sequence[str]) -> str:
    guess = closest(name, known)
    return f"is not an argument; did you mean '{guess}'?" if guess else "is not an argument"


def _raise_for(method: MethodDescription, violations: Sequence[Violation]) -> None:
    if not violations:
        return
    message = f"{method.name}() cannot be called like this"
    if len(violations) == 1:
        message = f"{method.name}(): '{violations[0].field}' {violations[0].description}"
    raise InvalidArgumentError(
        message, cure=method.hint, violations=violations if len(violations) > 1 else ()
    )
