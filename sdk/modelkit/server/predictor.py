"""The transport-free core: takes decoded arguments, checks them, runs the author's method, gives values back.

It knows neither gRPC nor HTTP. Whatever goes wrong leaves as a CallError, and nothing else does, but for the
cancellation of the task that calls it. Each call runs in a task of its own, whose context carries its Request.
"""

import asyncio
import contextvars
import enum
import functools
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeVar

from modelkit.errors import (
    CallError,
    InternalError,
    LoadError,
    MethodNotFoundError,
    ModelkitError,
    UnavailableError,
    UnimplementedError,
)
from modelkit.model import REQUEST, MethodKind, Model, Request, Signature, read_signatures
from modelkit.server.gate import Gate
from modelkit.server.metrics import CallMetrics
from modelkit.server.threads import LoopIterator, ThreadStream

__all__ = ["Predictor", "State"]

T = TypeVar("T")

_SETTLE_S = 2.0

_log = logging.getLogger("modelkit.server")

# What a caller should do with a method of each kind, named by the RPC of the contract.
_RPC = {MethodKind.UNARY: "Predict", MethodKind.SERVER_STREAM: "Generate", MethodKind.BIDIRECTIONAL: "Stream"}


class State(enum.StrEnum):
    """Where a model is in its life. Only a ready one takes calls."""

    LOADING = "loading"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    FAILED = "failed"


class Predictor:
    """Runs one model. `load()` once, then any number of concurrent calls, then `drain()` and `close()`."""

    def __init__(self, model: Model, *, max_concurrency: int = 128, max_queue: int = 1024) -> None:
        self.model = model
        self.signatures: Mapping[str, Signature] = read_signatures(type(model))
        self._state = State.LOADING
        self.called_at = 0.0  # time.monotonic() of the last call, taken or refused
        self.gate = Gate(max_concurrency, max_queue)
        self.metrics = CallMetrics(self.signatures)
        # A thread per running call and no more: the gate is the only queue.
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="modelkit-call")
        # Of their own, so that close() can run while load() or every call hangs.
        self._hook_threads = ThreadPoolExecutor(2, thread_name_prefix="modelkit-life")
        self._running_threads: set[Future[Any]] = set()

    # ------------------------------------------------------------------------------------------------------- life

    async def load(self) -> None:
        """Load the model. Raises LoadError, or the ModelkitError that the model raised."""
        try:
            await self._call_hook(self.model.load)
        except ModelkitError:
            self._state = State.FAILED
            raise
        except (Exception, SystemExit) as error:  # author's code may raise anything
            self._state = State.FAILED
            _log.exception("%s.load failed", type(self.model).__name__)
            raise LoadError(
                f"{type(self.model).__name__}.load raised {type(error).__name__}: {error}",
                cure="the traceback is in the log above; mend load in model.py",
            ) from error
        self._state = State.READY

    @property
    def state(self) -> State:
        """Where the model is in its life: unavailable where it has loaded but says that it cannot answer now."""
        if self._state is State.READY and self.model.unready_reason:
            return State.UNAVAILABLE
        return self._state

    def unready_reason(self) -> str:
        """Say why calls are not taken now, "" where they are."""
        if self._state is not State.READY:
            return f"the model is {self._state}"
        return self.model.unready_reason

    def dead_reason(self) -> str:
        """Say why the process has to be started again, "" where it has not."""
        return self.model.dead_reason if self._state is State.READY else ""

    def drain(self) -> None:
        """Refuse new calls from now on; the ones that run go on."""
        if self._state is State.READY:
            self._state = State.DRAINING

    async def close(self, timeout_s: float = 10.0) -> int:
        """Close the model once its cancelled calls have ended. Returns how many threads nothing could stop."""
        await self._settle()
        num_stuck = sum(not future.done() for future in self._running_threads)
        try:
            await asyncio.wait_for(self._call_hook(self.model.close), timeout_s)
        except TimeoutError:
            num_stuck += 1
            _log.error("%s.close did not end within %g s", type(self.model).__name__, timeout_s)
        except (Exception, SystemExit):  # noqa: BLE001 - author's code may raise anything
            _log.exception("%s.close raised", type(self.model).__name__)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._hook_threads.shutdown(wait=False)
        return num_stuck

    async def _settle(self) -> None:
        """Wait a moment for calls that were just cancelled: their `finally` blocks need the model."""
        deadline = time.monotonic() + _SETTLE_S
        while self.gate.num_running and time.monotonic() < deadline:  # noqa: ASYNC110 - once in a server's life
            await asyncio.sleep(0.01)

    async def _call_hook(self, hook: Callable[[], Awaitable[None] | None]) -> None:
        """Call `load` or `close`: on the loop if it is async, else in a thread, so that health checks answer."""
        if inspect.iscoroutinefunction(hook):
            await hook()
            return
        result = await asyncio.get_running_loop().run_in_executor(
            self._hook_threads, _carry_stop_iteration, hook
        )
        if result is not None:
            await result

    # ------------------------------------------------------------------------------------------------------ calls

    async def predict(self, request: Request, arguments: Mapping[str, Any]) -> Any:
        """Call a unary method. Raises CallError."""
        # One coroutine, and no call that can be spared: at thousands of calls a second each of them shows.
        REQUEST.set(request)
        with self.metrics.call(request):
            signature = self._find(request.method, MethodKind.UNARY)
            if not self.gate.try_enter():
                await self.gate.enter()
            threaded = None
            try:
                slow = signature.binds_slowly
                bound = await self._bind(signature, arguments) if slow else signature.bind(arguments)
                function = getattr(self.model, signature.name)
                if signature.is_async:
                    return signature.check_result(signature.name, await function(**bound))
                threaded = self._submit(functools.partial(function, **bound))
                result = await asyncio.wrap_future(threaded)
                # A decorator may hide that a method is a coroutine function.
                result = await result if inspect.iscoroutine(result) else result
                return signature.check_result(signature.name, result)
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - author's code may raise anything
                request.cancelled = True
                _raise_as_call_error(error, request)
            finally:
                self._leave(threaded)

    async def generate(self, request: Request, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Call a server-streaming method and yield its items as they come. Raises CallError.

        Closing the iteration, or cancelling the task that iterates, ends the author's generator.
        """
        REQUEST.set(request)
        with self.metrics.call(request) as timer:
            signature = self._find(request.method, MethodKind.SERVER_STREAM)
            async with self._admitted(request):
                bound = await self._bind(signature, arguments)
                async with aclosing(self._items(request, signature, bound)) as items:
                    async for item in items:
                        timer.item()
                        yield signature.check_result(signature.name, item)

    async def stream(
        self, request: Request, arguments: Mapping[str, Any], incoming: AsyncIterator[Any]
    ) -> AsyncGenerator[Any, None]:
        """Call a bidirectional method: `incoming` are the decoded items of its streamed argument. As `generate`."""
        REQUEST.set(request)
        with self.metrics.call(request) as timer:
            signature = self._find(request.method, MethodKind.BIDIRECTIONAL)
            async with self._admitted(request):
                bound = await self._bind(signature, arguments)
                checked = (signature.check_item(item) async for item in incoming)
                async with aclosing(self._items(request, signature, bound, checked)) as items:
                    async for item in items:
                        timer.item()
                        yield signature.check_result(signature.name, item)

    def _find(self, name: str, kind: MethodKind) -> Signature:
        self.called_at = time.monotonic()
        reason = self.unready_reason()
        if reason:
            cure = (
                "wait until the server is ready" if self.state in (State.LOADING, State.UNAVAILABLE) else ""
            )
            raise UnavailableError(reason, cure=cure, retry_after_s=1.0, executed=False)
        signature = self.signatures.get(name)
        if signature is None:
            raise MethodNotFoundError(name, list(self.signatures))
        if signature.kind is not kind:
            right = _RPC[signature.kind]
            raise UnimplementedError(
                f"'{name}' is a {signature.kind.replace('_', ' ')} method: it is called with {right}, not {_RPC[kind]}",
                cure=f"call it with client.{right.lower()}(...)",
            )
        return signature

    @asynccontextmanager
    async def _admitted(self, request: Request) -> AsyncIterator[None]:
        """Hold a place at the gate for the time of a stream, and turn what goes wrong into a CallError."""
        await self.gate.enter()
        try:
            yield
        except GeneratorExit:
            raise
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - author's code may raise anything
            _raise_as_call_error(error, request)
        finally:
            request.cancelled = True  # over: a synchronous method that still runs can see it
            self.gate.leave()

    async def _bind(self, signature: Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check the arguments; in a thread where that takes long (decoding images), so that streams flow on."""
        if not signature.binds_slowly:
            return signature.bind(arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, signature.bind, arguments)

    def _items(
        self,
        request: Request,
        signature: Signature,
        bound: dict[str, Any],
        incoming: AsyncIterator[Any] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Yield the method's items; `request.progress` is the usage that belongs to the one just yielded."""
        function = functools.partial(getattr(self.model, signature.name), **bound)
        if signature.is_async:
            return _iterate_on_loop(request, functools.partial(function, **_stream(signature, incoming)))
        return self._iterate_in_thread(request, signature, function, incoming)

    async def _iterate_in_thread(
        self,
        request: Request,
        signature: Signature,
        start: Callable[..., Any],
        incoming: AsyncIterator[Any] | None,
    ) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        stream = ThreadStream(loop, request.usage.totals)
        source = LoopIterator(incoming, loop) if incoming is not None else None
        thread = self._submit(
            functools.partial(stream.run, functools.partial(start, **_stream(signature, source)))
        )
        try:
            async with aclosing(aiter(stream)) as items:
                async for item, totals in items:
                    request.progress = totals
                    yield item
        finally:
            request.cancelled = (
                True  # before the wait: the author's code may be looking at it between two yields
            )
            stream.cancel()
            if source is not None:
                source.cancel()
            # The place at the gate is kept until the thread is free again: it cannot be taken from the author's code.
            await asyncio.wait([asyncio.wrap_future(thread)])

    def _submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run in a thread, in a copy of this task's context."""
        future = self._threads.submit(contextvars.copy_context().run, _carry_stop_iteration, function)
        self._running_threads.add(future)
        future.add_done_callback(self._running_threads.discard)
        return future

    def _leave(self, threaded: "Future[Any] | None") -> None:
        """Give the place at the gate back; that of a thread which outlives its cancelled call when it ends."""
        if threaded is None or threaded.done() or threaded.cancel():
            self.gate.leave()
            return
        loop = asyncio.get_running_loop()
        threaded.add_done_callback(lambda _: _call_on(loop, self.gate.leave))


def _stream(signature: Signature, iterator: Any) -> dict[str, Any]:
    return {signature.streamed: iterator} if signature.streamed else {}


def _carry_stop_iteration(function: Callable[[], T]) -> T:
    """Call; a StopIteration that escapes (`next` without a default) cannot travel through a future, which would hang."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("StopIteration escaped; give next() a default") from error


async def _iterate_on_loop(request: Request, start: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """Iterate what an async method gives: an async generator, or a coroutine that returns an async iterator."""
    items = start()
    if inspect.iscoroutine(items):
        items = await items
    try:
        async for item in items:
            request.progress = request.usage.totals()
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


def _call_on(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


def _raise_as_call_error(error: BaseException, request: Request) -> NoReturn:
    """Raise what the caller is told; a cancellation of the call itself stays one."""
    task = asyncio.current_task()
    own_cancellation = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
    if isinstance(error, CallError) or own_cancellation:
        raise error
    if isinstance(error, ModelkitError):
        raise InternalError(error.message, cure=error.cure) from error
    # The text of an error that was not meant for callers may hold paths, addresses or secrets.
    raise InternalError(
        f"method '{request.method}' raised {type(error).__name__}",
        cure="the server's log has the traceback under the request id; a method that raises a modelkit error "
        "(InvalidArgumentError, ...) tells its callers why",
    ) from error
