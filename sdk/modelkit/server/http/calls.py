"""A call over HTTP, from its headers to its end: what the gRPC servicer is for gRPC."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from modelkit.errors import CallError, DeadlineExceededError, InvalidArgumentError, UnavailableError
from modelkit.model import REQUEST, Request
from modelkit.server.http.sse import EventWriter
from modelkit.server.logs import REQUEST_ID_HEADER, log_call, request_id_from

__all__ = ["REQUEST_ID", "TIMEOUT_HEADER", "Calls", "Framing", "request_id_of"]

T = TypeVar("T")

REQUEST_ID = web.RequestKey("request_id", str)
# Seconds that the caller is willing to wait for the whole answer; gRPC has deadlines of its own.
TIMEOUT_HEADER = "x-request-timeout"


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream looks on the wire: an item, the end of a call that went well, and an error in the middle."""

    item: Callable[[Any], bytes]
    end: Callable[[Request], bytes]
    error: Callable[[CallError], bytes]


class Calls:
    """The calls in progress over HTTP. At shutdown they may end by themselves, or are ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_cutting = False

    def begin(self, request: web.Request, method: str) -> Request:
        """Make the Request of a call to a method. Raises InvalidArgumentError for a timeout that is no number."""
        timeout_s = _timeout_s(request)
        call = Request(
            id=request[REQUEST_ID],
            method=method,
            deadline=None if timeout_s is None else time.monotonic() + timeout_s,
        )
        REQUEST.set(call)
        return call

    async def answer(self, call: Request, answering: Awaitable[T]) -> T:
        """Wait for a whole answer. Raises CallError."""
        started = time.perf_counter()
        try:
            async with self._guarded(call):
                result = await answering
        except CallError as error:
            log_call(call, error.grpc_status, started, error)
            raise
        except asyncio.CancelledError:
            log_call(call, "CANCELLED", started)
            raise
        log_call(call, "OK", started)
        return result

    async def stream(
        self, request: web.Request, call: Request, items: AsyncGenerator[Any, None], framing: Framing
    ) -> web.StreamResponse:
        """Send items as events until they end; however that is, `items` is closed.

        The response begins with the first item: an error before it raises CallError, and gets a status of its own.
        """
        started = time.perf_counter()
        writer: EventWriter | None = None
        try:
            async with self._guarded(call), aclosing(items):
                async for item in items:
                    data = framing.item(item)
                    if writer is None:
                        writer = await EventWriter.open(request)
                    await writer.put(data)
            if writer is None:
                writer = await EventWriter.open(request)
            response = await writer.finish(framing.end(call))
        except CallError as error:
            log_call(call, error.grpc_status, started, error)
            if writer is None:
                raise
            return await writer.finish(framing.error(error))
        except (asyncio.CancelledError, ConnectionError):
            if writer is not None:
                writer.abort()
            log_call(call, "CANCELLED", started)
            raise
        log_call(call, "OK", started)
        return response

    async def drain(self, timeout_s: float) -> None:
        """Wait until no call is in progress; those that outlast the time are cut off."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def cut(self) -> None:
        """End every call in progress; its caller is told that the server is shutting down."""
        self._is_cutting = True
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def _guarded(self, call: Request) -> AsyncIterator[None]:
        """Bound a call by its deadline, and know of it at shutdown."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout(call.time_remaining_s()):
                yield
        except TimeoutError as error:
            raise DeadlineExceededError("the caller's deadline passed before the answer was ready") from error
        except asyncio.CancelledError:
            if not self._is_cutting:
                raise
            task.uncancel()
            raise UnavailableError("the server is shutting down", retry_after_s=1.0) from None
        finally:
            self._tasks.discard(task)


def _timeout_s(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not timeout_s > 0:
        raise InvalidArgumentError(
            f"the header {TIMEOUT_HEADER} must be a number of seconds above 0, not {text!r}"
        )
    return None if math.isinf(timeout_s) else timeout_s


def request_id_of(request: web.Request) -> str:
    """Return the caller's id of a request, or a new one: also where its own could not be sent back."""
    header = request.headers.get(REQUEST_ID_HEADER, "")
    return request_id_from(header if header.isascii() and header.isprintable() else None)
