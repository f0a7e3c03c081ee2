"""The JSON Schema of config.yaml, for editors: made from the models, with Clarifai's spellings marked as deprecated.

It says what a schema can say. Rules across keys, secrets and duplicate keys are found by `modelkit validate` only.
"""

from collections.abc import Mapping
from typing import Any

from modelkit.config.clarifai import HAS_NO_EFFECT, MOVED
from modelkit.config.models import Config
from modelkit.config.tree import format_path

__all__ = ["json_schema"]

# The newest version that the YAML language server reads in full.
_DIALECT = "http://json-schema.org/draft-07/schema#"

# What pydantic writes for itself: titles made of the attributes' names, and bounds that apply to parsed quantities.
_NOISE = frozenset({"title", "gt", "ge", "lt", "le"})

# What says something about a value instead of restricting it.
_ANNOTATIONS = frozenset({"default", "deprecated", "description", "examples"})

_Schema = dict[str, Any]


def json_schema() -> _Schema:
    """Return the JSON Schema of config.yaml."""
    schema: _Schema = _tidy(Config.model_json_schema(by_alias=True, mode="validation"))
    definitions = schema.pop("$defs")
    for section in [schema, *definitions.values()]:
        if "properties" not in section:
            continue
        required = section.get("required", ())
        section["properties"] = {
            key: value if key in required else _or_null(value) for key, value in section["properties"].items()
        }
    sections: dict[tuple[str, ...], _Schema] = {(): schema}
    for key, value in schema["properties"].items():
        name = _referred(value)
        if name is not None:
            sections[key,] = definitions[name]
    _add_other_spellings(sections)
    schema["description"] = "The config.yaml of a model folder."
    return {"$schema": _DIALECT, "title": "modelkit config.yaml", **schema, "$defs": definitions}


def _tidy(value: Any) -> Any:
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    # "properties" holds keys of config.yaml, which may be called like a keyword.
    tidied: _Schema = {
        key: {name: _tidy(below) for name, below in item.items()}
        if key in {"properties", "$defs"}
        else _tidy(item)
        for key, item in value.items()
        if key not in _NOISE and not (key == "default" and not _is_writable(item, value))
    }
    if "anyOf" in tidied:
        tidied["anyOf"] = _flatten(tidied["anyOf"])
    return tidied


def _is_writable(default: Any, schema: _Schema) -> bool:
    """Tell whether a default can be written in config.yaml as it is; a parsed quantity cannot."""
    return isinstance(default, str | int) and default != "" and "pattern" not in str(schema)


def _flatten(choices: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for choice in choices:
        flat += choice["anyOf"] if choice.keys() == {"anyOf"} else [choice]
    return flat


def _or_null(schema: _Schema) -> _Schema:
    """Allow a key without a value, which means its default."""
    null = {"type": "null"}
    if "anyOf" in schema:
        choices = schema["anyOf"]
        return schema if null in choices else {**schema, "anyOf": [*choices, null]}
    about = {key: value for key, value in schema.items() if key in _ANNOTATIONS}
    choice = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    return {"anyOf": [choice, null], **about}


def _referred(schema: _Schema) -> str | None:
    """Return the name of the definition that a property refers to."""
    for choice in [schema, *schema.get("anyOf", ())]:
        if "$ref" in choice:
            return str(choice["$ref"]).rpartition("/")[2]
    return None


def _add_other_spellings(sections: Mapping[tuple[str, ...], _Schema]) -> None:
    """Add the keys that Clarifai spells differently, or has and we have not."""
    for (*parent, key), new in MOVED.items():
        meant = sections[new[:-1]]["properties"][new[-1]]
        note = {"description": f"Clarifai's spelling of '{format_path(new)}'.", "deprecated": True}
        sections[tuple(parent)]["properties"][key] = meant | note
    for (*parent, key), reason in HAS_NO_EFFECT.items():
        note = {"description": f"Of Clarifai's platform; has no effect here: {reason}.", "deprecated": True}
        sections[tuple(parent)]["properties"][key] = note
