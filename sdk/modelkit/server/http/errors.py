"""Errors as HTTP answers, in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}.

One table gives HTTP status and type for each canonical status of the error tree. The statuses are those that
`engines.upstream` reads back into the same classes, so a modelkit server may stand behind another one.
Source: https://platform.openai.com/docs/guides/error-codes
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from modelkit.errors import CallError
from modelkit.server.status import error_reason

__all__ = ["error_body", "error_json", "error_response", "http_status", "plain_error"]

_TABLE: Final[Mapping[str, tuple[int, str]]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "UNAUTHENTICATED": (401, "authentication_error"),
    "PERMISSION_DENIED": (403, "permission_error"),
    "NOT_FOUND": (404, "invalid_request_error"),
    "FAILED_PRECONDITION": (409, "conflict_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "CANCELLED": (499, "cancelled_error"),
    "INTERNAL": (500, "server_error"),
    "UNIMPLEMENTED": (501, "not_implemented_error"),
    "UNAVAILABLE": (503, "service_unavailable_error"),
    "DEADLINE_EXCEEDED": (504, "timeout_error"),
}
_UNKNOWN: Final = (500, "server_error")
# What may succeed when it is sent again. OpenAI's clients repeat every 409, 429 and 5xx that does not say otherwise.
_REPEATABLE: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


def http_status(error: CallError) -> int:
    """Return the HTTP status of an error."""
    return _TABLE.get(error.grpc_status, _UNKNOWN)[0]


def error_body(error: CallError) -> dict[str, Any]:
    """Return the answer's content. `code` is the error's class: MethodNotFoundError is method_not_found."""
    content: dict[str, Any] = {
        "message": error.message,
        "type": _TABLE.get(error.grpc_status, _UNKNOWN)[1],
        "param": error.violations[0].field if error.violations else None,
        "code": error_reason(error).lower(),
    }
    if error.cure:
        content["cure"] = error.cure
    if error.violations:
        content["violations"] = [
            {"field": violation.field, "description": violation.description} for violation in error.violations
        ]
    return {"error": content}


def error_json(error: CallError) -> bytes:
    """Return the answer's content as JSON in one line."""
    return orjson.dumps(error_body(error))


def error_response(error: CallError) -> web.Response:
    """Return the whole answer; its headers say whether, and when, to try again."""
    headers = {"x-should-retry": "true" if error.grpc_status in _REPEATABLE else "false"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.grpc_status == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = "Bearer"
    return _json(http_status(error), error_json(error), headers)


def plain_error(
    status: int, code: str, message: str, *, cure: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the answer for a fault of HTTP itself, which no class of the error tree stands for (405, 413)."""
    content = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    if cure:
        content["cure"] = cure
    return _json(status, orjson.dumps({"error": content}), {"x-should-retry": "false", **(headers or {})})


def _json(status: int, body: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
