"""The token path to an engine's own HTTP server: one pooled client, bytes passed on where nothing needs reading.

An OpenAI-compatible server answers with JSON, or with server-sent events whose data are JSON chunks. This client frames
the events and maps failures; what is inside a chunk is read by those who need it.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from modelkit.errors import (
    CallError,
    DeadlineExceededError,
    EngineError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

__all__ = ["Upstream"]

# An engine may read a long prompt for minutes before its first byte; only getting a connection is bounded.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)

_OK = 200

_ERRORS: Mapping[int, type[CallError]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: UnimplementedError,
    408: DeadlineExceededError,
    409: FailedPreconditionError,
    413: InvalidArgumentError,
    415: InvalidArgumentError,
    422: InvalidArgumentError,
    429: OverloadedError,
    501: UnimplementedError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
}


class Upstream:
    """Speaks to one OpenAI-compatible server. `url` may change between requests (a restarted engine's port does).

    Ending an iteration early, or cancelling its task, closes the connection, which engines take as an abort. Raises
    CallError: the class by the HTTP status, the message the engine's own; UnavailableError where the server is gone.
    """

    def __init__(self, name: str, url: str, *, api_key: str | None = None) -> None:
        self.name = name
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, endpoint: str, body: bytes) -> bytes:
        """Return the whole response to one request."""
        async with self._send(endpoint, body) as response:
            return await response.read()

    async def stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the data of each server-sent event, up to and without [DONE]."""
        async with self._send(endpoint, body) as response:
            if not response.content_type.startswith("text/event-stream"):
                raise self._error(await response.read(), response.status)
            async for data in _events(response.content):
                if data == b"[DONE]":
                    return
                if data.startswith((b'{"error"', b'{"object":"error"')):
                    raise self._error(data, _status_in(data))
                yield data

    async def get(self, path: str) -> bytes:
        """Return what the server answers at a path such as /v1/models or /metrics."""
        async with self._guard(), self._pool().get(self.url + path, headers=self._headers) as response:
            content = await response.read()
            if response.status != _OK:
                raise self._error(content, response.status)
            return content

    @asynccontextmanager
    async def _send(self, endpoint: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self.url}/v1{endpoint}"
        async with self._guard(), self._pool().post(url, data=body, headers=self._headers) as response:
            if response.status != _OK:
                raise self._error(await response.read(), response.status)
            yield response

    @asynccontextmanager
    async def _guard(self) -> AsyncIterator[None]:
        """Turn the HTTP library's errors into ours."""
        try:
            yield
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise UnavailableError(f"{self.name} does not take connections at {self.url}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"{self.name} went away: {reason}", retry_after_s=1.0) from error

    def _pool(self) -> aiohttp.ClientSession:
        """Return the session, made on the loop that uses it; callers bound the number of connections, not the pool."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, read_bufsize=2**18)
        return self._session

    def _error(self, content: bytes, status: int) -> CallError | EngineError:
        message = f"{self.name}: {_message_in(content) or f'HTTP status {status}'}"
        kind = _ERRORS.get(status, InternalError)
        retry_after_s = 1.0 if kind in (OverloadedError, UnavailableError) else None
        return kind(message, retry_after_s=retry_after_s)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the data of each event. Servers of this kind send one `data:` line an event; other fields are skipped."""
    rest = b""
    async for block in content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _message_in(content: bytes) -> str:
    """Return the message of an error in any of the shapes that engines use; the text itself where it is no JSON."""
    try:
        parsed: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:500].decode(errors="replace").strip()
    for key in ("error", "message", "detail"):
        if isinstance(parsed, dict) and key in parsed:
            parsed = parsed[key]
    return parsed if isinstance(parsed, str) else orjson.dumps(parsed).decode()


def _status_in(content: bytes) -> int:
    """Return the HTTP-like code inside an error event, 500 where there is none."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        return 500
    inner = parsed.get("error", parsed)
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, int) else 500
