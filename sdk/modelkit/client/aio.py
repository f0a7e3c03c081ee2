"""The asynchronous client: the same surface as `sync`, for one event loop."""

# ruff: noqa: SLF001 - the client, its methods and its streams are parts of one thing

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from modelkit.client.base import (
    BaseClient,
    BaseSource,
    BaseStream,
    Call,
    Health,
    Prepared,
    ReadyWait,
    read_health,
)
from modelkit.client.binding import merge_arguments, name_arguments
from modelkit.client.description import ModelDescription, read_description
from modelkit.client.lane import Lane, Opener
from modelkit.client.messages import Chunk, Response, encode_item, end_of_items, read_response
from modelkit.client.remote_method import BaseMethods, BaseRemoteMethod, Bound
from modelkit.client.retry import Deadline, RetryPolicy
from modelkit.client.settings import TLS
from modelkit.errors import (
    CancelledCallError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    MethodNotFoundError,
    UnavailableError,
    UnimplementedError,
)
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["AsyncCall", "AsyncClient", "AsyncMethods", "AsyncRemoteMethod", "AsyncStream"]


class _Source(BaseSource):
    """The caller's half of a bidirectional call."""

    async def messages(self, start: pb.StreamRequest) -> AsyncIterator[pb.StreamRequest]:
        yield start
        self.consumed = True  # gRPC asks for the second message once the first has left
        try:
            if isinstance(self._items, AsyncIterable):
                async for item in self._items:
                    yield encode_item(item)
            else:
                for item in self._items:
                    yield encode_item(item)
        except Exception as error:  # noqa: BLE001 - raised again where the caller reads
            self.fail(error)
        else:
            yield end_of_items()


class AsyncClient(BaseClient):
    """Calls the methods of a served model from asynchronous code.

        async with AsyncClient("localhost:50051") as client:
            await client.predict("What is gRPC?")
            async for piece in client.generate(prompt="What is gRPC?"):
                print(piece, end="", flush=True)
            await client.methods.summarize(text="...")

    Parameters and errors are those of `Client`. It belongs to the event loop of its first call.
    """

    _SOURCE = _Source

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout_s: float | None = None,
        api_key: str | None = None,
        tls: bool | TLS | None = None,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 - frozen
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        allow_plaintext_api_key: bool = False,
    ) -> None:
        super().__init__(
            address,
            Opener(grpc.aio.insecure_channel, grpc.aio.secure_channel, self._close_soon),
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Future[None]] = set()

    async def predict(
        self,
        *args: Any,
        method: str = "predict",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a unary method and return its result; the arguments are those of `Client.predict`."""
        response = await self.call(
            *args, method=method, timeout_s=timeout_s, metadata=metadata, arguments=arguments, **kwargs
        )
        return response.value

    async def call(
        self,
        *args: Any,
        method: str = "predict",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Response:
        """Call a unary method and return its result with usage, request id, finish reason and metadata."""
        deadline = self._deadline(timeout_s)
        named = await self._named(method, args, merge_arguments(arguments, kwargs), deadline)
        return await self._predict(self._new_call(method, named, deadline, metadata))

    def generate(
        self,
        *args: Any,
        method: str = "generate",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "AsyncStream":
        """Call a server-streaming method and return an asynchronous iterator; the call starts with its first item."""
        merged = merge_arguments(arguments, kwargs)

        async def prepare() -> Prepared:
            deadline = self._deadline(timeout_s)
            named = await self._named(method, args, merged, deadline)
            return self._prepare_generate(self._new_call(method, named, deadline, metadata))

        return AsyncStream(prepare)

    def stream(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        method: str = "stream",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "AsyncStream":
        """Call a bidirectional method: send `items` as they come, and return an iterator over what comes back meanwhile.

        The call starts when its first item is asked for.
        """
        merged = merge_arguments(arguments, kwargs)

        async def prepare() -> Prepared:
            call = self._new_call(method, merged, self._deadline(timeout_s), metadata)
            return self._prepare_stream(call, items)

        return AsyncStream(prepare)

    @property
    def methods(self) -> "AsyncMethods":
        """The methods of the model as functions: `await client.methods.summarize(text="...")`."""
        return AsyncMethods(self)

    async def describe(self, *, timeout_s: float | None = None) -> ModelDescription:
        """Ask the server what its model is and which methods it has."""
        return await self._describe(self._deadline(timeout_s))

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> Health:
        """Return the state of a service of the server; "" is readiness, "liveness" is whether it answers at all."""
        question = self._new_question(self._deadline(timeout_s))
        return read_health(await self._ask(question, *self._health_check(service)))

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model takes calls; the server may still be starting. Raises DeadlineExceededError."""
        wait = ReadyWait(self._new_question(self._deadline(timeout_s)))
        while True:
            try:
                async with self._on_lane(wait.call) as lane:
                    if wait.can_watch:
                        await self._watch(wait, lane)
                    else:
                        wait.saw(await wait.check(lane))
            except (grpc.RpcError, UnavailableError, DeadlineExceededError) as error:
                wait.failed(error)
            if wait.is_over:
                return
            await asyncio.sleep(wait.pause_s())

    async def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        for lane in self._end():
            await lane.channel.close()
        await asyncio.gather(*self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _predict(self, call: Call) -> Response:
        answer = await self._ask(call, lambda lane: lane.stub.Predict, call.invocation.predict_request())
        return read_response(answer, call.request_id)

    async def _describe(self, deadline: Deadline) -> ModelDescription:
        question = self._new_question(deadline)
        answer = await self._ask(question, lambda lane: lane.stub.Describe, pb.DescribeRequest())
        self._description = read_description(answer)
        return self._description

    async def _ask(self, call: Call, method: Callable[[Lane], Any], request: Any) -> Any:
        """Call a unary RPC, again where the policy says so."""
        while True:
            try:
                async with self._on_lane(call) as lane:
                    return await method(lane)(request, **call.options(lane))
            except (grpc.RpcError, UnavailableError) as error:
                pause = call.pause_s(error)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _on_lane(self, call: Call) -> AsyncIterator[Lane]:
        lane = await self._find_lane(call)
        try:
            yield lane
        finally:
            lane.leave()

    async def _find_lane(self, call: Call) -> Lane:
        self._raise_if_closed()
        self._loop = asyncio.get_running_loop()
        while (located := call.locating()) is not None:
            try:
                await asyncio.wait_for(asyncio.wrap_future(located), call.deadline.remaining_s())
            except TimeoutError:
                raise call.not_located() from None  # the compute's own failures are DeployErrors
        return self._enter(call)

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        """Close a channel without waiting: it is told from wherever its last call has ended."""
        if self._is_closed:  # `close` sees to all of them
            return
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._close, channel)

    def _close(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    @staticmethod
    async def _watch(wait: ReadyWait, lane: Lane) -> None:
        updates = wait.watch(lane)
        try:
            async for update in updates:
                if wait.saw(update):
                    return
        finally:
            updates.cancel()

    async def _named(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: Deadline
    ) -> dict[str, Any]:
        """Give the positional arguments their names."""
        if not args:
            return kwargs
        with suppress(InvalidArgumentError, MethodNotFoundError):
            return name_arguments((await self._known(deadline)).method(method), args, kwargs)
        # What is known may be old: the server may have been reloaded with another signature.
        return name_arguments((await self._describe(deadline)).method(method), args, kwargs)

    async def _known(self, deadline: Deadline) -> ModelDescription:
        """Return what the server said of itself, asking once."""
        return self._description or await self._describe(deadline)

    def _recall(self) -> ModelDescription:
        if self._description is None:
            raise FailedPreconditionError(
                "the methods are not known yet", cure="await client.describe() before listing them"
            )
        return self._description


class AsyncStream(BaseStream[Awaitable[Prepared]], AsyncIterator[Any]):
    """The items of a streamed result, in order, each as soon as it is here; the call starts with the first.

    Leaving an `async with` block early, `close` and `cancel` all stop the model's work, as does cancelling the task
    that iterates. `usage`, `request_id`, `finish_reason` and `metadata` grow as messages arrive and are complete at the
    end. Iterate over `chunks()` for the messages as they came.
    """

    async def __anext__(self) -> Any:
        while True:
            for item in self._ready:
                return item
            self._ready = iter((await self._next_chunk()).items)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Iterate over the messages: what one chunk holds arrived together."""
        while True:
            try:
                chunk = await self._next_chunk()
            except StopAsyncIteration:
                return
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _next_chunk(self) -> Chunk:
        """Wait for the next message. Raises StopAsyncIteration at the end."""
        if self._closed:
            raise StopAsyncIteration
        try:
            return self._reader.read(await self._next_message())
        except StopAsyncIteration:
            raise
        except BaseException:  # a cancelled task, or an answer that cannot be read: the model need not go on
            self._hang_up()
            raise

    async def _next_message(self) -> Any:
        prepared = await self._connect()
        while True:
            try:
                if self._rpc is None:
                    self._dial(prepared, await prepared.find_lane(prepared.call))
                message = await self._rpc.read()
            except (grpc.RpcError, UnavailableError) as error:
                await asyncio.sleep(self._pause_s(prepared, error))
            except asyncio.CancelledError:
                self._raise_if_not_the_task(prepared)
                raise
            else:
                if message is grpc.aio.EOF:
                    raise StopAsyncIteration
                return message
            self._rpc = None

    async def _connect(self) -> Prepared:
        """Start the call, once."""
        if self._prepared is None:
            self._raise_if_stopped()
            self._prepared = await self._prepare()
        return self._prepared

    def _leave_at_end(self, lane: Lane) -> None:
        self._rpc.add_done_callback(lane.leave)

    def _raise_if_not_the_task(self, prepared: Prepared) -> None:
        """Tell a cancelled call, which grpc.aio reports in the same way, from a cancelled task."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        if prepared.source is not None and prepared.source.error is not None:
            raise prepared.source.error
        raise CancelledCallError("the call was cancelled", request_id=self.request_id) from None


class AsyncCall:
    """A call of a remote method: `await` it where the method is unary, iterate with `async for` where it streams."""

    def __init__(self, method: "AsyncRemoteMethod", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._method = method
        self._args = args
        self._kwargs = kwargs

    def __await__(self) -> Generator[Any, None, Any]:
        return self._method._answer(self._args, self._kwargs).__await__()

    def __aiter__(self) -> AsyncStream:
        return AsyncStream(lambda: self._method._prepare(self._args, self._kwargs))


class AsyncRemoteMethod(BaseRemoteMethod):
    """A method of the served model: call it, then `await` the result or iterate over it with `async for`."""

    _client: AsyncClient

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncCall:
        """Prepare a call. Wrong arguments raise when it is awaited or iterated, before anything is sent."""
        return AsyncCall(self, args, kwargs)

    async def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        deadline = self._client._deadline(self._timeout_s)
        bound = await self._bind(args, kwargs, deadline)
        name = bound.method.name
        if bound.method.kind != "unary":
            raise UnimplementedError(f"{name}() streams", cure=f"iterate: async for item in {name}(...)")
        call = self._client._new_call(name, bound.arguments, deadline, self._metadata)
        return (await self._client._predict(call)).value

    async def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        deadline = self._client._deadline(self._timeout_s)
        bound = await self._bind(args, kwargs, deadline)
        name = bound.method.name
        if bound.method.kind == "unary":
            raise UnimplementedError(f"{name}() does not stream", cure=f"await {name}(...)")
        return self._prepare_bound(bound, deadline)

    async def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: Deadline) -> Bound:
        with suppress(InvalidArgumentError, MethodNotFoundError):
            return self._fit(await self._client._known(deadline), args, kwargs)
        # What is known may be old: the server may have been reloaded with another signature.
        return self._fit(await self._client._describe(deadline), args, kwargs)


class AsyncMethods(BaseMethods):
    """The methods of the served model. `dir` and `repr` know them once the client has described the model."""

    _METHOD = AsyncRemoteMethod
    _UNKNOWN = "await client.describe() to see them"
