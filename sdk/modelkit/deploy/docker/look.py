"""What is on a Docker host now, in the words of a roll and in those of a status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelkit.computes.docker_api import (
    DEPLOYMENT,
    DRAINING,
    REPLICA,
    REVISION,
    VERSION,
    DockerHost,
    endpoint_of,
    is_draining,
    ready_ones,
)
from modelkit.deploy.base import DeploymentState, Replica, ReplicaState, Status
from modelkit.deploy.docker.replica import GPUS
from modelkit.deploy.docker.roll import MAX_CRASHES, Phase, Seen, Steps
from modelkit.deploy.docker.state import State

__all__ = ["View", "container_name", "last_lines", "look", "status_of"]

_NUM_REASON_LINES = 4


@dataclass(frozen=True, slots=True)
class View:
    """A deployment and its containers: listings and what a roll sees of them, by the same ids, and why one is not ready."""

    state: State
    containers: Mapping[str, Mapping[str, Any]]
    seen: tuple[Seen, ...]
    restarts: Mapping[str, int]
    reasons: Mapping[str, str]


def container_name(container: Mapping[str, Any]) -> str:
    """Return a container's name, without what it bears while it drains."""
    name: str = container["Names"][0]
    return name.removeprefix("/").removesuffix(DRAINING)


def look(host: DockerHost, state: State, listed: Sequence[dict[str, Any]]) -> View:
    """Return a deployment as it is, from a listing of containers; its replicas are asked whether they take calls."""
    mine = [each for each in listed if each["Labels"].get(DEPLOYMENT) == state.name]
    ready = ready_ones(host.compute, mine)
    seen, restarts, reasons = [], {}, {}
    for each in mine:
        identity = each["Id"]
        details = {} if identity in ready else _inspect(host, identity)
        restarts[identity] = details.get("RestartCount", 0)
        phase = _phase(each, details, is_ready=identity in ready, is_settled=state.is_settled)
        seen.append(_seen(each, phase, state))
        reasons[identity] = _reason(each, details, phase)
    return View(state, {each["Id"]: each for each in mine}, tuple(seen), restarts, reasons)


def status_of(host: DockerHost, view: View, steps: Steps) -> Status:
    """Return the status of a deployment; `steps` are what is to be done, or has just been begun."""
    state = view.state
    replicas = tuple(
        _replica(view, each) for each in sorted(view.seen, key=lambda each: each.number) if _counts(each)
    )
    serving = [dict(view.containers[each.id]) for each in view.seen if each.phase == "ready"]
    num_wanted = state.num_replicas
    what, reason = _state(view, steps)
    if steps.has_failed:
        failed = next(each for each in view.seen if each.is_new and each.phase == "failed")
        reason = "; ".join([view.reasons[failed.id], *last_lines(host, failed.id)])
    return Status(
        name=state.name,
        record=state.record,
        state=what,
        replicas=replicas,
        num_wanted=num_wanted,
        min_replicas=num_wanted,
        max_replicas=num_wanted,
        reason=reason,
        endpoint=endpoint_of(host.compute, serving),
    )


def last_lines(host: DockerHost, identity: str, num_lines: int = _NUM_REASON_LINES) -> list[str]:
    """Return the last lines that a container wrote."""
    with host.asking("read a log"):
        text: bytes = host.client.api.logs(identity, tail=num_lines)
    return [line for line in text.decode(errors="replace").splitlines() if line.strip()]


def _inspect(host: DockerHost, identity: str) -> dict[str, Any]:
    import docker.errors

    with host.asking("inspect a replica"):
        try:
            details: dict[str, Any] = host.client.api.inspect_container(identity)
        except docker.errors.NotFound:  # removed meanwhile
            return {}
    return details


def _phase(
    container: dict[str, Any], details: Mapping[str, Any], *, is_ready: bool, is_settled: bool
) -> Phase:
    state = container["State"]
    if state == "created":
        return "created"
    if state in {"exited", "dead", "removing"}:
        return "ended"
    if is_draining(container):
        return "draining"
    if is_ready:
        return "ready"
    crashed = details.get("RestartCount", 0) >= MAX_CRASHES
    return "failed" if crashed and not is_settled else "starting"


def _seen(container: Mapping[str, Any], phase: Phase, state: State) -> Seen:
    labels = container["Labels"]
    gpus = tuple(gpu for gpu in labels.get(GPUS, "").split(",") if gpu)
    return Seen(
        id=container["Id"],
        name=container_name(container),
        number=int(labels.get(REPLICA, "0")),
        phase=phase,
        is_new=labels.get(REVISION) == state.revision,
        gpus=gpus,
    )


def _reason(container: Mapping[str, Any], details: Mapping[str, Any], phase: Phase) -> str:
    if phase in {"ready", "draining"}:
        return ""
    if phase == "created":
        return "waits for its turn"
    state = details.get("State", {})
    restarts = details.get("RestartCount", 0)
    code = state.get("ExitCode", 0)
    killed = ", for it had used up its memory" if state.get("OOMKilled") else ""
    if phase == "ended":
        return f"has ended with exit code {code}{killed}"
    if container["State"] == "restarting" or phase == "failed":
        return f"ends as it starts, with exit code {code}{killed} (started {restarts + 1} times)"
    return "loads" if not restarts else f"loads again: it had ended (started {restarts + 1} times){killed}"


def _counts(seen: Seen) -> bool:
    """Tell whether a container is a replica worth showing: an old one that has ended waits only to be needed again."""
    return seen.is_new or seen.phase not in {"created", "ended"}


def _replica(view: View, seen: Seen) -> Replica:
    container = view.containers[seen.id]
    return Replica(
        name=seen.name,
        state=_replica_state(view, seen),
        version=container["Labels"].get(VERSION, ""),
        reason=view.reasons[seen.id],
        num_restarts=view.restarts[seen.id],
    )


def _replica_state(view: View, seen: Seen) -> ReplicaState:
    if seen.phase == "ready":
        return "ready"
    if seen.phase == "draining":
        return "draining"
    if seen.phase == "failed" or (view.restarts[seen.id] >= MAX_CRASHES and seen.phase != "created"):
        return "failed"
    return "unready" if view.state.is_settled else "starting"


def _state(view: View, steps: Steps) -> tuple[DeploymentState, str]:
    """Return the state of a deployment and the reason for it."""
    state, wanted = view.state, view.state.num_replicas
    if state.is_stopping:
        return "stopping", f"it is being stopped; `modelkit stop {state.name}` goes on where that was cut off"
    if steps.has_failed:
        return "failed", ""
    new = [each for each in view.seen if each.is_new]
    num_ready = sum(each.phase == "ready" for each in new)
    if num_ready >= wanted:
        return "running", ""
    if len(new) < wanted:
        return ("running" if num_ready else "failed"), (
            f"{wanted - len(new)} of {wanted} replicas are gone from the host; scaling it to {wanted} makes them again"
        )
    if not state.is_settled:
        is_update = any(not each.is_new and each.is_up for each in view.seen)
        return ("updating" if is_update else "starting"), ""  # its replicas say why
    return ("running" if num_ready else "failed"), f"{num_ready} of {wanted} replicas answer"
