"""Every method over HTTP: POST /v1/methods/NAME with a JSON object of arguments.

A unary method answers with JSON. A streaming one answers with server-sent events where they are asked for, and with the
list of its items otherwise. A bidirectional one reads its streamed argument from the request's lines, as they come.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import orjson
from aiohttp import web

from modelkit.errors import (
    CallError,
    InternalError,
    InvalidArgumentError,
    MethodNotFoundError,
    OverloadedError,
    Violation,
)
from modelkit.model import MethodKind, Request, Signature, TypeKind, TypeSpec, Usage
from modelkit.server.http import json_codec
from modelkit.server.http.body import parse_object
from modelkit.server.http.calls import Calls, Framing
from modelkit.server.http.errors import error_json
from modelkit.server.http.openapi import describe_model
from modelkit.server.http.sse import event
from modelkit.server.predictor import Predictor

__all__ = ["MethodRoutes"]

_MEDIA_KINDS: Final = (TypeKind.IMAGE, TypeKind.AUDIO, TypeKind.VIDEO)


class MethodRoutes:
    """/v1/methods and /v1/methods/NAME."""

    def __init__(self, predictor: Predictor, calls: Calls, info: dict[str, str], max_bytes: int) -> None:
        self._predictor = predictor
        self._calls = calls
        self._info = info
        self._max_bytes = max_bytes

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/v1/methods", self._describe), web.post("/v1/methods/{name}", self._call)]

    async def _describe(self, _request: web.Request) -> web.Response:
        ready = not self._predictor.unready_reason()
        content = describe_model(self._info, self._predictor.signatures, ready=ready)
        return _json_response(orjson.dumps(content))

    async def _call(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        signature = self._predictor.signatures.get(name)
        if signature is None:
            raise MethodNotFoundError(name, list(self._predictor.signatures))
        call = self._calls.begin(request, name)
        if signature.kind is MethodKind.BIDIRECTIONAL:
            return await self._stream_both_ways(request, call, signature)
        arguments = await _read_arguments(request, signature)
        if signature.kind is MethodKind.UNARY:
            result = await self._calls.answer(call, self._predictor.predict(call, arguments))
            return _json_response(_answer(call, _dumps(call, result)))
        items = self._predictor.generate(call, arguments)
        return await self._respond(request, call, items)

    async def _stream_both_ways(
        self, request: web.Request, call: Request, signature: Signature
    ) -> web.StreamResponse:
        """The first line is the object of the other arguments, each further line one item."""
        lines = _lines(request, self._max_bytes)
        first = await anext(lines, b"{}")
        arguments = _decode_arguments(parse_object(first), signature)
        items = self._predictor.stream(call, arguments, _items(lines, signature))
        return await self._respond(request, call, items)

    async def _respond(
        self, request: web.Request, call: Request, items: AsyncGenerator[Any, None]
    ) -> web.StreamResponse:
        if _wants_events(request):
            return await self._calls.stream(request, call, items, _framing(call))
        texts = await self._calls.answer(call, self._collect(call, items))
        return _json_response(_answer(call, b"[%b]" % b",".join(texts)))

    async def _collect(self, call: Request, items: AsyncGenerator[Any, None]) -> list[bytes]:
        """Return all items as JSON. Raises OverloadedError where they are more than one message may hold."""
        texts: list[bytes] = []
        num_bytes = 0
        async with aclosing(items):
            async for item in items:
                texts.append(_dumps(call, item))
                num_bytes += len(texts[-1])
                if num_bytes > self._max_bytes:
                    raise OverloadedError(
                        f"the answer is larger than the server's limit of {self._max_bytes} bytes",
                        cure="ask for a stream: send the header Accept: text/event-stream",
                    )
        return texts


# ---------------------------------------------------------------------------------------------------------- arguments


async def _read_arguments(request: web.Request, signature: Signature) -> dict[str, Any]:
    if request.content_type == "multipart/form-data":
        return await _read_form(request, signature)
    return _decode_arguments(parse_object(await request.read()), signature)


def _decode_arguments(content: dict[str, Any], signature: Signature) -> dict[str, Any]:
    types = {spec.name: spec.type for spec in signature.arguments}
    arguments: dict[str, Any] = {}
    for name, value in content.items():
        try:
            arguments[name] = json_codec.decode(value, types.get(name, _ANY))
        except ValueError as error:
            raise _bad_argument(name, str(error)) from error
    return arguments


_ANY: Final = TypeSpec(TypeKind.ANY)


async def _read_form(request: web.Request, signature: Signature) -> dict[str, Any]:
    """Read a form: a file is the argument's bytes or media, any other field text (a str argument) or JSON."""
    types = {spec.name: json_codec.value_type(spec.type) for spec in signature.arguments}
    arguments: dict[str, Any] = {}
    for name, value in (await request.post()).items():
        spec = types.get(name, _ANY)
        if isinstance(value, web.FileField):
            arguments[name] = _read_file(name, value, spec)
        elif isinstance(value, str) and spec.kind in (TypeKind.STRING, TypeKind.TEXT):
            arguments[name] = value
        else:
            arguments |= _decode_arguments({name: _parse_field(name, value)}, signature)
    return arguments


def _read_file(name: str, field: web.FileField, spec: TypeSpec) -> Any:
    data = field.file.read()
    if spec.kind in (TypeKind.BYTES, TypeKind.ANY):
        return data
    if spec.kind not in _MEDIA_KINDS:
        raise _bad_argument(name, f"cannot be a file: it is of type {spec.kind}")
    return json_codec.media(spec.kind, data, field.content_type)


def _parse_field(name: str, value: Any) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _bad_argument(name, f"is not JSON: {error}") from error


def _bad_argument(name: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"bad argument {name}: {reason}", violations=[Violation(name, reason)])


async def _lines(request: web.Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the request's lines that are not empty, as they come."""
    rest = b""
    async for block in request.content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > max_bytes:
            raise OverloadedError(f"a line is larger than the server's limit of {max_bytes} bytes")
    if rest.strip():
        yield rest


async def _items(lines: AsyncIterator[bytes], signature: Signature) -> AsyncGenerator[Any, None]:
    spec = next(spec.type for spec in signature.arguments if spec.streamed)
    async for line in lines:
        try:
            yield json_codec.decode(orjson.loads(line), spec)
        except ValueError as error:  # orjson's error is one too
            raise InvalidArgumentError(f"bad item in the stream of '{signature.name}': {error}") from error


# ------------------------------------------------------------------------------------------------------------ results


def _wants_events(request: web.Request) -> bool:
    if "stream" in request.query:
        return request.query["stream"].lower() in ("", "1", "true", "yes")
    return "text/event-stream" in request.headers.get("Accept", "")


def _framing(call: Request) -> Framing:
    """Items are bare data; the last event is named "end" and tells what the call has used, or "error"."""
    return Framing(
        item=lambda item: event(_dumps(call, item)),
        end=lambda call: event(orjson.dumps(_facts(call)), "end"),
        error=lambda error: event(_error_with_id(error, call), "error"),
    )


def _error_with_id(error: CallError, call: Request) -> bytes:
    return b'%b,"request_id":%b}' % (error_json(error)[:-1], orjson.dumps(call.id))


def _dumps(call: Request, value: Any) -> bytes:
    try:
        return json_codec.dumps(value)
    except (TypeError, ValueError) as error:
        raise InternalError(
            f"the result of '{call.method}' cannot be sent: {error}",
            cure="return a value of the annotated type",
        ) from None


def _answer(call: Request, result: bytes) -> bytes:
    """Put a result that is JSON already beside the facts of its call."""
    return b'{"result":%b,%b' % (result, orjson.dumps(_facts(call))[1:])


def _facts(call: Request) -> dict[str, Any]:
    metadata = {str(key): str(value) for key, value in call.response_metadata.items()}
    return {"usage": _usage(call.usage), "request_id": call.id, "metadata": metadata}


def _usage(usage: Usage) -> dict[str, int] | None:
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }
    return counts if any(counts.values()) else None


def _json_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
