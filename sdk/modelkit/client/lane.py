"""Where calls go: one fixed address, or a deployment that a compute is asked for again as its replicas come and go.

A lane is one channel with what its calls need. The replicas of one route share a channel, over which gRPC's own
round_robin spreads the calls. A lane whose replicas are no longer the deployment's ends with its last call.
"""

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from modelkit.client.channel import inference_stub, open_channel
from modelkit.client.settings import TLS, Settings
from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.locate import locate
from modelkit.errors import DeployError, FailedPreconditionError, UnavailableError, UnknownDeploymentError

__all__ = ["Deployment", "Lane", "Opener", "closed_client"]


@dataclass(frozen=True, slots=True)
class Opener:
    """How channels are made and ended, by `grpc` or by `grpc.aio`. `close` does not wait."""

    insecure: Callable[..., Any]
    secure: Callable[..., Any]
    close: Callable[[Any], None]


class Lane:
    """A channel and its stub, with the headers of the route. It ends when it is retired and its last call is over."""

    def __init__(
        self, channel: Any, route: Route, close: Callable[[Any], None], *, says_deadline: bool = False
    ) -> None:
        self.channel = channel
        self.stub = inference_stub(channel)
        self.headers = tuple(route.metadata.items())
        self.says_deadline = says_deadline
        self._close = close
        self._lock = threading.Lock()
        self._num_calls = 0
        self._is_retired = False

    @property
    def is_over(self) -> bool:
        """Whether it takes no calls any more, and has none."""
        with self._lock:
            return self._is_retired and self._num_calls == 0

    def enter(self) -> None:
        """Begin a call."""
        with self._lock:
            self._num_calls += 1

    def leave(self, *_: object) -> None:
        """End a call."""
        with self._lock:
            self._num_calls -= 1
            is_over = self._is_retired and self._num_calls == 0
        if is_over:
            self._close(self.channel)

    def retire(self) -> None:
        """Take no further calls, and close once those that run have ended."""
        with self._lock:
            was_retired, self._is_retired = self._is_retired, True
            is_over = self._num_calls == 0 and not was_retired
        if is_over:
            self._close(self.channel)


class Deployment:
    """The lanes to a deployment that a modelkit:// address names. Safe to share between threads."""

    def __init__(self, settings: Settings, opener: Opener, find: Callable[[str], Endpoint] = locate) -> None:
        self._settings = settings
        self._opener = opener
        self._find = find
        self._lock = threading.Lock()
        self._locating: Future[None] | None = None  # one asks the compute, the others wait for the answer
        self._endpoint: Endpoint | None = None
        self._located_at = 0.0
        self._doubted_at = -1.0  # when a try began that found nobody
        self._lanes: dict[tuple[Any, ...], Lane] = {}
        self._retired: list[Lane] = []  # with calls that have not ended
        self._is_closed = False
        self._names: dict[tuple[str, ...], str] = {}

    def locating(self, *, found_nobody_at: float | None = None) -> "Future[None] | None":
        """Return what a call has to wait for before it enters, None for nothing; asks the compute where that is due.

        A call waits where nobody is known yet, and before it is repeated: `found_nobody_at` is when its last try began.
        Others go on with what is known while the compute is asked. Ask again after having waited: the answer may be
        older than the try. What is returned raises UsageError, UnknownDeploymentError, and DeployError where nothing is
        known from before.
        """
        with self._lock:
            has_to_wait = (
                self._endpoint is None
                or (found_nobody_at is not None and self._located_at <= found_nobody_at)
                or (self._is_in_doubt and not _callable_routes(self._endpoint))
            )
            if not (has_to_wait or self._is_in_doubt or self._is_due):
                return None
            if self._locating is None:
                self._locating = Future()
                self._locating.set_running_or_notify_cancel()  # none of those who wait can cancel it for the others
                # A thread of its own: nobody has to wait for the end of it, neither a call nor the interpreter.
                threading.Thread(
                    target=self._locate, args=(self._locating,), name="modelkit-locate", daemon=True
                ).start()
            return self._locating if has_to_wait else None

    @property
    def _is_in_doubt(self) -> bool:
        """Whether what is known was found wrong."""
        return self._located_at <= self._doubted_at

    @property
    def _is_due(self) -> bool:
        """Whether what is known is older than the compute said that it would hold."""
        endpoint = self._endpoint
        if endpoint is None or endpoint.refresh_s is None:
            return False
        return time.monotonic() - self._located_at > endpoint.refresh_s

    def doubt(self, began_at: float) -> None:
        """Take in that a try, which began at that time.monotonic(), found nobody where somebody should have been."""
        self._doubted_at = max(self._doubted_at, began_at)

    def _locate(self, told: "Future[None]") -> None:
        """Ask the compute where the deployment is called, and tell those who wait."""
        asked_at = time.monotonic()
        failure: Exception | None = None
        try:
            endpoint = self._find(self._settings.address)
            endpoint = replace(endpoint, routes=tuple(map(self._resolved, endpoint.routes)))
            self._check(endpoint)
            self._take(endpoint)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error
        is_away = isinstance(failure, DeployError) and not isinstance(failure, UnknownDeploymentError)
        with self._lock:
            self._locating = None
            # Also where the compute is away: its replicas need not be, and it is not asked with every call.
            self._located_at = asked_at
            if is_away and self._endpoint is not None:
                failure = None
        if failure is None:
            told.set_result(None)
        else:
            told.set_exception(failure)

    def enter(self, *, nobody_answered: bool = False) -> Lane:
        """Return the lane of a call, which has to `leave` it.

        `nobody_answered` tells that a try before found none of the replicas, so that what holds calls is asked. Raises
        UnavailableError where nobody is there.
        """
        endpoint = self._endpoint
        assert endpoint is not None
        routes = _callable_routes(endpoint)
        if not routes:
            raise UnavailableError(
                f"no replica of {self._settings.address} takes calls now",
                cure="`modelkit ps` shows why; a call that may wait longer: retry=RetryPolicy(max_attempts=...)",
                executed=False,
            )
        (route,) = random.choices(routes, [route.weight for route in routes])  # noqa: S311 - spreads load, hides nothing
        targets = route.waiting if route.waiting and (nobody_answered or not route.targets) else route.targets
        with self._lock:
            if self._is_closed:
                raise closed_client()
            lane = self._lanes.get(_key(route, targets))
            if lane is None:
                lane = self._lanes[_key(route, targets)] = self._open(endpoint, route, targets)
            lane.enter()
        return lane

    def close(self) -> list[Lane]:
        """Take no further calls, and return the lanes to close: also those that only wait for their last calls."""
        with self._lock:
            self._is_closed = True
            lanes = [*self._lanes.values(), *self._retired]
            self._lanes, self._retired = {}, []
        return lanes

    def _open(self, endpoint: Endpoint, route: Route, targets: Sequence[str]) -> Lane:
        tls = self._settings.tls
        if tls is None and endpoint.tls:
            tls = TLS(ca_path=endpoint.ca_path, server_name=self._names.get(tuple(targets)))
        channel = open_channel(targets, tls, self._opener.insecure, self._opener.secure)
        return Lane(channel, route, self._opener.close, says_deadline=not endpoint.carries_deadline)

    def _resolved(self, route: Route) -> Route:
        """Return a route whose targets are IP addresses where there are several: gRPC takes a list of those only."""
        return replace(route, targets=self._resolve(route.targets), waiting=self._resolve(route.waiting))

    def _resolve(self, targets: Sequence[str]) -> tuple[str, ...]:
        if len(targets) < 2:  # noqa: PLR2004 - gRPC resolves one name itself, and again when that is needed
            return tuple(targets)
        found = tuple(_address_of(target, self._settings.address) for target in targets)
        self._names[found] = targets[0].rpartition(":")[0]  # what their certificate has to be for
        return found

    def _take(self, endpoint: Endpoint) -> None:
        kept = {
            _key(route, targets) for route in endpoint.routes for targets in (route.targets, route.waiting)
        }
        with self._lock:
            self._endpoint = endpoint
            gone = [self._lanes.pop(key) for key in list(self._lanes) if key not in kept]
            self._retired = [lane for lane in (*self._retired, *gone) if not lane.is_over]
        for lane in gone:
            lane.retire()

    def _check(self, endpoint: Endpoint) -> None:
        """Raise UsageError where a call would carry the API key in plain text to another machine."""
        if endpoint.tls or self._settings.tls is not None:
            return
        for route in endpoint.routes:
            for target in (*route.targets, *route.waiting):
                self._settings.check_plaintext(target)


def closed_client() -> FailedPreconditionError:
    """Return the error of a call after the client's end."""
    return FailedPreconditionError("the client is closed", cure="make a new one; close() is its end")


def _callable_routes(endpoint: Endpoint) -> list[Route]:
    return [route for route in endpoint.routes if route.weight and (route.targets or route.waiting)]


def _key(route: Route, targets: Sequence[str]) -> tuple[Any, ...]:
    return tuple(targets), tuple(sorted(route.metadata.items()))


def _address_of(target: str, deployment: str) -> str:
    host, _, port = target.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise DeployError(
            f"{deployment} has a replica at {target}, whose host cannot be found from here: {error}",
            cure="name the address that callers can reach: `modelkit compute add ... --endpoint HOST`",
        ) from error
    # One family for all of them, as gRPC wants it: the old one where there is a choice.
    family, _, _, _, (address, *_) = min(found, key=lambda each: each[0])
    return f"[{address!s}]:{port}" if family == socket.AF_INET6 else f"{address!s}:{port}"
