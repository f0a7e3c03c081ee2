"""What the replicas of a deployment write: their last lines, and on request everything from now on, new replicas too.

The values of a deployment's secrets are masked as the replica itself has them: whoever reads need not know them.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from modelkit.computes.docker_api import DEPLOYMENT, DockerHost, docker_host
from modelkit.deploy.base import LogLine
from modelkit.deploy.docker.containers import environment_of
from modelkit.deploy.docker.look import container_name, last_lines
from modelkit.deploy.docker.state import State
from modelkit.deploy.record import without_secrets
from modelkit.errors import DeployError

__all__ = ["read_logs"]

_LOOK_AGAIN_S = 2.0
_END_S = 5.0


def read_logs(
    host: DockerHost, name: str, *, replica: str | None, num_lines: int, follow: bool
) -> Iterator[LogLine]:
    """Yield lines, those of a replica in order. Raises DeployError where no replica has that name."""
    found = _replicas(host, name, replica)
    if replica is not None and not found:
        names = ", ".join(sorted(container_name(each) for each in _replicas(host, name, None)))
        raise DeployError(f"{name} has no replica '{replica}'", cure=f"there are: {names or 'none'}")
    if not follow:
        return _last(host, found, num_lines)
    return _follow(host, name, replica, num_lines)


def _replicas(host: DockerHost, name: str, replica: str | None) -> list[dict[str, Any]]:
    return [
        each
        for each in host.containers(f"{DEPLOYMENT}={name}")
        if each["State"] != "created" and replica in {None, container_name(each)}
    ]


def _last(host: DockerHost, found: list[dict[str, Any]], num_lines: int) -> Iterator[LogLine]:
    for each in sorted(found, key=container_name):
        secrets = _secrets_of(host, each)
        for line in last_lines(host, each["Id"], num_lines):
            yield LogLine(replica=container_name(each), text=without_secrets(line, secrets))


def _secrets_of(host: DockerHost, container: Mapping[str, Any]) -> list[str]:
    """Return the values of a replica's secrets."""
    state = State.of(container["Labels"])
    if state is None or not state.record.is_readable:
        return []
    names = state.record.spec.variables().all
    there = environment_of(host, container["Id"]) if names else {}
    return [there.get(name, "") for name in names]


def _follow(host: DockerHost, name: str, replica: str | None, num_lines: int) -> Iterator[LogLine]:
    """Follow every replica in a thread of its own, and look every now and then for new ones.

    It ends with the deployment, or with the one replica that was asked for.
    """
    lines: queue.Queue[LogLine] = queue.Queue()
    readers: dict[str, _Reader] = {}
    try:
        while True:
            found = _replicas(host, name, replica)
            is_over = not found and (replica is not None or name not in host.names())
            if is_over:
                for reader in readers.values():
                    reader.join(_END_S)
            for each in found:
                identity = each["Id"]
                known = readers.get(identity)
                if known is None or (not known.is_alive() and each["State"] == "running"):
                    readers[identity] = _Reader(host, each, lines, num_lines, known)
                    readers[identity].start()
            deadline = time.monotonic() + _LOOK_AGAIN_S
            while (left := deadline - time.monotonic()) > 0:
                try:
                    yield lines.get(timeout=0 if is_over else left)
                except queue.Empty:
                    if is_over:
                        return
    finally:
        for reader in readers.values():
            reader.stop()


class _Reader(threading.Thread):
    """Reads what one container writes until it ends, or nobody wants to know any more."""

    def __init__(
        self,
        host: DockerHost,
        container: Mapping[str, Any],
        lines: "queue.Queue[LogLine]",
        num_lines: int,
        before: "_Reader | None",
    ) -> None:
        super().__init__(daemon=True, name=f"modelkit-logs-{container_name(container)}")
        self._compute = host.compute
        self._container = container
        self._lines = lines
        self.ended_at = 0
        # One that has been started again goes on where its lines have ended.
        self._options: dict[str, Any] = {"tail": num_lines} if before is None else {"since": before.ended_at}
        self._stream: Any = None
        self._is_stopped = False

    def run(self) -> None:
        name = container_name(self._container)
        # A connection of its own: a stream keeps one to itself.
        with suppress(Exception), docker_host(self._compute, timeout_s=None) as host:
            secrets = _secrets_of(host, self._container)
            self._stream = host.client.containers.get(self._container["Id"]).logs(
                stream=True, follow=True, **self._options
            )
            if self._is_stopped:
                self._stream.close()
            pending = b""
            for piece in self._stream:
                *whole, pending = (pending + piece).split(b"\n")
                for line in whole:
                    text = without_secrets(line.decode(errors="replace"), secrets)
                    self._lines.put(LogLine(replica=name, text=text))
        self.ended_at = int(time.time())

    def stop(self) -> None:
        self._is_stopped = True
        if self._stream is not None:
            with suppress(Exception):
                self._stream.close()
        self.join(_END_S)
