"""What the cluster says of an application, in modelkit's words: pure."""

from collections.abc import Mapping
from typing import Any, Final

from modelkit.computes import Endpoint
from modelkit.deploy.base import DeploymentState, Replica, ReplicaState, Status
from modelkit.deploy.ray_serve.manifest import DEPLOYMENT, num_wanted, read_mark, read_record

__all__ = ["explain", "read_status", "reason_of"]

_UNREADABLE: Final = "its record cannot be read; a newer modelkit may have written it"

_REPLICA_STATES: Final[Mapping[str, ReplicaState]] = {
    "STARTING": "starting",
    "UPDATING": "starting",
    "RECOVERING": "starting",
    "PENDING_MIGRATION": "ready",
    "RUNNING": "ready",
    "STOPPING": "draining",
}
_APPLICATION_STATES: Final[Mapping[str, DeploymentState]] = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "starting",
    "RUNNING": "running",
    "DEPLOY_FAILED": "failed",
    "UNHEALTHY": "failed",
    "DELETING": "stopping",
}


def read_status(
    name: str,
    details: Mapping[str, Any],
    canary: Mapping[str, Any] | None,
    endpoint: Endpoint | None,
) -> Status:
    """Return the status of an application from what the cluster says of it and of its canary. Never raises."""
    record = read_record(details["deployed_app_config"])
    deployment: Mapping[str, Any] = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
    bounds = record.spec.parsed_config().deployment
    replicas = _replicas(details)
    canary_config = canary["deployed_app_config"] if canary else None
    return Status(
        name=name,
        record=record,
        state=_state(details, deployment, replicas),
        replicas=replicas,
        num_wanted=num_wanted(details),
        min_replicas=bounds.min_replicas,
        max_replicas=bounds.max_replicas,
        reason=reason_of(details) if record.is_readable else _UNREADABLE,
        endpoint=endpoint,
        canary=read_record(canary_config).spec if canary_config else None,
        canary_percent=read_mark(canary_config) if canary_config else 0,
        canary_replicas=_replicas(canary) if canary else (),
    )


def _replicas(details: Mapping[str, Any]) -> tuple[Replica, ...]:
    deployment = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
    version = read_record(details["deployed_app_config"]).spec.version
    # Ray does not say which version a replica runs: they run that of the record once all is done.
    is_done = details.get("status") == "RUNNING"
    return tuple(_replica(each, version if is_done else "") for each in deployment.get("replicas") or ())


def _state(
    details: Mapping[str, Any], deployment: Mapping[str, Any], replicas: tuple[Replica, ...]
) -> DeploymentState:
    state = _APPLICATION_STATES.get(str(details.get("status")), "starting")
    has_ready = any(each.state == "ready" for each in replicas)
    if state == "starting" and has_ready:
        return "updating"
    if state == "running" and not has_ready:
        return "starting" if deployment.get("target_num_replicas") else "idle"
    return state


def _replica(details: Mapping[str, Any], version: str) -> Replica:
    state = _REPLICA_STATES.get(str(details.get("state")), "starting")
    return Replica(
        name=str(details.get("replica_id", "")),
        state=state,
        version=version if state == "ready" else "",
        node=str(details.get("node_ip") or ""),
    )


def reason_of(details: Mapping[str, Any]) -> str:
    """Return what Ray says of an application that does not run, without the noise."""
    if details.get("status") == "RUNNING":
        return ""
    deployment = (details.get("deployments") or {}).get(DEPLOYMENT) or {}
    said = str(deployment.get("message") or details.get("message") or "").strip()
    if not said:
        return ""
    return explain(said)


def explain(message: str) -> str:
    """Return the gist of a message of Ray's: its first line, and the error that a traceback in it ends with."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "Traceback" not in message and "Error" not in message:
        return " ".join(lines)
    errors = [line for line in lines if _is_error(line)]
    return errors[-1] if errors else lines[0]


def _is_error(line: str) -> bool:
    head = line.partition(":")[0]
    return (
        ":" in line
        and head.replace(".", "").replace("_", "").isidentifier()
        and head.endswith(("Error", "Exception", "Exit"))
    )
