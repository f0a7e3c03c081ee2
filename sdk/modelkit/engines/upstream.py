"""The token path to an engine's own HTTP server: one pooled client, bytes passed on where nothing needs reading.

An OpenAI-compatible server answers with JSON, or with server-sent events whose data are JSON chunks. This client frames
the events and maps failures; what is inside a chunk is read by those who need it.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson

from modelkit.engines.health import Traffic
from modelkit.errors import (
    CallError,
    DeadlineExceededError,
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

# uvicorn, on which the engines run, closes a connection that has been idle for 5 s. A request sent at that moment would
# be lost, and a POST is never sent twice: so the pool is the first to close.
_KEEP_ALIVE_S = 3.0
# After the last event a server ends its response at once; then the connection can be used again.
_END_TIMEOUT_S = 0.5

_OK = 200
_SERVER_FAULT = 500
_DONE = b"[DONE]"
# The last events of /responses, which has no [DONE].
_LAST_RESPONSE_EVENTS = (b"response.completed", b"response.incomplete", b"response.failed")
_MAX_MESSAGE_BYTES = 2000

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
    CallError: the class by the HTTP status, the message the engine's own; UnavailableError where the server is gone,
    also in the middle of an answer.
    """

    def __init__(self, name: str, url: str, *, api_key: str | None = None) -> None:
        self.name = name
        self.url = url.rstrip("/").removesuffix("/v1")
        self.traffic = Traffic()
        self._headers = {"Content-Type": "application/json"}
        self.use_key(api_key)
        self._session: aiohttp.ClientSession | None = None

    def use_key(self, api_key: str | None) -> None:
        """Send this key with every request from now on: a restarted engine has another."""
        self._headers.pop("Authorization", None)
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    async def close(self) -> None:
        """Close the pooled connections; what still streams fails with UnavailableError."""
        if self._session is not None:
            await self._session.close()

    async def post(self, endpoint: str, body: bytes) -> bytes:
        """Return the whole response to one request."""
        return await self.post_at(f"/v1{endpoint}", body)

    async def post_at(self, path: str, body: bytes) -> bytes:
        """Return the whole response of a route outside of /v1."""
        async with self._send("POST", path, body) as response:
            return await response.read()

    async def stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the data of each server-sent event, up to and without [DONE]."""
        async with self._send("POST", f"/v1{endpoint}", body) as response:
            if not response.content_type.startswith("text/event-stream"):
                raise self._error(await response.read(), _SERVER_FAULT)
            last = b""
            async with aclosing(_events(response.content.iter_any(), self.traffic)) as events:
                async for data in events:
                    if data == _DONE:
                        await _read_end(response.content)
                        return
                    if data.startswith((b'{"error"', b'{"object":"error"', b'{"object": "error"')):
                        raise self._error(data, _status_in(data))
                    last = data
                    yield data
            if not _is_last_response_event(last):
                self.traffic.num_failed += 1
                raise UnavailableError(f"{self.name} broke off in the middle of an answer", retry_after_s=1.0)

    async def get(self, path: str) -> bytes:
        """Return what the server answers at a path such as /v1/models or /metrics."""
        async with self._send("GET", path, None) as response:
            return await response.read()

    @asynccontextmanager
    async def _send(self, verb: str, path: str, body: bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and hand out the response, if it is a good one. Turns the HTTP library's errors into ours."""
        try:
            async with self._pool().request(
                verb, self.url + path, data=body, headers=self._headers, allow_redirects=False
            ) as response:
                if response.status != _OK:
                    raise self._error(await response.read(), response.status)
                self.traffic.num_received += 1
                yield response
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            self.traffic.num_failed += 1
            raise UnavailableError(f"{self.name} does not take connections", retry_after_s=1.0) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            self.traffic.num_failed += 1
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"{self.name} went away: {reason}", retry_after_s=1.0) from error

    def _pool(self) -> aiohttp.ClientSession:
        """Return the session, made on the loop that uses it; callers bound the number of connections, not the pool."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, read_bufsize=2**18)
        return self._session

    def _error(self, content: bytes, status: int) -> CallError:
        """Make the error that a response tells of; the engine's own faults count against its health."""
        kind = _ERRORS.get(status, InternalError)
        if status >= _SERVER_FAULT:
            self.traffic.num_failed += 1
        message = f"{self.name}: {_message_in(content) or f'HTTP status {status}'}"
        retry_after_s = 1.0 if kind in (OverloadedError, UnavailableError) else None
        return kind(message, retry_after_s=retry_after_s)


async def _events(blocks: AsyncIterator[bytes], traffic: Traffic) -> AsyncGenerator[bytes, None]:
    """Yield the data of each event, wherever the blocks were cut; and count the blocks.

    Servers of this kind send one `data:` line an event; other fields, comments and empty lines are skipped.
    """
    rest = b""
    async for block in blocks:
        traffic.num_received += 1
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


async def _read_end(content: aiohttp.StreamReader) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            await content.read()


def _is_last_response_event(data: bytes) -> bool:
    if not any(
        name in data for name in _LAST_RESPONSE_EVENTS
    ):  # parsing each would cost more than passing it on
        return False
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(event, dict) and str(event.get("type")).encode() in _LAST_RESPONSE_EVENTS


def _message_in(content: bytes) -> str:
    """Return the message of an error in any of the shapes that engines use; the text itself where it is no JSON."""
    try:
        parsed: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:_MAX_MESSAGE_BYTES].decode(errors="replace").strip()
    for key in ("error", "message", "detail"):
        if isinstance(parsed, dict) and key in parsed:
            parsed = parsed[key]
    text = parsed if isinstance(parsed, str) else orjson.dumps(parsed).decode()
    return text[:_MAX_MESSAGE_BYTES]


def _status_in(content: bytes) -> int:
    """Return the HTTP status inside an error event, 500 where there is none."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        return _SERVER_FAULT
    inner = parsed.get("error", parsed)
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, int) else _SERVER_FAULT
