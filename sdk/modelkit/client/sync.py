"""The synchronous client. Safe to share between threads; every call of it waits, with a deadline where one is set."""

# ruff: noqa: SLF001 - the client, its methods and its streams are parts of one thing

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from modelkit.client.base import BaseClient, BaseMethods, BaseRemoteMethod, Call, Health, ReadyWait
from modelkit.client.binding import bind, merge_arguments, name_arguments
from modelkit.client.channel import inference_stub
from modelkit.client.description import MethodDescription, ModelDescription, read_description
from modelkit.client.messages import Chunk, Response, StreamReader, Usage, encode_item, read_response
from modelkit.client.retry import RetryPolicy
from modelkit.client.settings import TLS
from modelkit.errors import InvalidArgumentError, MethodNotFoundError
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["Client", "Methods", "RemoteMethod", "Stream"]


class Client(BaseClient):
    """Calls the methods of a served model.

        with Client("localhost:50051") as client:
            client.predict("What is gRPC?")
            for piece in client.generate(prompt="What is gRPC?", max_tokens=50):
                print(piece, end="", flush=True)
            client.methods.summarize(text="...")   # typed by what the server says of itself

    `address` is host:port, grpc://host:port, or grpcs://host:port for TLS; MODELKIT_ADDRESS where it is left out, else
    localhost:50051. `api_key` (or MODELKIT_API_KEY) is sent as a bearer token, and in plain text to another machine only
    with `allow_plaintext_api_key`. `timeout_s` is the deadline of each call, retries included. `metadata` is seen by the
    model with every call, `headers` by what stands in front of it.

    Raises UsageError for settings that cannot work, and a subclass of CallError when a call fails.
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
            (grpc.insecure_channel, grpc.secure_channel),
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        self._channel: grpc.Channel = self._open_channel()
        self._stub = inference_stub(self._channel)

    def predict(
        self,
        *args: Any,
        method: str = "predict",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a unary method and return its result.

        An argument of the author's that is called `method`, `timeout_s`, `metadata` or `arguments` goes into
        `arguments={...}`. Positional arguments take their names from the server, asked once.
        """
        return self.call(
            *args, method=method, timeout_s=timeout_s, metadata=metadata, arguments=arguments, **kwargs
        ).value

    def call(
        self,
        *args: Any,
        method: str = "predict",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Response:
        """Call a unary method and return its result with usage, request id and metadata."""
        named = self._named(method, args, merge_arguments(arguments, kwargs))
        call = self._new_call(method, named, timeout_s=timeout_s, metadata=metadata)
        answer = self._ask(call, self._stub.Predict, call.invocation.predict_request())
        return read_response(answer, call.request_id)

    def generate(
        self,
        *args: Any,
        method: str = "generate",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Stream":
        """Call a server-streaming method and return an iterator over its items. Arguments as in `predict`."""
        named = self._named(method, args, merge_arguments(arguments, kwargs))
        call = self._new_call(method, named, timeout_s=timeout_s, metadata=metadata)
        return Stream(call, lambda: self._stub.Generate(call.invocation.generate_request(), **call.options()))

    def stream(
        self,
        items: Iterable[Any],
        *,
        method: str = "stream",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Stream":
        """Call a bidirectional method: send `items` as they come, and return an iterator over what comes back meanwhile.

        `items` is read in a thread of its own, so it may wait for what the stream returned.
        """
        named = merge_arguments(arguments, kwargs)
        call = self._new_call(method, named, timeout_s=timeout_s, metadata=metadata)
        source = _Source(items)

        def dial() -> Any:
            return self._stub.Stream(source.messages(call.invocation.stream_start()), **call.options())

        return Stream(call, dial, source)

    @property
    def methods(self) -> "Methods":
        """The methods of the model as functions: `client.methods.summarize(text="...")`."""
        return Methods(self)

    def describe(self, *, timeout_s: float | None = None) -> ModelDescription:
        """Ask the server what its model is and which methods it has."""
        call = self._new_call(timeout_s=timeout_s)
        self._description = read_description(self._ask(call, self._stub.Describe, pb.DescribeRequest()))
        return self._description

    def health(self, service: str = "", *, timeout_s: float | None = None) -> Health:
        """Return the state of a service of the server; "" is readiness, "liveness" is whether it answers at all."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        check = HealthStub(self._channel).Check
        answer = self._ask(
            self._new_call(timeout_s=timeout_s), check, health_pb2.HealthCheckRequest(service=service)
        )
        state: Health = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return state

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model takes calls; the server may still be starting. Raises DeadlineExceededError."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        call = self._new_call(timeout_s=timeout_s)
        wait = ReadyWait(call)
        while True:
            updates = HealthStub(self._channel).Watch(health_pb2.HealthCheckRequest(), **call.options())
            pause = wait.POLL_S
            try:
                for update in updates:
                    if wait.saw(update.status):
                        return
            except grpc.RpcError as error:
                pause = wait.pause_s(error)
            finally:
                updates.cancel()
            time.sleep(pause)

    def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Call, method: Any, request: Any) -> Any:
        """Call a unary RPC, again where the policy says so."""
        while True:
            try:
                return method(request, **call.options())
            except grpc.RpcError as error:
                failure = call.failure(error)
                pause = call.attempts.pause_s(failure)
                if pause is None:
                    raise failure from error
            time.sleep(pause)

    def _named(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return name_arguments(self._known().method(method), args, kwargs) if args else kwargs

    def _known(self) -> ModelDescription:
        """Return what the server said of itself, asking once."""
        return self._description or self.describe()


class Stream(Iterator[Any]):
    """The items of a streamed result, in order, each as soon as it is here.

    Leaving a `with` block early, `close` and `cancel` all stop the model's work. `usage`, `request_id` and `metadata`
    grow as messages arrive and are complete at the end. Iterate over `chunks()` for the messages as they came.
    """

    def __init__(self, call: Call, dial: Callable[[], Any], source: "_Source | None" = None) -> None:
        self._call = call
        self._dial = dial
        self._source = source
        self._reader = StreamReader(call.request_id)
        self._ready: Iterator[Any] = iter(())
        self._stopped = threading.Event()
        self._rpc: Any = None
        if source is not None:
            source.stream = weakref.ref(self)
        self._connect()

    @property
    def usage(self) -> Usage | None:
        """The tokens used so far; None until the model reports them."""
        return self._reader.usage

    @property
    def request_id(self) -> str:
        """The name of this call, the same as in the server's log."""
        return self._reader.request_id

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model says beside the items; complete at the end."""
        return self._reader.metadata

    def __next__(self) -> Any:
        while True:
            for item in self._ready:
                return item
            self._ready = iter(self._next_chunk().items)

    def chunks(self) -> Iterator[Chunk]:
        """Iterate over the messages: what one chunk holds arrived together."""
        while True:
            try:
                yield self._next_chunk()
            except StopIteration:
                return

    def cancel(self) -> None:
        """Stop the call, from any thread; whoever is iterating gets CancelledCallError."""
        self._stopped.set()
        if self._rpc is not None:
            self._rpc.cancel()

    def close(self) -> None:
        """Stop the call and the iteration; nothing happens when it is over already."""
        self._ready = iter(())
        self._dial = _closed
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Stop the call when a loop was left with `break` and nobody holds the stream any more."""
        if getattr(self, "_rpc", None) is not None:
            self._rpc.cancel()

    def _next_chunk(self) -> Chunk:
        """Wait for the next message. Raises StopIteration at the end."""
        if self._dial is _closed:
            raise StopIteration
        while True:
            try:
                return self._reader.read(next(self._rpc))
            except grpc.RpcError as error:
                self._pause_or_raise(error)
            except StopIteration:
                raise
            except BaseException:  # Ctrl-C, or an answer that cannot be read: the model need not go on
                self._rpc.cancel()
                raise
            self._connect()

    def _connect(self) -> None:
        self._rpc = self._dial()
        if self._stopped.is_set():  # by another thread, which saw the call before this one
            self._rpc.cancel()

    def _pause_or_raise(self, error: grpc.RpcError) -> None:
        """Wait before the next try of a call that has neither given nor taken anything, or raise what went wrong."""
        if self._source is not None and self._source.error is not None:
            raise self._source.error
        failure = self._call.failure(error)
        untouched = not self._reader.started and not (self._source and self._source.consumed)
        pause = self._call.attempts.pause_s(failure) if untouched and not self._stopped.is_set() else None
        if pause is None or self._stopped.wait(pause):
            raise failure from error


def _closed() -> Any:
    raise AssertionError("a closed stream does not dial")


class _Source:
    """The caller's half of a bidirectional call: remembers whether items were taken, and what taking them raised."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self.consumed = False
        self.error: Exception | None = None
        self.stream: Callable[[], Stream | None] = lambda: None  # weak: gRPC's thread must not keep it alive

    def messages(self, start: pb.StreamRequest) -> Iterator[pb.StreamRequest]:
        yield start
        self.consumed = True  # gRPC asks for the second message once the first has left
        try:
            for item in self._items:
                yield encode_item(item)
        except Exception as error:  # noqa: BLE001 - raised again where the caller reads; gRPC would only log it
            self.error = error
            if (stream := self.stream()) is not None:
                stream.cancel()  # before the half-close, which the model would take for the end of the items


class RemoteMethod(BaseRemoteMethod):
    """A method of the served model: call it like a local function."""

    def __init__(
        self,
        client: Client,
        description: MethodDescription,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(description, timeout_s, metadata)
        self._client = client

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result, or a Stream where the method streams. Wrong arguments raise before anything is sent."""
        arguments = self._bind(args, kwargs)
        name, timeout_s, metadata = self.description.name, self._timeout_s, self._metadata
        streamed = self.description.streamed_argument
        if streamed is not None:
            items = arguments.pop(streamed.name, ())
            return self._client.stream(
                items, method=name, timeout_s=timeout_s, metadata=metadata, arguments=arguments
            )
        send = self._client.generate if self.description.kind == "server_stream" else self._client.predict
        return send(method=name, timeout_s=timeout_s, metadata=metadata, arguments=arguments)

    def options(
        self, *, timeout_s: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> "RemoteMethod":
        """Return the same method with a deadline or metadata of its own: `summarize.options(timeout_s=5)(text="...")`."""
        return RemoteMethod(self._client, self.description, timeout_s, metadata)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return bind(self.description, args, kwargs)
        except InvalidArgumentError:
            current = self._client.describe().method(self.description.name)
            if current == self.description:
                raise
            self.description = current  # the server was reloaded with another signature
            return bind(current, args, kwargs)


class Methods(BaseMethods):
    """The methods of the served model. `dir`, tab completion and `repr` list them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getitem__(self, name: str) -> RemoteMethod:
        return RemoteMethod(self._client, self._known().method(name))

    def __getattr__(self, name: str) -> RemoteMethod:
        if name.startswith("_"):  # copy, pickle and notebooks probe for these: no reason to call the server
            raise AttributeError(name)
        try:
            return self[name]
        except MethodNotFoundError as error:
            raise AttributeError(error.message) from error

    def _known(self) -> ModelDescription:
        return self._client._known()
