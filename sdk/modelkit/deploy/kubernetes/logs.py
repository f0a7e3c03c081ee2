"""What the replicas write: the last lines of each, and while one follows, the lines of those that come later too."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from modelkit.computes.kubernetes_api import KubernetesApi
from modelkit.deploy.base import LogLine
from modelkit.deploy.kubernetes.kinds import POD
from modelkit.deploy.kubernetes.pods import CONTAINER
from modelkit.errors import DeployError

__all__ = ["follow", "last_lines"]

_LOOK_AGAIN_S: Final = 1.0

Pods = Callable[[], list[dict[str, Any]]]


def last_lines(api: KubernetesApi, pod: Mapping[str, Any], num_lines: int) -> list[str]:
    """Return the last lines of a replica: of the container that died, where a new one has not begun to write."""
    path = f"{POD.path(api.namespace, pod['metadata']['name'])}/log"
    previous = "true" if is_waiting_to_restart(pod) else "false"
    try:
        lines = list(api.lines(path, container=CONTAINER, tailLines=str(num_lines), previous=previous))
    except DeployError:
        return []  # it has no container yet, or none any more
    # The kubelet's own words, in the place of a log that has gone with its container.
    return [line for line in lines if not line.startswith("unable to retrieve container logs")]


def follow(api: KubernetesApi, pods: Pods, num_lines: int) -> Iterator[LogLine]:
    """Yield the last lines of every replica and then what they write, until the caller stops."""
    stop = threading.Event()
    lines: queue.SimpleQueue[LogLine] = queue.SimpleQueue()
    started: set[str] = set()
    tail = num_lines
    looked = 0.0
    try:
        while True:
            if time.monotonic() - looked > _LOOK_AGAIN_S:
                for pod in pods():
                    if _has_started(pod) and (key := _key(pod)) not in started:
                        started.add(key)
                        target = (api, pod["metadata"]["name"], tail, lines.put, stop)
                        threading.Thread(target=_read, args=target, daemon=True).start()
                tail = -1  # of a replica that came later everything is new
                looked = time.monotonic()
            with contextlib.suppress(queue.Empty):
                yield lines.get(timeout=_LOOK_AGAIN_S / 4)
    finally:
        stop.set()


def is_waiting_to_restart(pod: Mapping[str, Any]) -> bool:
    """Tell whether a replica's container has ended, and another is to be started."""
    return any(
        each["name"] == CONTAINER and "waiting" in (each.get("state") or {}) and each.get("restartCount")
        for each in pod.get("status", {}).get("containerStatuses") or ()
    )


def _read(
    api: KubernetesApi, name: str, num_lines: int, put: Callable[[LogLine], None], stop: threading.Event
) -> None:
    """Hand on what a replica writes. Its thread ends with the container, or with this process."""
    path = f"{POD.path(api.namespace, name)}/log"
    tail = {"tailLines": str(num_lines)} if num_lines >= 0 else {}
    with contextlib.suppress(Exception):  # whatever ends it, the replica is looked for again
        for line in api.lines(path, timeout_s=None, stop=stop, container=CONTAINER, follow="true", **tail):
            put(LogLine(replica=name, text=line))


def _has_started(pod: Mapping[str, Any]) -> bool:
    return any(
        each["name"] == CONTAINER and "running" in (each.get("state") or {})
        for each in pod.get("status", {}).get("containerStatuses") or ()
    )


def _key(pod: Mapping[str, Any]) -> str:
    """Return what tells one run of a replica from the next."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    restarts = sum(each.get("restartCount", 0) for each in statuses)
    return f"{pod['metadata']['uid']}/{restarts}"
