"""Signatures as a document that travels with a version, and what in a new one breaks the callers of the old.

Arguments are sent by name and unknown ones are refused, so an argument that is renamed breaks as much as one that is
removed. A new argument must accept all that the old one did, a new result must be something that callers of the old one
can read.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelkit.model import ArgumentSpec, Limits, Signature, TypeSpec

__all__ = ["breaking_changes", "signatures_document"]

Document = Mapping[str, Any]

_SCHEMA = "modelkit.signatures/v1"


def signatures_document(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Return the document of a model's methods, as JSON values; the same signatures always give the same document."""
    return {
        "schema": _SCHEMA,
        "methods": {name: _method(signatures[name]) for name in sorted(signatures)},
    }


def _method(signature: Signature) -> dict[str, Any]:
    return {
        "kind": str(signature.kind),
        "description": signature.description,
        "arguments": [_argument(spec) for spec in signature.arguments],
        "result": _type(signature.result),
    }


def _argument(spec: ArgumentSpec) -> dict[str, Any]:
    required = spec.required and not spec.streamed
    value: dict[str, Any] = {"name": spec.name, "type": _type(spec.type), "required": required}
    if spec.description:
        value["description"] = spec.description
    if not spec.required:
        value["default"] = _plain(spec.default)
    if spec.limits != Limits():
        value["limits"] = {
            key: _plain(limit)
            for key in Limits.__slots__
            if (limit := getattr(spec.limits, key)) not in (None, ())
        }
    if spec.streamed:
        value["streamed"] = True
    return value


def _type(spec: TypeSpec) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": str(spec.kind)}
    if spec.args:
        value["args"] = [_type(member) for member in spec.args]
    if spec.name:
        value["name"] = spec.name
    if spec.fields:
        value["fields"] = [_argument(member) for member in spec.fields]
    if spec.choices:
        value["choices"] = [_plain(choice) for choice in spec.choices]
    if spec.dtype:
        value["dtype"] = spec.dtype
    return value


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; an author's own object by its class alone, for its repr may be another each time."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return {"class": type(value).__qualname__}


# --------------------------------------------------------------------------------------------------------- compatibility


def breaking_changes(old: Document, new: Document) -> list[str]:
    """Return what in `new` breaks a caller of `old`, one sentence each; both are documents of `signatures_document`."""
    found: list[str] = []
    for name, before in old["methods"].items():
        after = new["methods"].get(name)
        changes = ["the method was removed"] if after is None else _method_changes(before, after)
        found += [f"{name}: {change}" for change in changes]
    return found


def _method_changes(old: Document, new: Document) -> Iterator[str]:
    if old["kind"] != new["kind"]:
        yield f"it was {old['kind']} and is {new['kind']} now"
    before, after = _by_name(old["arguments"]), _by_name(new["arguments"])
    added = [argument for name, argument in after.items() if name not in before]
    for name, argument in before.items():
        if name in after:
            yield from _argument_changes(argument, after[name])
        else:
            yield _removal(argument, added)
    renamed = {_successor(argument, added) for name, argument in before.items() if name not in after}
    for argument in added:
        if argument["required"] and argument["name"] not in renamed:
            yield f"argument '{argument['name']}' was added without a default"
    if not _accepts(old["result"], new["result"], is_result=True):
        yield f"it returned {_say(old['result'])} and returns {_say(new['result'])} now"


def _by_name(arguments: Sequence[Document]) -> dict[str, Document]:
    return {argument["name"]: argument for argument in arguments}


def _removal(argument: Document, added: Sequence[Document]) -> str:
    successor = _successor(argument, added)
    if successor is not None:
        return f"argument '{argument['name']}' was renamed to '{successor}'"
    return f"argument '{argument['name']}' was removed"


def _successor(argument: Document, added: Sequence[Document]) -> str | None:
    """Return the new argument that an old one probably became: the only one of the same type."""
    alike = [each["name"] for each in added if each["type"] == argument["type"]]
    return alike[0] if len(alike) == 1 else None


def _argument_changes(old: Document, new: Document) -> Iterator[str]:
    name = f"argument '{old['name']}'"
    if new["required"] and not old["required"]:
        yield f"{name} has no default any more"
    if bool(old.get("streamed")) != bool(new.get("streamed")):
        yield f"{name} was {'' if old.get('streamed') else 'not '}streamed"
    if not _accepts(new["type"], old["type"]):
        yield f"{name} took {_say(old['type'])} and takes {_say(new['type'])} now"
    for limit in _narrowed(old.get("limits") or {}, new.get("limits") or {}):
        yield f"{name} has a narrower {limit.replace('_', ' ')}"


def _narrowed(old: Document, new: Document) -> Iterator[str]:
    """Yield the limits that refuse now what they let pass before."""
    for key, value in new.items():
        before = old.get(key)
        if before == value:
            continue
        if key in {"minimum", "exclusive_minimum", "min_length"}:
            if before is None or value > before:
                yield key
        elif key in {"maximum", "exclusive_maximum", "max_length"}:
            if before is None or value < before:
                yield key
        elif key == "choices":
            if before is None or not all(choice in value for choice in before):
                yield key
        else:  # pattern, multiple_of: whether another one is wider cannot be told
            yield key


def _accepts(wide: Document, narrow: Document, *, is_result: bool = False) -> bool:
    """Tell whether every value of `narrow` is one of `wide`. Whoever reads a result does not mind further members."""
    if wide["kind"] == "any" or wide == narrow:
        return True
    if narrow["kind"] == "union":
        return all(_accepts(wide, member, is_result=is_result) for member in narrow["args"])
    if wide["kind"] == "union":
        return any(_accepts(member, narrow, is_result=is_result) for member in wide["args"])
    if narrow["kind"] == "choice":
        return _accepts_choices(wide, narrow["choices"])
    if wide["kind"] != narrow["kind"]:
        return (wide["kind"], narrow["kind"]) == ("float", "int")
    return _accepts_same_kind(wide, narrow, is_result=is_result)


def _accepts_same_kind(wide: Document, narrow: Document, *, is_result: bool) -> bool:
    if wide["kind"] == "object":
        return _accepts_object(wide, narrow, is_result=is_result)
    if wide["kind"] == "tensor":
        return not wide.get("dtype") or wide.get("dtype") == narrow.get("dtype")
    members, others = wide.get("args", ()), narrow.get("args", ())
    return len(members) == len(others) and all(
        _accepts(one, other, is_result=is_result) for one, other in zip(members, others, strict=True)
    )


def _accepts_choices(wide: Document, choices: Sequence[Any]) -> bool:
    if wide["kind"] == "choice":
        return all(choice in wide["choices"] for choice in choices)
    kinds: dict[type, set[str]] = {str: {"string"}, bool: {"bool"}, int: {"int", "float"}, float: {"float"}}
    return all(wide["kind"] in kinds.get(type(choice), set()) for choice in choices)


def _accepts_object(wide: Document, narrow: Document, *, is_result: bool) -> bool:
    taken, given = _by_name(wide.get("fields", ())), _by_name(narrow.get("fields", ()))
    if not is_result and not given.keys() <= taken.keys():
        return False  # a member that is known no more is refused
    for name, field in taken.items():
        if name not in given:
            # A reader misses also a member that had a default: what is sent was never without it.
            if field["required"] or is_result:
                return False
        elif (field["required"] and not given[name]["required"]) or not _accepts(
            field["type"], given[name]["type"], is_result=is_result
        ):
            return False
    return True


def _say(spec: Document) -> str:
    """Say a type in Python's spelling, with the members of an object."""
    kind, args = spec["kind"], [_say(member) for member in spec.get("args", ())]
    if kind == "union":
        return " | ".join(args)
    if kind == "choice":
        return " | ".join(repr(choice) for choice in spec["choices"])
    if kind in {"list", "tuple", "map"}:
        name = "dict" if kind == "map" else kind
        return f"{name}[{', '.join(args)}]"
    if kind == "object":
        members = ", ".join(f"{field['name']}: {_say(field['type'])}" for field in spec.get("fields", ()))
        return f"{spec.get('name', 'object')}({members})"
    name = {"string": "str", "null": "None"}.get(kind) or str(kind)
    return name + (f"[{spec['dtype']}]" if spec.get("dtype") else "")
