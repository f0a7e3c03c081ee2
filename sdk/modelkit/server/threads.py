"""Synchronous methods on an asynchronous server: their generators run in threads, with backpressure both ways."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from typing import Any

from modelkit.datatypes import Media, Text
from modelkit.errors import CancelledCallError

__all__ = ["LoopIterator", "ThreadStream"]

# How far a generator may run ahead of the reader: enough to fill a message, little enough to be forgotten.
_MAX_AHEAD = 64
_MAX_AHEAD_BYTES = 256 * 1024
_UNKNOWN_SIZE_BYTES = 16 * 1024


class ThreadStream:
    """Hands the items of a synchronous generator, which runs in a thread, to the event loop.

    The thread waits while `_MAX_AHEAD` items, or about `_MAX_AHEAD_BYTES`, are unread. After `cancel()` the generator
    is closed at its next yield, in its own thread, so its `finally` blocks run there. With each item comes what `mark`
    returned in the thread when it was yielded.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, mark: Callable[[], Any]) -> None:
        self._loop = loop
        self._mark = mark
        self._changed = threading.Condition()
        self._items: deque[tuple[Any, Any]] = deque()
        self._num_bytes = 0
        self._error: BaseException | None = None
        self._finished = False
        self._cancelled = False
        self._reader: asyncio.Future[None] | None = None

    def run(self, start: Callable[[], Iterable[Any]]) -> None:
        """Iterate to the end. Called in the thread; `start` calls the author's method there too."""
        try:
            iterable = start()
            try:
                for item in iterable:
                    if not self._put(item):
                        break
            finally:
                close = getattr(iterable, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001 - carried to the reader, whatever it is
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._wake_reader()

    def cancel(self) -> None:
        """Stop the generator at its next yield."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncGenerator[tuple[Any, Any], None]:
        while True:
            batch, waiting = self._take()
            if waiting is not None:
                await waiting
                continue
            if not batch:
                break
            for item in batch:
                yield item
        if self._error is not None:
            raise self._error

    def _put(self, item: Any) -> bool:
        """Add an item, waiting for room; False once the reader is gone."""
        with self._changed:
            while self._is_full() and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                return False
            self._items.append((item, self._mark()))
            self._num_bytes += _size(item)
            self._wake_reader()
            return True

    def _is_full(self) -> bool:
        return len(self._items) >= _MAX_AHEAD or self._num_bytes >= _MAX_AHEAD_BYTES

    def _take(self) -> tuple[deque[tuple[Any, Any]], "asyncio.Future[None] | None"]:
        """Return all items there are; where there are none yet, a future that ends when there may be."""
        with self._changed:
            batch, self._items, self._num_bytes = self._items, deque(), 0
            if batch:
                self._changed.notify_all()
                return batch, None
            if self._finished:
                return batch, None
            self._reader = self._loop.create_future()
            return batch, self._reader

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        try:
            self._loop.call_soon_threadsafe(_resolve, reader)
        except RuntimeError:  # the loop has closed: nobody reads any more
            self._cancelled = True


def _size(item: Any) -> int:
    """Guess how many bytes an item takes; a wrong guess costs memory or a switch of threads, nothing else."""
    if isinstance(item, (str, bytes, Media)):
        return len(item)
    if item is None or isinstance(item, (int, float, Text)):
        return 0
    if isinstance(item, (list, tuple)):
        return sum(map(_size, item))
    if isinstance(item, dict):
        return sum(map(_size, item.values()))
    size = getattr(item, "nbytes", _UNKNOWN_SIZE_BYTES)  # numpy arrays and torch tensors know theirs
    return size if isinstance(size, int) else _UNKNOWN_SIZE_BYTES


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class LoopIterator(Iterator[Any]):
    """An asynchronous iterator of the event loop, read from a thread: the streamed argument of a synchronous method."""

    def __init__(self, source: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._source = source
        self._loop = loop
        self._pending: Future[tuple[Any, ...]] | None = None
        self._cancelled = False

    def __next__(self) -> Any:
        if self._cancelled:
            raise CancelledCallError("the caller went away")
        self._pending = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        try:
            found = self._pending.result()
        except FutureCancelledError as error:
            raise CancelledCallError("the caller went away") from error
        if not found:
            raise StopIteration
        return found[0]

    def cancel(self) -> None:
        """End the wait of the thread, if it waits, and every later one. Called on the event loop."""
        self._cancelled = True
        if self._pending is not None:
            self._pending.cancel()

    async def _next(self) -> tuple[Any, ...]:
        """Return the next item as a tuple of one; empty at the end (a coroutine cannot raise StopIteration)."""
        if self._cancelled:  # between the thread's own check and now; both this and cancel() run on the loop
            raise CancelledCallError("the caller went away")
        async for item in self._source:
            return (item,)
        return ()
