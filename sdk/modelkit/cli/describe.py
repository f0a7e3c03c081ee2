"""`modelkit describe`: the methods of a served model, each with a command that calls it."""

import json as json_module
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.arguments import text_argument
from modelkit.cli.remote import Address, ApiKeyEnv, CaPath, Tls, connect
from modelkit.cli.values import plain

if TYPE_CHECKING:
    from modelkit.client import ArgumentDescription, MethodDescription, ModelDescription, TypeDescription

__all__ = ["command"]


def command(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Give up after so long.")] = 10.0,
    address: Address = None,
    api_key_env: ApiKeyEnv = None,
    tls: Tls = False,
    ca: CaPath = None,
) -> None:
    """Show the methods of a served model."""
    with connect(address, api_key_env, tls=tls, ca=ca) as client:
        model = client.describe(timeout_s=timeout)
    if json:
        console.json(_as_json(model))
        return
    console.result(_heading(model))
    for method in model.methods:
        console.result("\n" + _describe_method(method, address))


def _as_json(model: "ModelDescription") -> dict[str, Any]:
    """Return the description without what is empty, with signature and example beside the structure."""
    described: dict[str, Any] = _without_empty(plain(asdict(model)))
    described["ready"] = model.ready
    described["methods"] = [
        {
            "signature": str(method),
            "example": example_command(method),
            **_without_empty(plain(asdict(method))),
        }
        for method in model.methods
    ]
    return described


def _without_empty(value: Any) -> Any:
    """Leave out what says nothing; a default of None says something."""
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        empty = [key for key, item in kept.items() if item in (None, "", [], {}, False)]
        if value.get("has_default"):
            empty = [key for key in empty if key != "default"]
        return {key: item for key, item in kept.items() if key not in {*empty, "has_default"}}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _heading(model: "ModelDescription") -> str:
    facts = [
        model.state,
        *([f"engine {model.engine}"] if model.engine else []),
        f"modelkit {model.modelkit_version}",
    ]
    lines = [f"{_bold(model.model_id or 'model')}  ({', '.join(facts)})"]
    return "\n".join([*lines, model.description.strip()] if model.description.strip() else lines)


def _describe_method(method: "MethodDescription", address: str | None) -> str:
    lines = [_signature(method)]
    lines += [f"    {line}".rstrip() for line in method.description.strip().splitlines()]
    rows = [(argument.name, _explain(argument)) for argument in method.arguments]
    width = max((len(name) for name, text in rows if text), default=0)
    lines += [f"    {name:<{width}}  {text}" for name, text in rows if text]
    return "\n".join([*lines, f"    $ {example_command(method, address)}"])


def _explain(argument: "ArgumentDescription") -> str:
    """Return what the signature does not say: what an argument is for, and the members of its type."""
    members = ", ".join(map(str, _object_of(argument.type).fields))
    return "; ".join(part for part in (argument.description, f"{{{members}}}" if members else "") if part)


def _object_of(wanted: "TypeDescription") -> "TypeDescription":
    """Return the object inside a list, an Optional and the like; the type itself where there is none."""
    inside = (_object_of(member) for member in wanted.args)
    return wanted if wanted.fields else next((found for found in inside if found.fields), wanted)


def _signature(method: "MethodDescription") -> str:
    """Return the signature on one line, or with a line for each argument where it is long."""
    text = str(method)
    arguments = [str(argument) for argument in method.arguments]
    if len(text) > 100 and arguments:  # noqa: PLR2004 - a terminal's width, more or less
        result = text.rpartition(" -> ")[2]
        text = "\n".join(
            [f"{method.name}(", *(f"    {argument}," for argument in arguments), f") -> {result}"]
        )
    return text.replace(method.name, _bold(method.name), 1)


def _bold(text: str) -> str:
    return console.paint(text, "bold", sys.stdout)


def example_command(method: "MethodDescription", address: str | None = None) -> str:
    """Return a command that calls a method with its required arguments, to copy and change."""
    words = ["modelkit", "predict"]
    if method.name not in {"generate", "predict"}:
        words += ["--method", method.name]
    target = text_argument(method)
    needed = [argument for argument in method.arguments if argument.required and not argument.streamed]
    if target is not None and not target.streamed and (not needed or target in needed):
        words.append("Hello")
        needed = [argument for argument in needed if argument is not target]
    for argument in needed:
        words += ["-i", f"{argument.name}={_example_text(argument)}"]
    if address is not None:
        words += ["--address", address]
    command = shlex.join(words)
    return f"printf 'Hello\\n' | {command}" if method.streamed_argument is not None else command


def _example_text(argument: "ArgumentDescription") -> str:
    value = _example(argument)
    return value if isinstance(value, str) else json_module.dumps(value)


def _example(argument: "ArgumentDescription") -> Any:
    limits = argument.limits
    if argument.has_default:
        return plain(argument.default)
    if limits.choices:
        return limits.choices[0]
    if argument.type.kind in {"int", "float"} and limits.minimum is not None:
        return limits.minimum
    return _example_of_type(argument.type)


def _example_of_type(wanted: "TypeDescription") -> Any:
    if wanted.kind == "union" and wanted.args:
        return _example_of_type(wanted.args[0])
    if wanted.kind in {"list", "tuple"}:
        return [_example_of_type(member) for member in wanted.args]
    if wanted.kind == "choice" and wanted.choices:
        return wanted.choices[0]
    if wanted.kind in {"map", "object"}:
        return {member.name: _example(member) for member in wanted.fields}
    return _EXAMPLES.get(wanted.kind)


_EXAMPLES: dict[str, Any] = {
    "any": "Hello",
    "bool": True,
    "int": 1,
    "float": 1.0,
    "string": "Hello",
    "text": "Hello",
    "bytes": "@file.bin",
    "tensor": "@array.npy",
    "image": "@image.png",
    "audio": "@audio.wav",
    "video": "@video.mp4",
}
