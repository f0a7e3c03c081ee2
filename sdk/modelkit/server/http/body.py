"""Request bodies: JSON and nothing else unless asked, of bounded size."""

from typing import Any

import orjson
from aiohttp import web

from modelkit.errors import InvalidArgumentError

__all__ = ["UnsupportedMediaError", "parse_object", "read_json_bytes"]


class UnsupportedMediaError(Exception):
    """A body of a type that the route does not take; the answer is 415."""


async def read_json_bytes(request: web.Request) -> bytes:
    """Read the body. Raises HTTPRequestEntityTooLarge over the server's limit, UnsupportedMediaError if not JSON.

    The type is asked for because a browser sends other types across origins without asking (CORS), and a server on
    somebody's own machine has no other guard against a web page that calls it.
    """
    if request.content_type != "application/json":
        given = request.headers.get("Content-Type", "no type")
        raise UnsupportedMediaError(f"the body must be application/json, not {given}")
    return await request.read()


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises InvalidArgumentError."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"the request is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError("the request is not a JSON object", cure='send {"argument": value, ...}')
    return content
