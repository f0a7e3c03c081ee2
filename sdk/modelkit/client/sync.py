"""The synchronous client. Safe to share between threads; every call of it waits, with a deadline where one is set."""

# ruff: noqa: SLF001 - the client, its methods and its streams are parts of one thing

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import grpc

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
    CallError,
    DeadlineExceededError,
    InvalidArgumentError,
    MethodNotFoundError,
    UnavailableError,
)
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["Client", "Methods", "RemoteMethod", "Stream"]

_GLANCE_TIMEOUT_S = 5.0  # how long a repr or a tab completion may wait for the server


def _close_later(channel: grpc.Channel) -> None:
    """Close a channel from a thread of its own: gRPC tells the end of a call from one that closing waits for."""
    threading.Thread(target=channel.close, name="modelkit-close", daemon=True).start()


class _Source(BaseSource):
    """The caller's half of a bidirectional call."""

    def messages(self, start: pb.StreamRequest) -> Iterator[pb.StreamRequest]:
        yield start
        self.consumed = True  # gRPC asks for the second message once the first has left
        try:
            for item in self._items:
                yield encode_item(item)
        except Exception as error:  # noqa: BLE001 - raised again where the caller reads
            self.fail(error)
        else:
            yield end_of_items()


class Client(BaseClient):
    """Calls the methods of a served model.

        with Client("localhost:50051") as client:
            client.predict("What is gRPC?")
            for piece in client.generate(prompt="What is gRPC?", max_tokens=50):
                print(piece, end="", flush=True)
            client.methods.summarize(text="...")   # typed by what the server says of itself

    `address` is host:port, grpc://host:port, grpcs://host:port for TLS, or modelkit://COMPUTE/DEPLOYMENT, whose replicas
    are found and followed as they come and go; MODELKIT_ADDRESS where it is left out, else localhost:50051. `api_key` (or MODELKIT_API_KEY) is sent as a bearer token, and in plain text to another machine only
    with `allow_plaintext_api_key`. `timeout_s` is the deadline of each call, retries included. `metadata` is seen by the
    model with every call, `headers` by what stands in front of it.

    Raises UsageError for settings that cannot work, and a subclass of CallError when a call fails; for a deployment also
    DeployError, where its compute cannot be asked for it.
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
            Opener(grpc.insecure_channel, grpc.secure_channel, _close_later),
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        if self._deployment is None:
            self._fixed_lane()  # here, so that threads which share the client find it made

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
        """Call a unary method and return its result with usage, request id, finish reason and metadata."""
        deadline = self._deadline(timeout_s)
        named = self._named(method, args, merge_arguments(arguments, kwargs), deadline)
        return self._predict(self._new_call(method, named, deadline, metadata))

    def generate(
        self,
        *args: Any,
        method: str = "generate",
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "Stream":
        """Call a server-streaming method and return an iterator over its items; the call starts with the first.

        Arguments as in `predict`.
        """
        merged = merge_arguments(arguments, kwargs)

        def prepare() -> Prepared:
            deadline = self._deadline(timeout_s)
            named = self._named(method, args, merged, deadline)
            return self._prepare_generate(self._new_call(method, named, deadline, metadata))

        return Stream(prepare)

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

        The call starts when its first item is asked for. `items` is read in a thread of its own, so it may wait for what
        the stream returned.
        """
        merged = merge_arguments(arguments, kwargs)

        def prepare() -> Prepared:
            call = self._new_call(method, merged, self._deadline(timeout_s), metadata)
            return self._prepare_stream(call, items)

        return Stream(prepare)

    @property
    def methods(self) -> "Methods":
        """The methods of the model as functions: `client.methods.summarize(text="...")`."""
        return Methods(self)

    def describe(self, *, timeout_s: float | None = None) -> ModelDescription:
        """Ask the server what its model is and which methods it has."""
        return self._describe(self._deadline(timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> Health:
        """Return the state of a service of the server; "" is readiness, "liveness" is whether it answers at all."""
        question = self._new_question(self._deadline(timeout_s))
        return read_health(self._ask(question, *self._health_check(service)))

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the model takes calls; the server may still be starting. Raises DeadlineExceededError."""
        wait = ReadyWait(self._new_question(self._deadline(timeout_s)))
        while True:
            try:
                with self._on_lane(wait.call) as lane:
                    if wait.can_watch:
                        self._watch(wait, lane)
                    else:
                        wait.saw(wait.check(lane))
            except (grpc.RpcError, UnavailableError, DeadlineExceededError) as error:
                wait.failed(error)
            if wait.is_over:
                return
            time.sleep(wait.pause_s())

    def close(self) -> None:
        """Close the connection; calls that are under way are cancelled."""
        for lane in self._end():
            lane.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _predict(self, call: Call) -> Response:
        answer = self._ask(call, lambda lane: lane.stub.Predict, call.invocation.predict_request())
        return read_response(answer, call.request_id)

    def _describe(self, deadline: Deadline) -> ModelDescription:
        question = self._new_question(deadline)
        answer = self._ask(question, lambda lane: lane.stub.Describe, pb.DescribeRequest())
        self._description = read_description(answer)
        return self._description

    def _ask(self, call: Call, method: Callable[[Lane], Any], request: Any) -> Any:
        """Call a unary RPC, again where the policy says so."""
        while True:
            try:
                with self._on_lane(call) as lane:
                    return method(lane)(request, **call.options(lane))
            except (grpc.RpcError, UnavailableError) as error:
                pause = call.pause_s(error)
            time.sleep(pause)

    @contextmanager
    def _on_lane(self, call: Call) -> Iterator[Lane]:
        lane = self._find_lane(call)
        try:
            yield lane
        finally:
            lane.leave()

    def _find_lane(self, call: Call) -> Lane:
        self._raise_if_closed()
        while (located := call.locating()) is not None:
            try:
                located.result(call.deadline.remaining_s())
            except TimeoutError:
                raise call.not_located() from None  # the compute's own failures are DeployErrors
        return self._enter(call)

    @staticmethod
    def _watch(wait: ReadyWait, lane: Lane) -> None:
        updates = wait.watch(lane)
        try:
            any(wait.saw(update) for update in updates)  # to the first that is good
        finally:
            updates.cancel()

    def _named(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: Deadline
    ) -> dict[str, Any]:
        """Give the positional arguments their names."""
        if not args:
            return kwargs
        with suppress(InvalidArgumentError, MethodNotFoundError):
            return name_arguments(self._known(deadline).method(method), args, kwargs)
        # What is known may be old: the server may have been reloaded with another signature.
        return name_arguments(self._describe(deadline).method(method), args, kwargs)

    def _known(self, deadline: Deadline) -> ModelDescription:
        """Return what the server said of itself, asking once."""
        return self._description or self._describe(deadline)

    def _recall(self) -> ModelDescription:
        return self._known(self._deadline(None))

    def _glance(self) -> ModelDescription | None:
        with suppress(CallError):
            return self._known(self._deadline(_GLANCE_TIMEOUT_S))
        return None


class Stream(BaseStream[Prepared], Iterator[Any]):
    """The items of a streamed result, in order, each as soon as it is here; the call starts with the first.

    Leaving a `with` block early, `close` and `cancel` (from any thread) all stop the model's work. `usage`,
    `request_id`, `finish_reason` and `metadata` grow as messages arrive and are complete at the end. Iterate over
    `chunks()` for the messages as they came.
    """

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _next_chunk(self) -> Chunk:
        """Wait for the next message. Raises StopIteration at the end."""
        if self._closed:
            raise StopIteration
        try:
            return self._reader.read(self._next_message())
        except StopIteration:
            raise
        except BaseException:  # Ctrl-C, or an answer that cannot be read: the model need not go on
            self._hang_up()
            raise

    def _next_message(self) -> Any:
        prepared = self._connect()
        while True:
            try:
                if self._rpc is None:
                    self._dial(prepared, prepared.find_lane(prepared.call))
                return next(self._rpc)
            except (grpc.RpcError, UnavailableError) as error:
                self._stopped.wait(self._pause_s(prepared, error))
            self._rpc = None

    def _connect(self) -> Prepared:
        """Start the call, once."""
        if self._prepared is None:
            self._raise_if_stopped()
            self._prepared = self._prepare()
        return self._prepared

    def _leave_at_end(self, lane: Lane) -> None:
        if not self._rpc.add_callback(lane.leave):
            lane.leave()


class RemoteMethod(BaseRemoteMethod):
    """A method of the served model: call it like a local function. The server is asked for its signature on first use."""

    _client: Client

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result, or a Stream where the method streams. Wrong arguments raise before anything is sent."""
        deadline = self._client._deadline(self._timeout_s)
        bound = self._bind(args, kwargs, deadline)
        if bound.method.kind != "unary":
            return Stream(lambda: self._prepare_bound(bound, self._client._deadline(self._timeout_s)))
        call = self._client._new_call(bound.method.name, bound.arguments, deadline, self._metadata)
        return self._client._predict(call).value

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: Deadline) -> Bound:
        with suppress(InvalidArgumentError, MethodNotFoundError):
            return self._fit(self._client._known(deadline), args, kwargs)
        # What is known may be old: the server may have been reloaded with another signature.
        return self._fit(self._client._describe(deadline), args, kwargs)


class Methods(BaseMethods):
    """The methods of the served model. `dir`, tab completion and `repr` list them."""

    _METHOD = RemoteMethod
    _UNKNOWN = "the server does not say"
