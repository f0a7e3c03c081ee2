"""The log of a deployment: the files that Ray keeps of each replica's process, read over HTTP, several side by side."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from modelkit.computes.ray_api import RayApi
from modelkit.deploy.base import LogLine
from modelkit.deploy.ray_serve.manifest import DEPLOYMENT
from modelkit.errors import DeployError, UnknownDeploymentError

__all__ = ["Source", "find_dead", "find_living", "follow_logs", "read_logs"]

_MAX_DEAD: Final = 3
_LOOK_AGAIN_S: Final = 2.0
# A replica that starts has no log for a moment.
_MAX_FAILURES: Final = 10


@dataclass(frozen=True, slots=True)
class Source:
    """A replica whose process has, or had, a log."""

    replica: str
    actor_id: str


def find_living(details: Mapping[str, Any]) -> list[Source]:
    """Return the replicas of an application that run, or are about to."""
    deployment = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
    replicas = deployment.get("replicas") or ()
    return [
        Source(str(each["replica_id"]), str(each["actor_id"])) for each in replicas if each.get("actor_id")
    ]


def find_dead(api: RayApi, app: str, *, since_s: float = 0.0) -> list[Source]:
    """Return the replicas of an application that have ended since then, the last ones first; [] where it cannot be known."""
    prefix = f"SERVE_REPLICA::{app}#{DEPLOYMENT}#"
    try:
        actors = api.dead_actors(f"ServeReplica:{app}:{DEPLOYMENT}")
    except DeployError:
        return []

    def ended_ms(actor: Mapping[str, Any]) -> float:
        return float(actor.get("end_time_ms") or 0)

    named = [
        each
        for each in actors
        if str(each.get("name") or "").startswith(prefix) and ended_ms(each) >= since_s * 1000
    ]
    named.sort(key=ended_ms, reverse=True)
    return [
        Source(str(each["name"]).removeprefix(prefix), str(each["actor_id"])) for each in named[:_MAX_DEAD]
    ]


def read_logs(api: RayApi, sources: Sequence[Source], *, num_lines: int) -> Iterator[LogLine]:
    """Yield the last lines of all sources, one after the other."""
    for source in sources:
        for text in api.log_lines(source.actor_id, num_lines=num_lines):
            yield LogLine(replica=source.replica, text=text)


def follow_logs(api: RayApi, find: Callable[[], Sequence[Source]], *, num_lines: int) -> Iterator[LogLine]:
    """Yield the lines of all sources as they come, of those too that `find` names later; ends with the deployment.

    Raises DeployError where the cluster, or the log of a replica that runs, cannot be read any more.
    """
    lines: queue.Queue[LogLine] = queue.Queue(maxsize=1000)
    readers: dict[str, _Reader] = {}
    try:
        while True:
            try:
                sources = find()
            except UnknownDeploymentError:
                yield from _left(lines)
                return
            for source in sources:
                reader = readers.setdefault(source.actor_id, _Reader(api, source, lines, num_lines))
                reader.go_on()
            until = time.monotonic() + _LOOK_AGAIN_S
            while (left_s := until - time.monotonic()) > 0:
                with suppress(queue.Empty):
                    yield lines.get(timeout=left_s)
    finally:
        for reader in readers.values():
            reader.stop()


def _left(lines: "queue.Queue[LogLine]") -> Iterator[LogLine]:
    with suppress(queue.Empty):
        while True:
            yield lines.get_nowait()


class _Reader:
    """Reads what one replica writes, in a thread of its own; again from where it was when the stream breaks off."""

    def __init__(self, api: RayApi, source: Source, lines: "queue.Queue[LogLine]", num_lines: int) -> None:
        self._api = api
        self._source = source
        self._lines = lines
        self._num_lines = num_lines
        self._num_failures = 0
        self._error: DeployError | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = threading.Event()

    def go_on(self) -> None:
        """Read where nobody does. Raises DeployError where that fails again and again."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._error is not None and self._num_failures >= _MAX_FAILURES:
            raise self._error
        self._thread = threading.Thread(target=self._read, daemon=True, name="modelkit-log")
        self._thread.start()

    def stop(self) -> None:
        """Take no more lines; the thread ends with the next one, or with the connection."""
        self._is_stopped.set()

    def _read(self) -> None:
        try:
            for text in self._api.log_lines(self._source.actor_id, num_lines=self._num_lines, follow=True):
                self._num_lines = self._num_failures = 0
                if not self._put(LogLine(replica=self._source.replica, text=text)):
                    return
        except DeployError as error:
            self._error = error
            self._num_failures += 1

    def _put(self, line: LogLine) -> bool:
        while not self._is_stopped.is_set():
            with suppress(queue.Full):
                self._lines.put(line, timeout=_LOOK_AGAIN_S)
                return True
        return False
