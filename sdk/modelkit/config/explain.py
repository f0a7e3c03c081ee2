"""pydantic's errors as problems in config.yaml: the place, the fault in the words of the file, and the cure."""

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from modelkit.config.keys import field_at, section_of, suggest_key
from modelkit.config.models import Section
from modelkit.config.tree import Entry, ListNode, MapNode, Path, Scalar, find, format_path
from modelkit.errors import Problem, closest

__all__ = ["explain", "nearest"]


def explain(error: ErrorDetails, root: MapNode) -> Problem:
    """Return the problem for one of pydantic's errors about the values of `root`."""
    path: Path = error["loc"]
    if error["type"] == "missing":
        return _explain_missing(path, root)
    entry = nearest(root, path)
    if error["type"] == "extra_forbidden":
        where = f"in '{format_path(path[:-1])}'" if len(path) > 1 else "at the top level"
        return entry.key.problem(f"unknown key '{path[-1]}' {where}", suggest_key(path))
    describe = _EXPLANATIONS.get(error["type"], _explain_other)
    message, cure = describe(entry, path, error.get("ctx", {}) | {"msg": error["msg"]})
    return entry.value.span.problem(f"{format_path(path)} {message}", cure)


def nearest(root: MapNode, path: Path) -> Entry:
    """Return the entry at a path, or the nearest one around it."""
    while path:
        entry = find(root, path)
        if entry is not None:
            return entry
        path = path[:-1]
    return Entry(root.span, root)


def _explain_missing(path: Path, root: MapNode) -> Problem:
    *parent, key = path
    field = field_at(path)
    entry = find(root, path)
    if entry is not None:
        return entry.key.problem(f"{format_path(path)} has no value", f"write {_example(str(key), field)}")
    around = nearest(root, tuple(parent))
    message = f"'{format_path(tuple(parent))}' has no '{key}'" if parent else f"there is no '{key}'"
    return around.key.problem(message, f"add {_example(str(key), field)}")


def _example(key: str, field: FieldInfo | None) -> str:
    """Return a line that gives a key a value, in quotes."""
    section = section_of(field) if field is not None else None
    if section is not None:
        return f"'{key}:' with {_first_key(section)} below it"
    choices = _choices(field)
    examples = field.examples if field is not None and field.examples else choices
    return f"'{key}: {examples[0]}'" if examples else f"'{key}: ...'"


def _first_key(section: type[Section]) -> str:
    key, attribute = next(iter(section.yaml_keys().items()))
    return _example(key, section.model_fields[attribute])


def _choices(field: FieldInfo | None) -> tuple[str, ...]:
    """Return the values of a field that has a fixed set of them."""
    choices = get_args(field.annotation) if field is not None else ()
    return choices if all(isinstance(choice, str) for choice in choices) else ()


def _explain_literal(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del context
    choices = _choices(field_at(path))
    value = entry.value
    if isinstance(value, Scalar) and not isinstance(value.value, str):
        message, cure = _explain_text(entry, path, {})
        return message, cure if value.text in choices else f"write one of: {', '.join(map(_quoted, choices))}"
    if not isinstance(value, Scalar):
        return f"must be one word, not {_kind(entry)}", f"write one of: {', '.join(choices)}"
    guess = closest(value.text, choices)
    cure = f"write one of: {', '.join(choices)}"
    return f"cannot be '{_clip(value.text)}'", f"did you mean '{guess}'? {cure}" if guess else cure


def _quoted(text: str) -> str:
    return f'"{text}"'


def _explain_text(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del path, context
    value = entry.value
    if not isinstance(value, Scalar) or value.value is None:
        return f"must be text, not {_kind(entry)}", "write one value, in quotes if need be"
    cure = f'put it in quotes: "{_clip(value.text)}"'
    if value.span.source.path is None:  # an option: the shell takes the outer quotes away
        cure = f"put it in quotes, and in others for the shell: 'KEY=\"{_clip(value.text)}\"'"
    if isinstance(value.value, bool):
        return f"must be text, and YAML reads {value.text} as a yes or no", cure
    kind = _kind(entry) if str(value.value) == value.text else f"the number {value.value}"
    return f"must be text, and YAML reads {_clip(value.text)} as {kind}", cure


def _explain_number(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del path
    whole = "whole number" if "integer" in context["msg"] else "number"
    value = entry.value
    if isinstance(value, Scalar) and isinstance(value.value, str) and re.fullmatch(r"-?[0-9.]+", value.text):
        return f"must be a {whole}, not text", f"remove the quotes: {_clip(value.text)}"
    shown = value.text if isinstance(value, Scalar) and isinstance(value.value, float) else _kind(entry)
    return f"must be a {whole}, not {shown}", f"write a {whole} without quotes"


def _explain_flag(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del path, context
    value = entry.value
    if isinstance(value, Scalar) and value.text.lower() in {"yes", "no", "on", "off", "y", "n"}:
        flag = "true" if value.text.lower() in {"yes", "on", "y"} else "false"
        return f"must be true or false; YAML 1.2 reads {value.text} as text", f"write {flag}"
    return f"must be true or false, not {_kind(entry)}", "write true or false, without quotes"


def _explain_bound(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    name = next(name for name in _BOUNDS if name in context)
    written = entry.value.text if isinstance(entry.value, Scalar) else _kind(entry)
    bound = _format_duration(context[name]) if path[-1] in _DURATION_KEYS else context[name]
    cure = f"write a number that is {_BOUNDS[name]} {bound}, or leave '{path[-1]}' out for the default"
    if path[-1] not in _MEMORY_KEYS:
        return f"must be {_BOUNDS[name]} {bound}, not {_clip(written)}", cure
    bound = _format_memory(context[name])
    cure = (
        f"add a unit: {written}Mi, {written}Gi" if written.isdecimal() and name == "ge" else f"write {bound}"
    )
    return f"must be {_BOUNDS[name]} {bound}, not {_clip(written)}", cure


def _format_memory(num_bytes: int) -> str:
    for power, unit in ((3, "Gi"), (2, "Mi"), (1, "Ki")):
        if num_bytes % 1024**power == 0:
            return f"{num_bytes // 1024**power}{unit}"
    return str(num_bytes)


def _format_duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size:g}{unit}"
    return f"{seconds:g}s" if seconds else "0"


_DURATION_KEYS = {"drain_timeout", "scale_to_zero_after", "start_timeout"}
_MEMORY_KEYS = {"accelerator_memory", "cpu_memory", "cpu_memory_requests", "max_message_bytes"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _explain_pattern(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del context
    text = entry.value.text if isinstance(entry.value, Scalar) else ""
    if path[-1] == "id":
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
        letters = "letters" if text.isascii() else "ASCII letters"
        cure = f"use {letters}, digits, '-', '_' and '.', starting and ending with a letter or digit"
        return f"cannot be '{_clip(text)}'", f"{cure}, such as '{slug}'" if slug else cure
    if path[-1] == "url":
        return "is no address of a file", "write it whole, such as https://example.com/model.safetensors"
    if path[-1] == "sha256":
        return "is no SHA-256", "write the 64 digits (0-9, a-f) that `sha256sum FILE` prints"
    # The text is not repeated: people paste the secret itself.
    letters = "letters" if text.isascii() else "ASCII letters"
    cure = f"such a name has {letters}, digits and '_', and does not start with a digit; it is never the secret itself"
    return "is not the name of an environment variable", cure


def _explain_length(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del entry
    if "min_length" in context:
        return "must not be empty", f"write a value, or remove '{format_path(path)}'"
    return f"is longer than {context['max_length']} characters", "shorten it"


def _explain_list(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del context
    field = field_at(path)
    section = section_of(field) if field is not None else None
    text = entry.value.text if isinstance(entry.value, Scalar) else ""
    if section is not None:
        return (
            f"must be a list, not {_kind(entry)}",
            f"write items below it, such as '- {_first_key(section)[1:]}",
        )
    cure = f'write {path[-1]}: ["{_clip(text)}"]' if text else "put '- ' before each item"
    return f"must be a list, not {_kind(entry)}", cure


def _explain_section(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del context
    field = field_at(path)
    section = section_of(field) if field is not None else None
    cure = (
        f"such as {_first_key(section)}" if section is not None else "such as 'enable-prefix-caching: true'"
    )
    return f"must have keys of its own, not be {_kind(entry)}", f"write them on lines below, {cure}"


def _explain_quantity(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del path
    value = entry.value
    written = f"'{_clip(value.text)}'" if isinstance(value, Scalar) and value.text else _kind(entry)
    return f"must be {context['what']}, not {written}", context["cure"]


def _explain_other(entry: Entry, path: Path, context: Mapping[str, Any]) -> tuple[str, str]:
    del entry
    field = field_at(path)
    return f"is not valid: {context['msg']}", field.description or "" if field is not None else ""


_Explanation = Callable[[Entry, Path, Mapping[str, Any]], tuple[str, str]]

# By pydantic's error types: https://docs.pydantic.dev/latest/errors/validation_errors/
_EXPLANATIONS: dict[str, _Explanation] = {
    "bool_type": _explain_flag,
    "dict_type": _explain_section,
    "finite_number": _explain_number,
    "float_type": _explain_number,
    "greater_than": _explain_bound,
    "greater_than_equal": _explain_bound,
    "int_from_float": _explain_number,
    "int_type": _explain_number,
    "less_than": _explain_bound,
    "less_than_equal": _explain_bound,
    "literal_error": _explain_literal,
    "model_type": _explain_section,
    "quantity": _explain_quantity,
    "string_pattern_mismatch": _explain_pattern,
    "string_too_long": _explain_length,
    "string_too_short": _explain_length,
    "string_type": _explain_text,
    "tuple_type": _explain_list,
}


def _kind(entry: Entry) -> str:
    """Name the type of a value, with its article."""
    value = entry.value
    if isinstance(value, MapNode):
        return "a mapping"
    if isinstance(value, ListNode):
        return "a list"
    return _KINDS[type(value.value)]


_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "empty"}


def _clip(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - enough to recognise it
