"""What the replicas write: the last lines of each, and while one follows, the lines of those that come later too."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from modelkit.computes.kubernetes_api import KubernetesApi
from modelkit.deploy.base import LogLine
from modelkit.deploy.follow import Source
from modelkit.deploy.follow import follow as follow_all
from modelkit.deploy.kubernetes.kinds import POD
from modelkit.deploy.kubernetes.pods import CONTAINER
from modelkit.errors import DeployError

__all__ = ["follow", "is_running", "last_lines"]

# The kubelet's own words, in the place of a log that has gone with its container.
_GONE: Final = "unable to retrieve container logs"
# What stands before each line on request: digits of a second are left out at the end, where they are zeros.
_STAMPED: Final = re.compile(
    r"((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d)) ?(.*)", re.DOTALL
)

Pods = Callable[[], list[dict[str, Any]]]


def last_lines(api: KubernetesApi, pod: Mapping[str, Any], num_lines: int) -> list[str]:
    """Return the last lines of a replica: of the container that died, where a new one has not begun to write."""
    path = _path(api, pod["metadata"]["name"])
    previous = "true" if is_waiting_to_restart(pod) else "false"
    try:
        lines = list(api.lines(path, container=CONTAINER, tailLines=str(num_lines), previous=previous))
    except DeployError:
        return []  # it has no container yet, or none any more
    return [line for line in lines if not line.startswith(_GONE)]


def follow(api: KubernetesApi, pods: Pods, num_lines: int) -> Iterator[LogLine]:
    """Yield the last lines of every replica and then what they write, until the caller stops."""
    first: set[tuple[str, str]] | None = None

    def find() -> list[Source]:
        nonlocal first
        found = [source_of(pod) for pod in pods() if has_run(pod)]
        if first is None:
            first = {(source.key, source.run) for source in found}
        return found

    def read(source: Source, after: str, stop: threading.Event) -> Iterator[tuple[str, str]]:
        # Of a replica that came later everything is new.
        has_tail = not after and first is not None and (source.key, source.run) in first
        query = {"tailLines": str(num_lines)} if has_tail else {}
        query |= {"sinceTime": after} if after else {}
        lines = api.lines(
            _path(api, source.replica),
            timeout_s=None,
            stop=stop,
            container=CONTAINER,
            follow="true",
            timestamps="true",
            **query,
        )
        return later(lines, after)

    return follow_all(find, read)


def later(lines: Iterator[str], after: str) -> Iterator[tuple[str, str]]:
    """Yield stamped lines as (stamp, text), those after a stamp: the API itself goes by whole seconds."""
    begin = _moment(after)
    for line in lines:
        if (match := _STAMPED.match(line)) is None:
            if not line.startswith(_GONE):
                yield after, line
        elif _moment(match[1]) > begin:
            after = match[1]
            yield after, match[4]


def _moment(stamp: str) -> tuple[str, str]:
    match = _STAMPED.match(stamp)
    return ("", "") if match is None else (match[2], (match[3] or "").ljust(9, "0"))


def is_waiting_to_restart(pod: Mapping[str, Any]) -> bool:
    """Tell whether a replica's container has ended, and another is to be started."""
    return any("waiting" in (each.get("state") or {}) and each.get("restartCount") for each in _servers(pod))


def has_run(pod: Mapping[str, Any]) -> bool:
    """Tell whether a replica has begun to write, in this container or the one before."""
    return any(
        {"running", "terminated"} & {*(each.get("state") or {}), *(each.get("lastState") or {})}
        for each in _servers(pod)
    )


def is_running(pod: Mapping[str, Any]) -> bool:
    """Tell whether a replica's container runs."""
    return any("running" in (each.get("state") or {}) for each in _servers(pod))


def source_of(pod: Mapping[str, Any]) -> Source:
    """Return a replica as one that is followed."""
    servers = _servers(pod)
    return Source(
        key=pod["metadata"]["uid"],
        replica=pod["metadata"]["name"],
        run=str(sum(each.get("restartCount", 0) for each in servers)),
        is_running=is_running(pod),
    )


def _servers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return [each for each in statuses if each["name"] == CONTAINER]


def _path(api: KubernetesApi, name: str) -> str:
    return f"{POD.path(api.namespace, name)}/log"
