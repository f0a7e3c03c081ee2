"""Server-sent events to one reader, with backpressure and as few writes as the reader's pace asks for.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

__all__ = ["EventWriter", "event"]

# How much may wait for a reader that does not keep up, beside the transport's own 64 KiB; then the model waits.
_MAX_PENDING_BYTES = 256 * 1024
# A generator that never waits would keep the event loop to itself; it gets out of the way after so many events.
_YIELD_EVERY = 16

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect the events otherwise
}


def event(data: bytes, name: str = "") -> bytes:
    """Frame one event; data of several lines becomes several `data:` lines, as the format asks."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.splitlines())
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\n\n" % data


class EventWriter:
    """Writes the events of one response.

    An event goes out at once. Those that follow in the same turn of the event loop, and those that come while the
    reader lags, leave together in one write; no timer is involved. `put` waits once too much is pending.
    """

    def __init__(
        self, response: web.StreamResponse, writer: AbstractStreamWriter, request: web.Request
    ) -> None:
        self._response = response
        self._writer = writer
        self._protocol = request.protocol
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._wrote_this_turn = False
        self._flushing: asyncio.Task[None] | None = None
        self._since_yield = 0

    @classmethod
    async def open(cls, request: web.Request) -> "EventWriter":
        """Begin the response; its headers leave with the first event."""
        response = web.StreamResponse(headers=_HEADERS)
        writer = await response.prepare(request)
        assert writer is not None
        return cls(response, writer, request)

    async def put(self, data: bytes) -> None:
        """Write a framed event, now or with the next ones. Raises ConnectionError once the reader has gone."""
        if not (self._wrote_this_turn or self._flushing or self._protocol.writing_paused):
            self._wrote_this_turn = True
            self._loop.call_soon(self._on_next_turn)
            await self._writer.write(data)
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._protocol.writing_paused and self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())
        if self._pending_bytes >= _MAX_PENDING_BYTES:
            await self._flushed()
        self._since_yield += 1
        if self._since_yield >= _YIELD_EVERY:
            self._since_yield = 0
            await asyncio.sleep(0)

    async def finish(self, data: bytes = b"") -> web.StreamResponse:
        """Write what is pending and a last event, and end the response."""
        if self._flushing is not None:
            await self._flushed()
        await self._response.write_eof(b"".join([*self._take(), data]))
        return self._response

    def abort(self) -> None:
        """Give up what is pending: the reader has gone."""
        self._take()
        if self._flushing is not None:
            self._flushing.cancel()

    def _on_next_turn(self) -> None:
        self._wrote_this_turn = False
        if self._pending and self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Write what is pending as soon as the reader takes it, until nothing is."""
        try:
            while self._pending:
                await self._writer.drain()
                await self._writer.write(b"".join(self._take()))
        except ConnectionError:
            pass  # the next write finds the same, in the call's own task
        finally:
            self._flushing = None

    async def _flushed(self) -> None:
        if self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())
        await asyncio.shield(self._flushing)

    def _take(self) -> list[bytes]:
        events, self._pending, self._pending_bytes = self._pending, [], 0
        return events
