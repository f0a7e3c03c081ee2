"""What is on a Docker host now, in the words of a roll and in those of a status."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
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
from modelkit.computes.endpoint import Endpoint
from modelkit.deploy.base import DeploymentState, Replica, ReplicaState, Status
from modelkit.deploy.docker.replica import GPUS
from modelkit.deploy.docker.roll import MAX_CRASHES, Phase, Seen, Steps, Surge, next_steps
from modelkit.deploy.docker.state import State

__all__ = ["View", "container_name", "gpus_of", "last_lines", "look", "status_of", "steps_of"]

_UNREADABLE = "its record cannot be read; a newer modelkit may have written it"


@dataclass(frozen=True, slots=True)
class View:
    """A deployment and its containers: listings and what a roll sees of them, by the same ids, and why one is not ready."""

    state: State
    containers: Mapping[str, Mapping[str, Any]]
    seen: tuple[Seen, ...]
    restarts: Mapping[str, int]
    reasons: Mapping[str, str]

    def refused(self, why: Mapping[str, str]) -> "View":
        """Return the same where the daemon has just refused to start some, by their ids, and why."""
        seen = tuple(replace(each, phase="refused") if each.id in why else each for each in self.seen)
        told = {identity: f"the daemon refuses to start it: {text}" for identity, text in why.items()}
        return replace(self, seen=seen, reasons={**self.reasons, **told})


def container_name(container: Mapping[str, Any]) -> str:
    """Return a container's name, without what it bears while it drains."""
    name: str = container["Names"][0]
    return name.removeprefix("/").removesuffix(DRAINING)


def gpus_of(container: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the GPUs that a container was given."""
    return tuple(gpu for gpu in container["Labels"].get(GPUS, "").split(",") if gpu)


def look(
    host: DockerHost,
    state: State,
    listed: Sequence[dict[str, Any]],
    ends: MutableMapping[str, str] | None = None,
) -> View:
    """Return a deployment as it is, from a listing of containers; its replicas are asked whether they take calls.

    `ends` keeps how each has last ended, by their ids: Docker forgets it when it starts one again.
    """
    ends = {} if ends is None else ends
    mine = [each for each in listed if each["Labels"].get(DEPLOYMENT) == state.name]
    ready = ready_ones(host.compute, mine)
    seen, restarts, reasons = [], {}, {}
    for each in mine:
        identity = each["Id"]
        details = {} if identity in ready else _inspect(host, identity)
        restarts[identity] = details.get("RestartCount", 0)
        phase = _phase(each, details, is_ready=identity in ready, is_proven=state.has_proven(identity))
        seen.append(_seen(each, phase, state))
        ends[identity] = _how_it_ended(details) or ends.get(identity, "")
        reasons[identity] = _reason(each, details, phase, ends[identity], is_stopping=state.is_stopping)
    return View(state, {each["Id"]: each for each in mine}, tuple(seen), restarts, reasons)


def status_of(host: DockerHost, view: View, steps: Steps) -> Status:
    """Return the status of a deployment; `steps` are what is to be done, or has just been begun."""
    state = view.state
    shown = [each for each in view.seen if _counts(each) and each not in steps.remove]
    shown.sort(key=lambda each: (not each.is_new, each.number))
    replicas = tuple(_replica(view, each) for each in shown)
    num_wanted = state.num_replicas if state.record.is_readable else len(replicas)
    what, reason = _state(view, steps)
    if steps.has_failed:
        failed = next(each for each in view.seen if each.is_new and each.phase in {"failed", "refused"})
        reason = reason or view.reasons[failed.id]
    return Status(
        name=state.name,
        record=state.record,
        state=what,
        replicas=replicas,
        num_wanted=num_wanted,
        min_replicas=num_wanted,
        max_replicas=num_wanted,
        reason=reason,
        endpoint=_endpoint(host, view),
    )


def _endpoint(host: DockerHost, view: View) -> Endpoint:
    """Return where the deployment answers; over HTTP, which knows one place only, one that is there to stay."""
    serving = [each for each in view.seen if each.phase == "ready"]
    staying = [each for each in serving if each.is_new]

    def of(those: Sequence[Seen]) -> Endpoint:
        return endpoint_of(host.compute, [dict(view.containers[each.id]) for each in those])

    return replace(of(serving), http_url=of(staying or serving).http_url)


def steps_of(view: View) -> Steps:
    """Return the next steps of a deployment: none of one that is being stopped, or whose record cannot be read."""
    state = view.state
    if state.is_stopping or not state.record.is_readable:
        return Steps()
    config = state.record.spec.parsed_config()
    surge = Surge.of(state.num_replicas, config.deployment.max_surge_percent)
    return next_steps(view.seen, state.num_replicas, surge)


def last_lines(host: DockerHost, identity: str, num_lines: int) -> list[str]:
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
    container: dict[str, Any], details: Mapping[str, Any], *, is_ready: bool, is_proven: bool
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
    # Docker counts the restarts of a container's whole life: they tell nothing of one that was good once.
    crashed = details.get("RestartCount", 0) >= MAX_CRASHES
    return "failed" if crashed and not is_proven else "starting"


def _seen(container: Mapping[str, Any], phase: Phase, state: State) -> Seen:
    labels = container["Labels"]
    return Seen(
        id=container["Id"],
        name=container_name(container),
        number=int(labels.get(REPLICA, "0")),
        phase=phase,
        is_new=labels.get(REVISION) == state.revision,
        gpus=gpus_of(container),
    )


def _how_it_ended(details: Mapping[str, Any]) -> str:
    """Return how a container has ended, "" where that was no accident, or it runs."""
    state = details.get("State", {})
    if not state.get("ExitCode"):
        return ""
    killed = ", for it had used up its memory" if state.get("OOMKilled") else ""
    return f" with exit code {state['ExitCode']}{killed}"


def _reason(
    container: Mapping[str, Any], details: Mapping[str, Any], phase: Phase, how: str, *, is_stopping: bool
) -> str:
    """Return why one is not ready, the same for all that are not for the same reason: a status says each once."""
    if phase in {"ready", "draining"}:
        return ""
    was_planned = is_draining(dict(container)) or is_stopping
    if phase == "created" or (phase == "ended" and was_planned):
        return "" if is_stopping else "waits for its turn"
    if phase == "ended":
        return f"has ended{how}"
    if container["State"] == "restarting" or phase == "failed":
        return f"ends as it starts,{how}" if how else "ends as it starts"
    return "loads" if not details.get("RestartCount") else f"loads again: it had ended{how}"


def _counts(seen: Seen) -> bool:
    """Tell whether a container is a replica worth showing: an old one that has ended waits only to be needed again."""
    return seen.is_new or seen.phase not in {"created", "refused", "ended"}


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
    if seen.phase in {"failed", "refused"}:
        return "failed"
    return "unready" if view.state.has_proven(seen.id) else "starting"


def _state(view: View, steps: Steps) -> tuple[DeploymentState, str]:
    """Return the state of a deployment and the reason for it."""
    state = view.state
    if not state.record.is_readable:
        return _state_by_what_runs(view), _UNREADABLE
    if state.is_stopping:
        return "stopping", f"it is being stopped; `modelkit stop {state.name}` goes on where that was cut off"
    if steps.has_failed and not state.is_complete:
        return "failed", ""
    return _progress(view, is_complete=state.is_complete or steps.is_done)


def _progress(view: View, *, is_complete: bool) -> tuple[DeploymentState, str]:
    """Return how far a deployment is from what is wanted."""
    state, wanted = view.state, view.state.num_replicas
    new = [each for each in view.seen if each.is_new]
    num_ready = sum(each.phase == "ready" for each in new)
    if len(new) < wanted:
        return ("running" if is_complete and num_ready else "failed"), (
            f"{wanted - len(new)} of {wanted} replicas are gone from the host; scaling it to {wanted} makes them again"
        )
    if not is_complete:
        is_update = state.proven or any(not each.is_new and each.runs for each in view.seen)
        # Why one is not ready, it says itself.
        reason = _what_drains(sum(each.runs for each in view.seen) - wanted) if num_ready >= wanted else ""
        return ("updating" if is_update else "starting"), reason
    if num_ready >= wanted:
        return "running", ""
    return ("running" if num_ready else "failed"), f"{num_ready} of {wanted} replicas answer"


def _what_drains(num: int) -> str:
    who = (
        "a replica that is needed no more lets its calls"
        if num == 1
        else f"{num} replicas that are needed no more let their calls"
    )
    return f"all that is wanted answers; {who} end"


def _state_by_what_runs(view: View) -> DeploymentState:
    phases = {each.phase for each in view.seen}
    if "ready" in phases:
        return "running"
    return "starting" if "starting" in phases else "failed"
