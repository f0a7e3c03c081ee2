"""Request bodies as JSON objects."""

from typing import Any

import orjson

from modelkit.errors import InvalidArgumentError

__all__ = ["parse_object"]


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises InvalidArgumentError."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"the request is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError("the request is not a JSON object", cure='send {"argument": value, ...}')
    return content
