"""The arguments of a remote method from the command line: text becomes what the remote signature asks for."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelkit.datatypes import Audio, Image, Media, Tensor, Video
from modelkit.errors import UsageError, closest

if TYPE_CHECKING:
    from modelkit.client import ArgumentDescription, MethodDescription, TypeDescription

__all__ = ["parse_json_arguments", "parse_pairs", "parse_value", "stdin_lines", "stdin_text", "text_argument"]

_MEDIA: dict[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}
_TEXT_KINDS = ("string", "text")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def text_argument(method: "MethodDescription") -> "ArgumentDescription | None":
    """Return the argument that text without a name is for: `prompt`, else the first that takes a string."""
    takers = [argument for argument in method.arguments if _takes_text(argument.type)]
    prompts = [argument for argument in takers if argument.name == "prompt"]
    return next(iter([*prompts, *takers]), None)


def parse_pairs(method: "MethodDescription", pairs: Iterable[str]) -> dict[str, Any]:
    """Read `name=value` options. A name that is repeated collects the items of a list. Raises UsageError."""
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"'-i {pair}' has no value", cure=f"write -i {name}=VALUE")
        texts.setdefault(name, []).append(text)
    return {name: _parse_texts(_find(method, name), given) for name, given in texts.items()}


def parse_json_arguments(source: str) -> dict[str, Any]:
    """Read `{...}`, `@file` or `@-` (stdin) as the arguments by name. Raises UsageError."""
    text = _decode(_read_file(source[1:]), source[1:]) if source.startswith("@") else source
    try:
        arguments = json.loads(text)
    except RecursionError:
        raise UsageError("--json is nested too deep to be read", cure="give it fewer levels") from None
    except ValueError as error:
        raise UsageError(
            f"--json is not JSON: {error}", cure="""write --json '{"name": "value"}'"""
        ) from error
    if not isinstance(arguments, dict):
        raise UsageError(
            "--json is not an object of arguments by name", cure="""write --json '{"name": "value"}'"""
        )
    return arguments


def parse_value(argument: "ArgumentDescription", text: str) -> Any:
    """Read one value as the argument's type asks. Raises UsageError, which names the argument and its type.

    `@file` is read from a file (`@-` from stdin), `@@text` is text that begins with an at sign.
    """
    try:
        return _parse(argument.type, text)
    except ValueError as error:
        raise UsageError(f"{argument.name}: {error}", cure=f"its type is {argument.type}") from error


def stdin_text() -> str:
    """Return all of stdin. Raises UsageError where it is closed or is not text."""
    return _decode(_read_file("-"), "-")


def stdin_lines() -> Iterator[str]:
    """Iterate over the lines of stdin as they come. Raises UsageError where it is closed or is not text."""
    lines = _stdin()
    while True:
        try:
            line = lines.readline()
        except UnicodeDecodeError as error:
            raise _not_text("-", error) from error
        if not line:
            return
        yield line.rstrip("\r\n")


def _find(method: "MethodDescription", name: str) -> "ArgumentDescription":
    for argument in method.arguments:
        if argument.name == name:
            return argument
    guess = closest(name, [argument.name for argument in method.arguments])
    hint = f"; did you mean '{guess}'?" if guess else ""
    raise UsageError(f"{method.name} has no argument '{name}'{hint}", cure=method.hint)


def _parse_texts(argument: "ArgumentDescription", texts: list[str]) -> Any:
    wanted = _without_null(argument.type)
    if len(texts) == 1 and not (wanted.kind == "list" and not texts[0].startswith(("[", "@"))):
        return parse_value(argument, texts[0])
    if wanted.kind != "list":
        raise UsageError(f"{argument.name} is given {len(texts)} times", cure=f"its type is {argument.type}")
    if not wanted.args:
        return texts
    try:
        return [_parse(wanted.args[0], text) for text in texts]
    except ValueError as error:
        raise UsageError(f"{argument.name}: {error}", cure=f"its type is {argument.type}") from error


def _parse(wanted: "TypeDescription", text: str) -> Any:
    if text.startswith("@@"):
        return _parse_text(wanted, text[1:])
    if text.startswith("@"):
        return _parse_file(wanted, text[1:])
    return _parse_text(wanted, text)


def _parse_file(wanted: "TypeDescription", name: str) -> Any:
    data = _read_file(name)
    kinds = {member.kind for member in _members(wanted)}
    for kind in [kind for kind in _MEDIA if kind in kinds]:
        return _media(_MEDIA[kind], name, data)
    if "tensor" in kinds:
        return _tensor(name, data)
    if "bytes" in kinds:
        return data
    return _parse_text(wanted, _decode(data, name))


def _parse_text(wanted: "TypeDescription", text: str) -> Any:
    if wanted.kind in _TEXT_KINDS:
        return text
    if wanted.kind == "union":
        return _first_that_fits(wanted, text)
    if wanted.kind in _MEDIA:
        raise ValueError(f"'{text}' is not a file; write @{text} to read one")
    if wanted.kind == "choice":
        return _one_of({str(choice): choice for choice in wanted.choices}, text, text)
    scalar = _SCALARS.get(wanted.kind)
    return scalar(text) if scalar is not None else _json(wanted, text)


def _first_that_fits(wanted: "TypeDescription", text: str) -> Any:
    """Try the members of a union, the strictest first: any text is a string, and few are a number."""
    reasons = []
    for member in sorted(_members(wanted), key=lambda member: member.kind in {*_TEXT_KINDS, "bytes"}):
        try:
            return _parse_text(member, text)
        except ValueError as error:
            reasons += [str(error)] if member.kind != "null" else []
    raise ValueError(reasons[0] if len(reasons) == 1 else f"'{text}' fits none of its types")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number") from None


def _one_of(known: Mapping[str, Any], key: str, text: str) -> Any:
    if key in known:
        return known[key]
    guess = closest(key, list(known))
    hint = f"; did you mean '{guess}'?" if guess else ""
    raise ValueError(f"'{text}' is none of {', '.join(known)}{hint}")


_SCALARS: dict[str, Callable[[str], Any]] = {
    "int": _whole_number,
    "float": _number,
    "bool": lambda text: _one_of(_TRUTH, text.lower(), text),
    "bytes": str.encode,
}


def _json(wanted: "TypeDescription", text: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deep to be read") from None
    except ValueError:
        if wanted.kind == "any":
            return text
        raise ValueError(f"'{text}' is not JSON") from None
    if wanted.kind == "null" and value is not None:
        raise ValueError(f"'{text}' is not null")
    return value


def _media(kind: type[Media], name: str, data: bytes) -> Media:
    import mimetypes

    return kind(data, mimetypes.guess_type(name)[0] or "application/octet-stream")


def _tensor(name: str, data: bytes) -> Tensor:
    try:
        import numpy as np
    except ImportError:
        raise UsageError(f"'{name}' needs numpy to be read", cure="pip install numpy") from None
    from io import BytesIO

    try:
        return Tensor.from_numpy(np.load(BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError(f"'{name}' is not a .npy file: {error}") from None


def _read_file(name: str) -> bytes:
    if name == "-":
        return bytes(_stdin().buffer.read())
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read '{name}': {error.strerror}", cure="write @FILE with a file that exists"
        ) from error
    except RuntimeError as error:  # ~name, where nobody has that name
        raise UsageError(
            f"cannot read '{name}': there is no such user",
            cure="write @./~FILE for a file that begins with ~",
        ) from error


def _stdin() -> TextIOWrapper:
    # None in a process that was started with stdin closed
    if not isinstance(sys.stdin, TextIOWrapper):
        raise UsageError("stdin is closed, so nothing can be read from it", cure="pipe something in")
    return sys.stdin


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_text(name, error) from error


def _not_text(name: str, error: UnicodeDecodeError) -> UsageError:
    what = "stdin" if name == "-" else f"'{name}'"
    return UsageError(
        f"{what} is not UTF-8 text: byte {error.object[error.start]:#04x}",
        cure="give text in UTF-8; -i NAME=@FILE sends a file to an argument that takes bytes or media",
    )


def _takes_text(wanted: "TypeDescription") -> bool:
    return any(member.kind in _TEXT_KINDS for member in _members(wanted))


def _members(wanted: "TypeDescription") -> tuple["TypeDescription", ...]:
    return wanted.args if wanted.kind == "union" else (wanted,)


def _without_null(wanted: "TypeDescription") -> "TypeDescription":
    """Return T of `T | None`."""
    members = [member for member in _members(wanted) if member.kind != "null"]
    return members[0] if len(members) == 1 else wanted
