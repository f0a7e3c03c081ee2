"""The log of a deployment: the files that Ray keeps of each replica's process, read over HTTP, several side by side."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelkit.computes.ray_api import RayApi
from modelkit.deploy.base import LogLine
from modelkit.deploy.ray_serve.manifest import DEPLOYMENT
from modelkit.errors import DeployError

__all__ = ["Source", "find_dead", "find_sources", "read"]

_MAX_DEAD: Final = 3
_DONE: Final = object()


@dataclass(frozen=True, slots=True)
class Source:
    """A replica whose process has, or had, a log."""

    replica: str
    actor_id: str


def find_sources(api: RayApi, instance: Mapping[str, Any], app: str) -> list[Source]:
    """Return the replicas of an application; where it has none, those that have ended last."""
    details = (instance["applications"][app].get("deployments") or {}).get(DEPLOYMENT) or {}
    replicas = details.get("replicas") or ()
    found = [
        Source(str(each["replica_id"]), str(each["actor_id"])) for each in replicas if each.get("actor_id")
    ]
    return found or find_dead(api, app)


def find_dead(api: RayApi, app: str) -> list[Source]:
    """Return the replicas of an application that have ended, the last ones first; [] where that cannot be known."""
    prefix = f"SERVE_REPLICA::{app}#{DEPLOYMENT}#"
    try:
        actors = api.dead_actors(f"ServeReplica:{app}:{DEPLOYMENT}")
    except DeployError:
        return []
    named = [each for each in actors if str(each.get("name") or "").startswith(prefix)]
    named.sort(key=lambda each: each.get("end_time_ms") or 0, reverse=True)
    return [
        Source(str(each["name"]).removeprefix(prefix), str(each["actor_id"])) for each in named[:_MAX_DEAD]
    ]


def read(api: RayApi, sources: Sequence[Source], *, num_lines: int, follow: bool) -> Iterator[LogLine]:
    """Yield the lines of all sources: one after the other, or, with `follow`, as they come."""
    if not follow:
        for source in sources:
            for text in api.log_lines(source.actor_id, num_lines=num_lines):
                yield LogLine(replica=source.replica, text=text)
        return
    yield from _merged(api, sources, num_lines)


def _merged(api: RayApi, sources: Sequence[Source], num_lines: int) -> Iterator[LogLine]:
    lines: queue.Queue[Any] = queue.Queue(maxsize=1000)

    def pump(source: Source) -> None:
        try:
            for text in api.log_lines(source.actor_id, num_lines=num_lines, follow=True):
                lines.put(LogLine(replica=source.replica, text=text))
            lines.put(_DONE)
        except DeployError as error:
            lines.put(error)

    for source in sources:
        threading.Thread(target=pump, args=(source,), daemon=True, name="modelkit-log").start()
    num_open = len(sources)
    while num_open:
        line = lines.get()
        if isinstance(line, LogLine):
            yield line
        else:  # that replica has ended, or its node
            num_open -= 1
