"""What both clients share: everything but the waiting. `sync` and `aio` add the transport and nothing else."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from uuid import uuid4

import grpc

from modelkit.client.channel import headers_for, opener
from modelkit.client.description import ModelDescription
from modelkit.client.failures import from_rpc_error
from modelkit.client.lane import Deployment, Lane, Opener, closed_client
from modelkit.client.messages import Invocation, StreamReader, Usage
from modelkit.client.retry import Attempts, Deadline, RetryPolicy
from modelkit.client.settings import TLS, Settings
from modelkit.computes.endpoint import TIMEOUT_METADATA, Route
from modelkit.errors import (
    CallError,
    CancelledCallError,
    DeadlineExceededError,
    UnavailableError,
    UnimplementedError,
)
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = [
    "BaseClient",
    "BaseSource",
    "BaseStream",
    "Call",
    "Health",
    "Prepared",
    "ReadyWait",
    "read_health",
]

Health = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]

# What a method of a client starts: the result itself, or something that waits for it.
Prepare = TypeVar("Prepare")


@dataclass(slots=True)
class Call:
    """One call with all its tries: what to send, until when, and what a failure of it means.

    `deployment` hears of a try that found nobody; `found_nobody` tells that there was one.
    """

    settings: Settings
    invocation: Invocation
    deadline: Deadline
    request_id: str
    attempts: Attempts
    deployment: Deployment | None = None
    began_at: float = 0.0
    found_nobody: bool = False

    def options(self, lane: Lane) -> dict[str, Any]:
        """Return gRPC's options of the next try; the deadline covers all tries together."""
        remaining_s = self.deadline.remaining_s()
        metadata = (*headers_for(self.settings, self.request_id), *lane.headers)
        if lane.says_deadline and remaining_s is not None:
            metadata = (*metadata, (TIMEOUT_METADATA, str(round(remaining_s * 1000))))
        return {"timeout": remaining_s, "metadata": metadata}

    def locating(self) -> "Future[None] | None":
        """Return what the next try has to wait for before it knows where to go, None for nothing."""
        if self.deployment is None:
            return None
        return self.deployment.locating(found_nobody_at=self.began_at if self.found_nobody else None)

    def not_located(self) -> DeadlineExceededError:
        """Return the error of a call whose time was over before the compute had answered."""
        return DeadlineExceededError(
            f"the compute has not said within {self.deadline.timeout_s or 0:g} s where {self.settings.address} is called",
            cure="see whether it answers: `modelkit compute check`; or give the call more time: timeout_s=...",
            request_id=self.request_id,
            executed=False,
        )

    def failure(self, error: "grpc.RpcError | CallError") -> CallError:
        """Translate what gRPC raised."""
        failure = error
        if not isinstance(failure, CallError):
            failure = from_rpc_error(
                error, address=self.settings.address, deadline=self.deadline, request_id=self.request_id
            )
        if isinstance(failure, UnavailableError) and not failure.executed:
            self.found_nobody = True
            if self.deployment is not None:
                self.deployment.doubt(self.began_at)
        return failure

    def pause_s(self, error: "grpc.RpcError | CallError") -> float:
        """Return how long to wait before the next try. Raises what went wrong where there is none."""
        failure = self.failure(error)
        pause = self.attempts.pause_s(failure, elsewhere=self.deployment is not None)
        if pause is None:
            raise failure from (error if failure is not error else None)
        return pause


class BaseClient:
    """The settings of a client, its connection, and the calls it prepares."""

    _SOURCE: "type[BaseSource]"

    def __init__(
        self,
        address: str | None,
        channels: Opener,
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
        self._opener = channels
        self._deployment: Deployment | None = None
        if self._settings.names_deployment:
            self._deployment = Deployment(self._settings, channels)
        else:
            self._open_channel = opener(self._settings, channels.insecure, channels.secure)
        self._lane: Lane | None = None
        self._is_closed = False
        self._description: ModelDescription | None = None

    @property
    def address(self) -> str:
        """Where the client connects: host:port, or modelkit://COMPUTE/DEPLOYMENT."""
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

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise closed_client()

    def _fixed_lane(self) -> Lane:
        """Return the lane to an address, made on first use: a channel of grpc.aio belongs to the loop that runs then."""
        if self._lane is None:
            self._lane = Lane(self._open_channel(), Route(targets=(self.address,)), self._opener.close)
        return self._lane

    def _enter(self, call: Call) -> Lane:
        """Return the lane of a call's next try, which has to leave it; a deployment was located before."""
        self._raise_if_closed()
        call.began_at = time.monotonic()
        if self._deployment is not None:
            return self._deployment.enter(nobody_answered=call.found_nobody)
        lane = self._fixed_lane()
        lane.enter()
        return lane

    def _end(self) -> list[Lane]:
        """Take no further calls, and return the lanes to close."""
        self._is_closed = True
        lanes = [] if self._lane is None else [self._lane]
        return lanes if self._deployment is None else [*lanes, *self._deployment.close()]

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
        return Call(self._settings, invocation, deadline, uuid4().hex, attempts, self._deployment)

    def _new_question(self, deadline: Deadline) -> Call:
        """Prepare a call that only asks, and may therefore be tried again whatever became of it."""
        attempts = Attempts(self._settings.retry, deadline, idempotent=True)
        invocation = Invocation("", {}, {})
        return Call(self._settings, invocation, deadline, uuid4().hex, attempts, self._deployment)

    @staticmethod
    def _health_check(service: str) -> tuple[Callable[[Lane], Any], Any]:
        """Return the standard health check and its request."""
        from grpc_health.v1 import health_pb2
        from grpc_health.v1.health_pb2_grpc import HealthStub

        return lambda lane: HealthStub(lane.channel).Check, health_pb2.HealthCheckRequest(service=service)

    def _recall(self) -> ModelDescription:
        """Return what the server said of itself, to something that lists it and cannot wait for an event loop."""
        raise NotImplementedError

    def _glance(self) -> ModelDescription | None:
        """Return the same to something that must not fail, None where it is not known."""
        return self._description

    def _prepare_generate(self, call: Call) -> "Prepared":
        def dial(lane: Lane) -> Any:
            return lane.stub.Generate(call.invocation.generate_request(), **call.options(lane))

        return Prepared(call, dial, self._find_lane)

    def _prepare_stream(self, call: Call, items: Any) -> "Prepared":
        source = self._SOURCE(items)

        def dial(lane: Lane) -> Any:
            return lane.stub.Stream(source.messages(call.invocation.stream_start()), **call.options(lane))

        return Prepared(call, dial, self._find_lane, source)

    def _find_lane(self, call: Call) -> Any:
        """Return the lane of a call's next try, or something to await for it. Raises UnavailableError and what locating does."""
        raise NotImplementedError


def read_health(answer: Any) -> Health:
    """Return the state that a health check answered with, by its name in grpc.health.v1."""
    state: Health = answer.ServingStatus.Name(answer.status)
    return state


class ReadyWait:
    """What is known while waiting for a server to become ready."""

    POLL_S = 0.1

    def __init__(self, call: Call) -> None:
        from grpc_health.v1 import health_pb2

        self.call = call
        self._request = health_pb2.HealthCheckRequest()
        self._last = "it has not answered"
        self.can_watch = True  # until the server says that it does not implement Watch
        self.is_over = False

    def watch(self, lane: Lane) -> Any:
        """Ask to be told of every change."""
        return self._health(lane).Watch(self._request, **self.call.options(lane))

    def check(self, lane: Lane) -> Any:
        """Ask for the state as it is now."""
        return self._health(lane).Check(self._request, **self.call.options(lane))

    @staticmethod
    def _health(lane: Lane) -> Any:
        from grpc_health.v1.health_pb2_grpc import HealthStub

        return HealthStub(lane.channel)

    def saw(self, answer: Any) -> bool:
        """Take in what the health service says; true when the model takes calls, which ends the waiting."""
        self._last = "the server answers, the model is not ready"
        self.is_over = answer.status == answer.SERVING
        return self.is_over

    def failed(self, error: "grpc.RpcError | CallError") -> None:
        """Take in a failure. Raises it when asking again is no use."""
        failure = self.call.failure(error)
        if isinstance(failure, UnimplementedError) and self.can_watch:
            self.can_watch = False
        elif isinstance(failure, UnavailableError):
            self._last = failure.message
        elif not isinstance(failure, DeadlineExceededError):
            raise failure from error

    def pause_s(self) -> float:
        """Return how long to wait before asking again. Raises DeadlineExceededError once the time is over."""
        settings, deadline = self.call.settings, self.call.deadline
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
    dial: Callable[[Lane], Any]
    find_lane: Callable[[Call], Any]
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

    def _dial(self, prepared: Prepared, lane: Lane) -> None:
        """Begin a try on a lane that was entered."""
        try:
            self._raise_if_stopped()
            self._begin(prepared, lane)
        except BaseException:
            lane.leave()
            raise
        self._leave_at_end(lane)

    def _leave_at_end(self, lane: Lane) -> None:
        """Have the call leave its lane when it is over."""
        raise NotImplementedError

    def _begin(self, prepared: Prepared, lane: Lane) -> None:
        if prepared.source is not None:
            prepared.source.stream = weakref.ref(self)
        self._reader.request_id = prepared.call.request_id
        self._rpc = prepared.dial(lane)
        if self._stopped.is_set():  # by another thread, which saw no call or the one before this
            self._rpc.cancel()

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise CancelledCallError("the call was cancelled", request_id=self.request_id)

    def _hang_up(self) -> None:
        if self._rpc is not None:
            self._rpc.cancel()

    def _pause_s(self, prepared: Prepared, error: "grpc.RpcError | CallError") -> float:
        """Return how long to wait before the next try of a call that has neither given nor taken anything.

        Raises what went wrong where there is none.
        """
        source = prepared.source
        if source is not None and source.error is not None:
            raise source.error
        if self._reader.started or self._stopped.is_set() or (source is not None and source.consumed):
            raise prepared.call.failure(error) from error
        return prepared.call.pause_s(error)
