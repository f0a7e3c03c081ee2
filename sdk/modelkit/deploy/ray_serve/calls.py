"""A gRPC call as Ray hands it to a replica, in the shape that the servicer knows from gRPC itself.

Ray calls methods with a copy of the call's context and takes what they yield. What goes wrong leaves as code, message
and google.rpc details on that copy, never as an exception: of those Ray sends the text, traceback included, and no
details.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

import grpc

from modelkit.computes.endpoint import told_timeout_s

__all__ = ["Call", "serve_stream", "serve_unary"]

T = TypeVar("T")

_END: Final = object()


class _AbortError(Exception):
    """Ends a call whose status is on its context."""


class Call:
    """The part of grpc.aio.ServicerContext that the servicer uses, over the context that Ray passes."""

    def __init__(self, grpc_context: Any) -> None:
        self._context = grpc_context
        self._metadata = tuple(grpc_context.invocation_metadata() or ())
        self._deadline = _deadline(self._metadata)
        self._is_cancelled = False
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        """Return what the caller sent with the call."""
        return self._metadata

    def authorization(self) -> str:
        """Return the caller's key as it was sent, "" for none."""
        return next((str(value) for key, value in self._metadata if key == "authorization"), "")

    def time_remaining(self) -> float | None:
        """Return the seconds to the caller's deadline, which it has to say in the metadata: Ray does not pass it on."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancelled(self) -> bool:
        """Tell whether the caller has gone."""
        return self._is_cancelled

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with a status."""
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise _AbortError(details)

    async def write(self, message: Any) -> None:
        """Hand over a message; waits while the one before it has not been taken."""
        await self._room.acquire()
        self._messages.put_nowait(message)

    def end(self) -> None:
        """Say that no message follows."""
        self._messages.put_nowait(_END)

    async def read(self) -> Any:
        """Return the next message; `_END` after the last."""
        message = await self._messages.get()
        self._room.release()
        return message

    def leave(self) -> None:
        """Note that nobody waits for the answer any more."""
        self._is_cancelled = True


async def serve_unary(grpc_context: Any, answer: Callable[[Call], Awaitable[T]], empty: T) -> T:
    """Answer a call of one response; `empty` goes with a status that is an error, and no caller sees it."""
    call = Call(grpc_context)
    try:
        async with asyncio.timeout(call.time_remaining()):
            return await answer(call)
    except _AbortError:
        return empty
    except TimeoutError:
        _set_late(grpc_context)
        return empty
    except asyncio.CancelledError:
        call.leave()
        raise


async def serve_stream(
    grpc_context: Any, answer: Callable[[Call], Awaitable[None]], empty: T
) -> AsyncGenerator[T, None]:
    """Answer a call of many responses. Where it fails, `empty` follows the last: with it the status travels."""
    call = Call(grpc_context)
    task = asyncio.ensure_future(answer(call))
    task.add_done_callback(lambda _: call.end())
    try:
        async with asyncio.timeout(call.time_remaining()):
            while (message := await call.read()) is not _END:
                yield message
        task.result()
    except _AbortError:
        yield empty
    except TimeoutError:
        _set_late(grpc_context)
        yield empty
    finally:
        if not task.done():
            call.leave()
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen, so asyncio does not complain


def _set_late(grpc_context: Any) -> None:
    grpc_context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
    grpc_context.set_details("the caller's deadline has passed")


def _deadline(metadata: Iterable[tuple[str, Any]]) -> float | None:
    """Return the moment, on the monotonic clock, that the caller's metadata name; None where they name none."""
    timeout_s = told_timeout_s(metadata)
    return None if timeout_s is None else time.monotonic() + timeout_s
