"""OpenAI's API over HTTP, for models that have its transport methods (`LLM` does).

Requests and chunks pass through as JSON text that nobody reads here, but for "stream" where the request has it. The
methods are called through the predictor like any other, so an author who overrides them is heard over HTTP too.
Source: https://platform.openai.com/docs/api-reference
"""

import time
from typing import Any, Final

import orjson
from aiohttp import web

from modelkit.errors import InternalError, InvalidArgumentError, NotFoundError, UnimplementedError
from modelkit.model import Request
from modelkit.server.http.body import parse_object
from modelkit.server.http.calls import Calls, Framing
from modelkit.server.http.errors import error_json
from modelkit.server.http.sse import event
from modelkit.server.predictor import Predictor

__all__ = ["ENDPOINTS", "TRANSPORT", "OpenAIRoutes", "has_openai"]

# The methods that carry the API over gRPC too; the request's JSON names the endpoint it is for.
TRANSPORT: Final = "openai_transport"
_STREAM_TRANSPORT: Final = "openai_stream_transport"
ENDPOINTS: Final = ("/chat/completions", "/completions", "/embeddings", "/responses")

_DONE: Final = b"data: [DONE]\n\n"


def has_openai(predictor: Predictor) -> bool:
    """Whether a model answers OpenAI's API."""
    return TRANSPORT in predictor.signatures or _STREAM_TRANSPORT in predictor.signatures


class OpenAIRoutes:
    """/v1/models, /v1/chat/completions and its siblings."""

    def __init__(self, predictor: Predictor, calls: Calls, model_id: str) -> None:
        self._predictor = predictor
        self._calls = calls
        self._model_id = model_id
        self._created = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; a model without the transport methods has none but the error that says so."""
        if not has_openai(self._predictor):
            return [web.post(f"/v1{endpoint}", self._refuse) for endpoint in ENDPOINTS]
        return [
            web.get("/v1/models", self._list_models),
            web.get("/v1/models/{id:.+}", self._get_model),
            *(web.post(f"/v1{endpoint}", self._post) for endpoint in ENDPOINTS),
        ]

    async def _refuse(self, request: web.Request) -> web.Response:
        raise NotFoundError(
            f"this model does not speak OpenAI's API: it has no method '{TRANSPORT}', so no {request.path}",
            cure="POST /v1/methods/NAME with a JSON object of arguments; GET /v1/methods lists them",
        )

    async def _list_models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model()]})

    async def _get_model(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name != self._model_id:
            raise NotFoundError(f"there is no model '{name}' here", cure=f"the model is '{self._model_id}'")
        return web.json_response(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self._model_id, "object": "model", "created": self._created, "owned_by": "modelkit"}

    async def _post(self, request: web.Request) -> web.StreamResponse:
        endpoint = request.path.removeprefix("/v1")
        body = await request.read()
        message = _with_endpoint(body, endpoint)
        if _wants_stream(body):
            call = self._calls.begin(request, self._method(_STREAM_TRANSPORT))
            items = self._predictor.generate(call, {"msg": message})
            return await self._calls.stream(request, call, items, _framing(call, endpoint))
        call = self._calls.begin(request, self._method(TRANSPORT))
        result = await self._calls.answer(call, self._predictor.predict(call, {"msg": message}))
        return web.Response(body=_text(call, result), content_type="application/json")

    def _method(self, name: str) -> str:
        if name in self._predictor.signatures:
            return name
        how = "cannot stream" if name == _STREAM_TRANSPORT else "can only stream"
        raise UnimplementedError(f"this model {how}: it has no method '{name}'")


def _with_endpoint(body: bytes, endpoint: str) -> str:
    """Return the request as the transport methods take it: with the endpoint as its last key, which wins.

    Written into the text, so that a request with megabytes of images is not parsed once more. Raises
    InvalidArgumentError where it is not a JSON object in UTF-8; what is inside is for the methods to judge.
    """
    body = body.strip()
    if not (body.startswith(b"{") and body.endswith(b"}")):
        raise InvalidArgumentError("the request is not a JSON object", cure='send {"messages": [...]}')
    inside = body[1:-1].rstrip()
    comma = "," if inside else ""
    try:
        return f'{{{inside.decode()}{comma}"openai_endpoint":"{endpoint}"}}'
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the request is not UTF-8: {error}") from error


def _wants_stream(body: bytes) -> bool:
    """Read "stream" off a request; parsed only where the word is in it."""
    if b'"stream"' not in body:
        return False
    stream = parse_object(body).get("stream")
    if stream not in (True, False, None):
        raise InvalidArgumentError("'stream' must be true or false")
    return bool(stream)


def _text(call: Request, item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    raise InternalError(
        f"'{call.method}' gave {type(item).__name__}, not JSON as text", cure="return a str from it"
    )


def _framing(call: Request, endpoint: str) -> Framing:
    """The Responses API names its events and has no [DONE]; the others have bare data and end with it."""
    if endpoint == "/responses":
        return Framing(
            lambda item: _named_event(_text(call, item)),
            lambda _: b"",
            lambda error: event(error_json(error), "error"),
        )
    return Framing(
        lambda item: event(_text(call, item)),
        lambda _: _DONE,
        lambda error: event(error_json(error)),
    )


def _named_event(chunk: bytes) -> bytes:
    return event(chunk, str(orjson.loads(chunk).get("type", "")))
