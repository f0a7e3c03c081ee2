"""Where calls go: one fixed address, or a deployment that a compute is asked for again as its replicas come and go.

A lane is one channel with what its calls need. The replicas of one route share a channel, over which gRPC's own
round_robin spreads the calls. A lane whose replicas are no longer the deployment's ends with its last call.
"""

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelkit.client.channel import inference_stub, open_channel
from modelkit.client.settings import TLS, Settings
from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.locate import locate
from modelkit.errors import DeployError, UnavailableError, UnknownDeploymentError

__all__ = ["Deployment", "Lane", "Opener"]


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
        self._locating = threading.Lock()  # one asks the compute, the others wait for the answer
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._located_at = 0.0
        self._doubted_at = -1.0  # when a try began that found nobody
        self._lanes: dict[tuple[Any, ...], Lane] = {}
        self._names: dict[tuple[str, ...], str] = {}

    @property
    def has_to_be_located(self) -> bool:
        """Whether a call has to wait for the compute's answer: nothing is known, or what is known was found wrong."""
        return self._endpoint is None or self._located_at <= self._doubted_at

    @property
    def is_stale(self) -> bool:
        """Whether it is time to ask the compute again, while calls go on."""
        return self.is_due and not self._locating.locked()

    @property
    def is_due(self) -> bool:
        """Whether what is known is older than the compute said that it would hold."""
        endpoint = self._endpoint
        if endpoint is None or endpoint.refresh_s is None:
            return False
        return time.monotonic() - self._located_at > endpoint.refresh_s

    def doubt(self, began_at: float) -> None:
        """Take in that a try, which began at that time.monotonic(), found nobody where somebody should have been."""
        self._doubted_at = max(self._doubted_at, began_at)

    def locate(self) -> None:
        """Ask the compute where the deployment is called, unless another thread just has; it takes a moment.

        Raises UsageError, UnknownDeploymentError, and DeployError where nothing is known from before.
        """
        with self._locating:
            if not (self.has_to_be_located or self.is_due):
                return
            asked_at = time.monotonic()
            try:
                endpoint = self._find(self._settings.address)
                endpoint = replace(endpoint, routes=tuple(map(self._resolved, endpoint.routes)))
            except UnknownDeploymentError:
                raise
            except DeployError:
                if self._endpoint is None:
                    raise
                self._located_at = asked_at  # the compute is away; its replicas need not be
                return
            self._check(endpoint)
            self._take(endpoint, asked_at)

    def refresh(self) -> None:
        """Ask the compute again, and keep what is known where it does not answer."""
        try:
            self.locate()
        except Exception:  # noqa: BLE001 - a call that finds nobody will hear of it
            self._located_at = time.monotonic()

    def enter(self, *, nobody_answered: bool = False) -> Lane:
        """Return the lane of a call, which has to `leave` it.

        `nobody_answered` tells that a try before found none of the replicas, so that what holds calls is asked. Raises
        UnavailableError where nobody is there.
        """
        endpoint = self._endpoint
        assert endpoint is not None
        routes = [route for route in endpoint.routes if route.targets or route.waiting]
        weights = [route.weight for route in routes]
        if not routes or not any(weights):
            raise UnavailableError(
                f"no replica of {self._settings.address} takes calls now",
                cure="`modelkit ps` shows why; a call that may wait longer: retry=RetryPolicy(max_attempts=...)",
                executed=False,
            )
        (route,) = random.choices(routes, weights)  # noqa: S311 - spreads load, hides nothing
        targets = route.waiting if route.waiting and (nobody_answered or not route.targets) else route.targets
        with self._lock:
            lane = self._lanes.get(_key(route, targets))
            if lane is None:
                lane = self._lanes[_key(route, targets)] = self._open(endpoint, route, targets)
            lane.enter()
        return lane

    def lanes(self) -> list[Lane]:
        """Return all lanes that calls may take now."""
        with self._lock:
            return list(self._lanes.values())

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

    def _take(self, endpoint: Endpoint, asked_at: float) -> None:
        kept = {
            _key(route, targets) for route in endpoint.routes for targets in (route.targets, route.waiting)
        }
        with self._lock:
            self._endpoint, self._located_at = endpoint, asked_at
            gone = [self._lanes.pop(key) for key in list(self._lanes) if key not in kept]
        for lane in gone:
            lane.retire()

    def _check(self, endpoint: Endpoint) -> None:
        """Raise UsageError where a call would carry the API key in plain text to another machine."""
        if endpoint.tls or self._settings.tls is not None:
            return
        for route in endpoint.routes:
            for target in (*route.targets, *route.waiting):
                self._settings.check_plaintext(target)


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
