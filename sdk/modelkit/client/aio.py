"""The asynchronous client: the same surface as `sync`, for one event loop."""

# ruff: noqa: SLF001 - the client, its methods and its streams are parts of one thing

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from modelkit.client.base import BaseClient, BaseMethods, BaseRemoteMethod, Call, Health, ReadyWait
from modelkit.client.binding import bind, merge_arguments, name_arguments
from modelkit.client.channel import inference_stub
from modelkit.client.description import MethodDescription, ModelDescription, read_description
from modelkit.client.messages import Chunk, Response, StreamReader, Usage, encode_item, read_response
from modelkit.client.retry import RetryPolicy
from modelkit.client.settings import TLS
from modelkit.errors import (
    CancelledCallError,
    FailedPreconditionError,
    InvalidArgumentError,
    MethodNotFoundError,
    UnimplementedError,
)
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["AsyncCall", "AsyncClient", "AsyncMethods", "AsyncRemoteMethod", "AsyncStream"]


class AsyncClient(BaseClient):
    """Calls the methods of a served model from asynchronous code.

        async with AsyncClient("localhost:50051") as client:
            await client.predict("What is gRPC?")
            async for piece in client.generate(prompt="What is gRPC?"):
                print(piece, end="", flush=True)
            await client.methods.summarize(text="...")

    Parameters and errors are those of `Client`. It belongs to the event loop of its first call.
    """

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
            (grpc.aio.insecure_channel, grpc.aio.secure_channel),
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        self._open: tuple[Any, Any] | None = None

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
        """Call a unary method and return its result with usage, request id and metadata."""
        named = await self._named(method, args, merge_arguments(arguments, kwargs))
        call = self._new_call(method, named, timeout_s=timeout_s, metadata=metadata)
        answer = await self._ask(call, self._stub.Predict, call.invocation.predict_request())
        return read_response(answer, call.request_id)

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

        async def prepare() -> "_Prepared":
            named = await self._named(method, args, merged)
            return self._prepare_generate(
                self._new_call(method, named, timeout_s=timeout_s, metadata=metadata)
            )

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
        """Call a bidirectional method: send `items` as they come, and return an iterator over what comes back meanwhile."""
        merged = merge_arguments(arguments, kwargs)

        async def prepare() -> "_Prepared":
            call = self._new_call(method, merged, timeout_s=timeout_s, metadata=metadata)
            return self._prepare_stream(call, items)

        return AsyncStream(prepare)

    @property
    def methods(self) -> "AsyncMethods":
        """The methods of the model as functions: `await client.methods.summarize(text="...")`."""
        return AsyncMethods(self)

    async def describe(self, *, timeout_s: float | None = None) -> ModelDescription:
        """Ask the server what its model is and which methods it has."""
        call = self._new_call(timeout_s=timeout_s)
        self._description = read_description(await self._ask(call, self._stub.Describe, pb.DescribeRequest()))
        return self._description

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> Health:
        """Return the state of a service of the server; "" is readiness, "liveness" is whether it answers at all."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        call = self._new_call(timeout_s=timeout_s)
        check = HealthStub(self._channel).Check
        answer = await self._ask(call, check, health_pb2.HealthCheckRequest(service=service))
        state: Health = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return state

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model takes calls; the server may still be starting. Raises DeadlineExceededError."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        call = self._new_call(timeout_s=timeout_s)
        wait = ReadyWait(call)
        while True:
            updates = HealthStub(self._channel).Watch(health_pb2.HealthCheckRequest(), **call.options())
            pause = wait.POLL_S
            try:
                async for update in updates:
                    if wait.saw(update.status):
                        return
            except grpc.RpcError as error:
                pause = wait.pause_s(error)
            finally:
                updates.cancel()
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        if self._open is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _channel(self) -> Any:
        return self._connection()[0]

    @property
    def _stub(self) -> Any:
        return self._connection()[1]

    def _connection(self) -> tuple[Any, Any]:
        """Return channel and stub, made on first use: a channel belongs to the loop that runs then."""
        if self._open is None:
            channel = self._open_channel()
            self._open = channel, inference_stub(channel)
        return self._open

    async def _ask(self, call: Call, method: Any, request: Any) -> Any:
        """Call a unary RPC, again where the policy says so."""
        while True:
            try:
                return await method(request, **call.options())
            except grpc.RpcError as error:
                failure = call.failure(error)
                pause = call.attempts.pause_s(failure)
                if pause is None:
                    raise failure from error
            await asyncio.sleep(pause)

    async def _named(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return name_arguments((await self._known()).method(method), args, kwargs) if args else kwargs

    async def _known(self) -> ModelDescription:
        """Return what the server said of itself, asking once."""
        return self._description or await self.describe()

    def _prepare_generate(self, call: Call) -> "_Prepared":
        return _Prepared(
            call, lambda: self._stub.Generate(call.invocation.generate_request(), **call.options()), None
        )

    def _prepare_stream(self, call: Call, items: Iterable[Any] | AsyncIterable[Any]) -> "_Prepared":
        source = _Source(items)

        def dial() -> Any:
            return self._stub.Stream(source.messages(call.invocation.stream_start()), **call.options())

        return _Prepared(call, dial, source)


class AsyncStream(AsyncIterator[Any]):
    """The items of a streamed result, in order, each as soon as it is here.

    Leaving an `async with` block early, `close` and `cancel` all stop the model's work, as does cancelling the task
    that iterates. `usage`, `request_id` and `metadata` grow as messages arrive and are complete at the end.
    """

    def __init__(self, prepare: "Callable[[], Awaitable[_Prepared]]") -> None:
        self._prepare = prepare
        self._reader = StreamReader("")
        self._ready: Iterator[Any] = iter(())
        self._prepared: _Prepared | None = None
        self._rpc: Any = None
        self._stopped = False
        self._closed = False

    @property
    def usage(self) -> Usage | None:
        """The tokens used so far; None until the model reports them."""
        return self._reader.usage

    @property
    def request_id(self) -> str:
        """The name of this call, the same as in the server's log; empty before it starts."""
        return self._reader.request_id

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model says beside the items; complete at the end."""
        return self._reader.metadata

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

    def cancel(self) -> None:
        """Stop the call; whoever is iterating gets CancelledCallError."""
        self._stopped = True
        if self._rpc is not None:
            self._rpc.cancel()

    def close(self) -> None:
        """Stop the call and the iteration; nothing happens when it is over already."""
        self._ready = iter(())
        self._closed = True
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Stop the call when a loop was left with `break` and nobody holds the stream any more."""
        if getattr(self, "_rpc", None) is not None:
            with suppress(RuntimeError):  # the event loop is closed, and with it the call
                self._rpc.cancel()

    async def _next_chunk(self) -> Chunk:
        """Wait for the next message. Raises StopAsyncIteration at the end."""
        if self._closed:
            raise StopAsyncIteration
        prepared = await self._connect()
        while True:
            try:
                message = await self._rpc.read()
            except grpc.RpcError as error:
                await self._pause_or_raise(prepared, error)
            except asyncio.CancelledError:
                self._raise_if_not_the_task(prepared)
                self._rpc.cancel()
                raise
            else:
                if message is grpc.aio.EOF:
                    raise StopAsyncIteration
                return self._read(message)
            self._rpc = prepared.dial()

    async def _connect(self) -> "_Prepared":
        """Start the call, once."""
        if self._prepared is None:
            if self._stopped:
                raise CancelledCallError("the call was cancelled before it started")
            self._prepared = await self._prepare()
            self._reader.request_id = self._prepared.call.request_id
            self._rpc = self._prepared.dial()
        return self._prepared

    def _read(self, message: Any) -> Chunk:
        try:
            return self._reader.read(message)
        except BaseException:  # an answer that cannot be read: the model need not go on
            self._rpc.cancel()
            raise

    async def _pause_or_raise(self, prepared: "_Prepared", error: grpc.RpcError) -> None:
        """Wait before the next try of a call that has neither given nor taken anything, or raise what went wrong."""
        source = prepared.source
        if source is not None and source.error is not None:
            raise source.error
        failure = prepared.call.failure(error)
        untouched = not self._reader.started and not (source and source.consumed) and not self._stopped
        pause = prepared.call.attempts.pause_s(failure) if untouched else None
        if pause is None:
            raise failure from error
        await asyncio.sleep(pause)

    def _raise_if_not_the_task(self, prepared: "_Prepared") -> None:
        """Tell a cancelled call, which grpc.aio reports in the same way, from a cancelled task."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        if prepared.source is not None and prepared.source.error is not None:
            raise prepared.source.error
        raise CancelledCallError("the call was cancelled", request_id=self.request_id) from None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A call that is ready to be dialled, as often as the retry policy allows."""

    call: Call
    dial: Callable[[], Any]
    source: "_Source | None"


class _Source:
    """The caller's half of a bidirectional call: remembers whether items were taken, and what taking them raised."""

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._items = items
        self.consumed = False
        self.error: Exception | None = None

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
        except Exception as error:
            self.error = error  # raised again where the caller reads; gRPC cancels the call and only logs it
            raise


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


class AsyncRemoteMethod:
    """A method of the served model: call it, then `await` the result or iterate over it with `async for`."""

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._name = name
        self._timeout_s = timeout_s
        self._metadata = metadata

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncCall:
        """Prepare a call. Wrong arguments raise when it is awaited or iterated, before anything is sent."""
        return AsyncCall(self, args, kwargs)

    def options(
        self, *, timeout_s: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> "AsyncRemoteMethod":
        """Return the same method with a deadline or metadata of its own."""
        return AsyncRemoteMethod(self._client, self._name, timeout_s, metadata)

    def __repr__(self) -> str:
        known = self._client._description  # a repr cannot wait for the server
        if known is None or self._name not in known.method_names:
            return self._name
        return repr(BaseRemoteMethod(known.method(self._name), None, None))

    async def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        method, arguments = await self._bind(args, kwargs)
        if method.kind != "unary":
            raise UnimplementedError(
                f"{method.name}() streams", cure=f"iterate: async for item in {method.name}(...)"
            )
        return await self._client.predict(
            method=method.name, timeout_s=self._timeout_s, metadata=self._metadata, arguments=arguments
        )

    async def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Prepared:
        method, arguments = await self._bind(args, kwargs)
        if method.kind == "unary":
            raise UnimplementedError(f"{method.name}() does not stream", cure=f"await {method.name}(...)")
        streamed = method.streamed_argument
        items = arguments.pop(streamed.name, ()) if streamed is not None else ()
        call = self._client._new_call(
            method.name, arguments, timeout_s=self._timeout_s, metadata=self._metadata
        )
        if streamed is None:
            return self._client._prepare_generate(call)
        return self._client._prepare_stream(call, items)

    async def _bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[MethodDescription, dict[str, Any]]:
        method = (await self._client._known()).method(self._name)
        try:
            return method, bind(method, args, kwargs)
        except InvalidArgumentError:
            current = (await self._client.describe()).method(self._name)
            if current == method:
                raise
            return current, bind(current, args, kwargs)  # the server was reloaded with another signature


class AsyncMethods(BaseMethods):
    """The methods of the served model. `dir` and `repr` know them once the client has described the model."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __getitem__(self, name: str) -> AsyncRemoteMethod:
        if self._client._description is not None:
            self._known().method(name)
        return AsyncRemoteMethod(self._client, name)

    def __getattr__(self, name: str) -> AsyncRemoteMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except MethodNotFoundError as error:
            raise AttributeError(error.message) from error

    def __repr__(self) -> str:
        if self._client._description is None:
            return f"<methods of {self._client.address}: await client.describe() to see them>"
        return super().__repr__()

    def __dir__(self) -> list[str]:
        return list(object.__dir__(self)) if self._client._description is None else super().__dir__()

    def _known(self) -> ModelDescription:
        known = self._client._description
        if known is None:
            raise FailedPreconditionError(
                "the methods are not known yet", cure="await client.describe() before listing them"
            )
        return known
