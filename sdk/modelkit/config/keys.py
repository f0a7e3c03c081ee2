"""Which keys exist where, read from the models: for suggestions, rules and docs."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from modelkit.config.clarifai import HAS_NO_EFFECT, MOVED
from modelkit.config.models import Config, Section
from modelkit.config.tree import Path, format_path
from modelkit.errors import closest

__all__ = ["field_at", "nearest_key", "section_of", "suggest_key"]


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, be it optional or in a list."""
    return _section_in(field.annotation)


def field_at(path: Path) -> FieldInfo | None:
    """Return the field that describes the value at a path; None inside `args`, or where no such key exists."""
    section: type[Section] | None = Config
    field: FieldInfo | None = None
    for step in _keys_in(path):
        attribute = section.yaml_keys().get(step) if section is not None else None
        if section is None or attribute is None:
            return None
        field = section.model_fields[attribute]
        section = section_of(field)
    return field


def _keys_in(path: Path) -> tuple[str, ...]:
    """Return the steps of a path that are keys of sections: no index in a list, no name that a user chose."""
    keys = [step for step in path if isinstance(step, str)]
    for at in _NAMED:
        if tuple(keys[: len(at)]) == at:
            del keys[len(at) : len(at) + 1]
    return tuple(keys)


# Sections that hold others by a name of the user's.
_NAMED = (("checkpoints", "additional"),)


def suggest_key(path: Path) -> str:
    """Return the cure for an unknown key: where it belongs, the nearest valid name, or the names there are."""
    *parent, name = path
    here = _keys_in(tuple(parent))
    homes = [section for section, keys in _sections().items() if name in keys and section != here]
    if homes:
        return f"'{name}' belongs {_describe(homes)}"
    guess = nearest_key(path)
    if guess is not None:
        return f"did you mean '{guess}'?"
    for section, keys in _sections().items():
        guess = closest(str(name), keys) if section != here else None
        if guess is not None:
            return f"did you mean '{guess}' {_describe([section])}?"
    names = [key for key in _sections().get(here, ()) if (*here, key) not in MOVED | HAS_NO_EFFECT]
    return f"the keys here are: {', '.join(names)}"


def nearest_key(path: Path) -> str | None:
    """Return the valid key most like an unknown one, in the same section."""
    here = _keys_in(path[:-1])
    return closest(str(path[-1]), _sections().get(here, ()))


def _describe(sections: Sequence[tuple[str, ...]]) -> str:
    """Say where a key goes: "under 'model' or 'secrets'"."""
    if () in sections:
        return "at the top level"
    return "under " + " or ".join(f"'{format_path(section)}'" for section in sections)


@cache
def _sections() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of every section by its path, Clarifai's spellings last."""
    sections = {path: list(section.yaml_keys()) for path, section in _walk((), Config)}
    for *parent, name in [*MOVED, *HAS_NO_EFFECT]:
        sections[tuple(parent)].append(name)
    return {path: tuple(keys) for path, keys in sections.items()}


def _walk(path: tuple[str, ...], section: type[Section]) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    yield path, section
    for key, attribute in section.yaml_keys().items():
        below = section_of(section.model_fields[attribute])
        if below is not None:
            yield from _walk((*path, key), below)


def _section_in(annotation: Any) -> type[Section] | None:
    if get_origin(annotation) is None and isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
