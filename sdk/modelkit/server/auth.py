"""API key: every call but a health check has to carry `authorization: Bearer KEY`."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from modelkit.errors import UnauthenticatedError
from modelkit.server.logs import new_request_id
from modelkit.server.status import status_code, status_message, status_trailer

__all__ = ["ApiKeyInterceptor"]

_OPEN_SERVICES = ("/grpc.health.v1.Health/",)


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Answers a call without the right key with UNAUTHENTICATED, before its message is read."""

    def __init__(self, api_key: str) -> None:
        self._expected = api_key.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let a call pass, or put a handler in its place that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICES):
            return handler
        given = _bearer_token(handler_call_details.invocation_metadata or ())
        if hmac.compare_digest(given, self._expected):
            return handler
        return _refusal(handler, missing=not given)


def _bearer_token(metadata: Any) -> bytes:
    """Return the token of an `authorization: Bearer TOKEN` header, empty where there is none (RFC 6750)."""
    header = dict(metadata).get("authorization", "")
    scheme, _, token = str(header).partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""


def _refusal(handler: Any, *, missing: bool) -> Any:
    error = UnauthenticatedError(
        "the call has no API key" if missing else "the API key is wrong",
        cure="give the client api_key=..., or set MODELKIT_API_KEY",
    )

    async def refuse(_request: Any, context: Any) -> None:
        trailer = status_trailer(error, new_request_id())
        await context.abort(status_code(error), status_message(error), trailing_metadata=(trailer,))

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(refuse, handler.request_deserializer, handler.response_serializer)
