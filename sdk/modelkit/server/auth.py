"""Which calls are let in: those with the API key, and those that are not meant for another deployment.

Every call but a health check has to carry `authorization: Bearer KEY` where there is a key, over gRPC and over HTTP.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from modelkit.computes.identity import DEPLOYMENT_METADATA
from modelkit.errors import CallError, UnauthenticatedError, UnavailableError
from modelkit.server.logs import new_request_id
from modelkit.server.status import status_code, status_message, status_trailer

__all__ = ["ApiKey", "ApiKeyInterceptor", "DeploymentInterceptor"]

_OPEN_SERVICES = ("/grpc.health.v1.Health/",)


class ApiKey:
    """The one key that a server takes."""

    def __init__(self, api_key: str) -> None:
        self._expected = api_key.encode()

    def refusal(self, authorization: str) -> UnauthenticatedError | None:
        """Return what to tell a caller that sent this `authorization` header ("" for none); None lets it pass."""
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
        # In a time that tells nothing of how much of the key was right. The scheme is not case-sensitive (RFC 6750).
        if hmac.compare_digest(given, self._expected):
            return None
        return UnauthenticatedError(
            "the API key is wrong" if given else "the call has no API key",
            cure="give the client api_key=..., or set MODELKIT_API_KEY",
        )


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Answers a call without the right key with UNAUTHENTICATED, before its message is read."""

    def __init__(self, api_key: str) -> None:
        self._key = ApiKey(api_key)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let a call pass, or put a handler in its place that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICES):
            return handler
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        error = self._key.refusal(str(given))
        return handler if error is None else _refusing(handler, error)


class DeploymentInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses a call that says it is for another deployment: its caller had this address from a replica that has gone.

    One that says nothing passes.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let a call pass, or put a handler in its place that refuses it."""
        handler = await continuation(handler_call_details)
        meant = dict(handler_call_details.invocation_metadata or ()).get(DEPLOYMENT_METADATA, self._name)
        if handler is None or meant == self._name:
            return handler
        error = UnavailableError(
            f"no replica of {meant!s} is here any more, but one of {self._name}",
            cure="call modelkit://COMPUTE/DEPLOYMENT, which finds the replicas that are there now",
            executed=False,
        )
        return _refusing(handler, error)


def _refusing(handler: Any, error: CallError) -> Any:
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
