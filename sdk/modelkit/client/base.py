"""What both clients share: everything but the waiting. `sync` and `aio` add the transport and nothing else."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from uuid import uuid4

import grpc

from modelkit.client.channel import headers_for, inference_stub, opener
from modelkit.client.description import ModelDescription
from modelkit.client.failures import from_rpc_error
from modelkit.client.messages import Invocation, StreamReader, Usage
from modelkit.client.retry import Attempts, Deadline, RetryPolicy
from modelkit.client.settings import TLS, Settings
from modelkit.errors import (
    CallError,
    CancelledCallError,
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
    UnimplementedError,
)
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["BaseClient", "BaseSource", "BaseStream", "Call", "Health", "Prepared", "ReadyWait", "read_health"]

Health = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]

# What a method of a client starts: the result itself, or something that waits for it.
Prepare = TypeVar("Prepare")


@dataclass(slots=True)
class Call:
    """One call with all its tries: what to send, until when, and what a failure of it means."""

    settings: Settings
    invocation: Invocation
    deadline: Deadline
    request_id: str
    attempts: Attempts

    def options(self) -> dict[str, Any]:
        """Return gRPC's options of the next try; the deadline covers all tries together."""
        return {
            "timeout": self.deadline.remaining_s(),
            "metadata": headers_for(self.settings, self.request_id),
        }

    def failure(self, error: grpc.RpcError) -> CallError:
        """Translate what gRPC raised."""
        return from_rpc_error(
            error, address=self.settings.address, deadline=self.deadline, request_id=self.request_id
        )

    def pause_s(self, error: grpc.RpcError) -> float:
        """Return how long to wait before the next try. Raises what went wrong where there is none."""
        failure = self.failure(error)
        pause = self.attempts.pause_s(failure)
        if pause is None:
            raise failure from error
        return pause


class BaseClient:
    """The settings of a client, its connection, and the calls it prepares."""

    _SOURCE: "type[BaseSource]"

    def __init__(
        self,
        address: str | None,
        channel_functions: tuple[Callable[..., Any], Callable[..., Any]],
        *,
        timeout_s: float | None,
        api_key: str | None,
        tls: bool | TLS | None,
        retry: RetryPolicy | None,
        metadata: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        allow_plaintext_api_key: bool,
    ) -> None:
        self._settings = Settings.resolve(
            address,
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        self._open_channel = opener(self._settings, *channel_functions)
        self._connected: tuple[Any, Any] | None = None
        self._is_closed = False
        self._description: ModelDescription | None = None

    @property
    def address(self) -> str:
        """Where the client connects: host:port."""
        return self._settings.address

    def __repr__(self) -> str:
        parts = [repr(self.address)]
        if self._settings.timeout_s is not None:
            parts.append(f"timeout_s={self._settings.timeout_s:g}")
        if self._settings.api_key:
            parts.append("api_key=hidden")
        if self._settings.tls is not None:
            parts.append(f"tls={self._settings.tls}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _connection(self) -> tuple[Any, Any]:
        """Return channel and stub, made on first use: a channel of grpc.aio belongs to the loop that runs then."""
        if self._is_closed:
            raise FailedPreconditionError("the client is closed", cure="make a new one; close() is its end")
        if self._connected is None:
            channel = self._open_channel()
            self._connected = channel, inference_stub(channel)
        return self._connected

    @property
    def _channel(self) -> Any:
        return self._connection()[0]

    @property
    def _stub(self) -> Any:
        return self._connection()[1]

    def _deadline(self, timeout_s: float | None) -> Deadline:
        """Start the clock of a call."""
        return Deadline(self._settings.timeout_s if timeout_s is None else timeout_s)

    def _new_call(
        self,
        method: str,
        arguments: Mapping[str, Any],
        deadline: Deadline,
        metadata: Mapping[str, str] | None,
    ) -> Call:
        """Prepare a call of the model. Raises InvalidArgumentError for an argument that cannot be sent."""
        invocation = Invocation.of(method, arguments, {**self._settings.metadata, **(metadata or {})})
        attempts = Attempts(self._settings.retry, deadline)
        return Call(self._settings, invocation, deadline, uuid4().hex, attempts)

    def _new_question(self, deadline: Deadline) -> Call:
        """Prepare a call that only asks, and may therefore be tried again whatever became of it."""
        attempts = Attempts(self._settings.retry, deadline, idempotent=True)
        return Call(self._settings, Invocation("", {}, {}), deadline, uuid4().hex, attempts)

    def _health_check(self, service: str) -> tuple[Any, Any]:
        """Return the standard health check and its request."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        return HealthStub(self._channel).Check, health_pb2.HealthCheckRequest(service=service)

    def _recall(self) -> ModelDescription:
        """Return what the server said of itself, to something that lists it and cannot wait for an event loop."""
        raise NotImplementedError

    def _glance(self) -> ModelDescription | None:
        """Return the same to something that must not fail, None where it is not known."""
        return self._description

    def _prepare_generate(self, call: Call) -> "Prepared":
        def dial() -> Any:
            return self._stub.Generate(call.invocation.generate_request(), **call.options())

        return Prepared(call, dial)

    def _prepare_stream(self, call: Call, items: Any) -> "Prepared":
        source = self._SOURCE(items)

        def dial() -> Any:
            return self._stub.Stream(source.messages(call.invocation.stream_start()), **call.options())

        return Prepared(call, dial, source)


def read_health(answer: Any) -> Health:
    """Return the state that a health check answered with, by its name in grpc.health.v1."""
    state: Health = answer.ServingStatus.Name(answer.status)
    return state


class ReadyWait:
    """What is known while waiting for a server to become ready."""

    POLL_S = 0.1

    def __init__(self, call: Call, channel: Any) -> None:
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        self._call = call
        self._health = HealthStub(channel)
        self._request = health_pb2.HealthCheckRequest()
        self._last = "it has not answered"
        self.can_watch = True  # until the server says that it does not implement Watch
        self.is_over = False

    def watch(self) -> Any:
        """Ask to be told of every change."""
        return self._health.Watch(self._request, **self._call.options())

    def check(self) -> Any:
        """Ask for the state as it is now."""
        return self._health.Check(self._request, **self._call.options())

    def saw(self, answer: Any) -> bool:
        """Take in what the health service says; true when the model takes calls, which ends the waiting."""
        self._last = "the server answers, the model is not ready"
        self.is_over = answer.status == answer.SERVING
        return self.is_over

    def failed(self, error: grpc.RpcError) -> None:
        """Take in a failure. Raises it when asking again is no use."""
        failure = self._call.failure(error)
        if isinstance(failure, UnimplementedError) and self.can_watch:
            self.can_watch = False
        elif isinstance(failure, UnavailableError):
            self._last = failure.message
        elif not isinstance(failure, DeadlineExceededError):
            raise failure from error

    def pause_s(self) -> float:
        """Return how long to wait before asking again. Raises DeadlineExceededError once the time is over."""
        settings, deadline = self._call.settings, self._call.deadline
        if deadline.remaining_s() == 0:
            raise DeadlineExceededError(
                f"{settings.address} is not ready after {deadline.timeout_s:g} s: {self._last}"
            )
        return self.POLL_S


class BaseSource:
    """The caller's half of a bidirectional call: remembers whether items were taken, and what taking them raised."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self.consumed = False
        self.error: Exception | None = None
        self.stream: Callable[[], BaseStream[Any] | None] = lambda: None  # weak: gRPC must not keep it alive

    def fail(self, error: Exception) -> None:
        """Remember what taking an item raised, for where the caller reads; gRPC would only log it."""
        self.error = error
        if (stream := self.stream()) is not None:
            stream.cancel()  # before the half-close, which the model would take for the end of the items

    def messages(self, start: pb.StreamRequest) -> Any:
        """Iterate over the messages to send: the start, one with each item, and the end."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be dialled, as often as the retry policy allows."""

    call: Call
    dial: Callable[[], Any]
    source: BaseSource | None = None


class BaseStream(Generic[Prepare]):
    """The items of a streamed result: what is known of it without waiting, and how it is stopped."""

    def __init__(self, prepare: Callable[[], Prepare]) -> None:
        self._prepare = prepare
        self._prepared: Prepared | None = None
        self._reader = StreamReader("")
        self._ready: Iterator[Any] = iter(())
        self._rpc: Any = None
        self._stopped = threading.Event()
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

    @property
    def finish_reason(self) -> str:
        """Why a language model ended its answer ("stop", "length", ...); known at the end, empty where it does not say."""
        return self._reader.finish_reason

    def cancel(self) -> None:
        """Stop the call; whoever is iterating gets CancelledCallError."""
        self._stopped.set()
        self._hang_up()

    def close(self) -> None:
        """Stop the call and the iteration; nothing happens when it is over already."""
        self._ready = iter(())
        self._closed = True
        self.cancel()

    def __del__(self) -> None:
        """Stop the call when a loop was left with `break` and nobody holds the stream any more."""
        if getattr(self, "_rpc", None) is not None:
            with suppress(RuntimeError):  # the event loop is closed, and with it the call
                self._rpc.cancel()

    def _dial(self, prepared: Prepared) -> None:
        """Begin a try."""
        self._raise_if_stopped()
        if prepared.source is not None:
            prepared.source.stream = weakref.ref(self)
        self._reader.request_id = prepared.call.request_id
        self._rpc = prepared.dial()
        if self._stopped.is_set():  # by another thread, which saw no call or the one before this
            self._rpc.cancel()

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise CancelledCallError("the call was cancelled", request_id=self.request_id)

    def _hang_up(self) -> None:
        if self._rpc is not None:
            self._rpc.cancel()

    def _pause_s(self, prepared: Prepared, error: grpc.RpcError) -> float:
        """Return how long to wait before the next try of a call that has neither given nor taken anything.

        Raises what went wrong where there is none.
        """
        source = prepared.source
        if source is not None and source.error is not None:
            raise source.error
        if self._reader.started or self._stopped.is_set() or (source is not None and source.consumed):
            raise prepared.call.failure(error) from error
        return prepared.call.pause_s(error)
