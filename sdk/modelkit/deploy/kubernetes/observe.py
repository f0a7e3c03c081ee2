"""From what the cluster says of a deployment's pods to a status, in the cluster's own words where it has some.

Pure: objects in, a Status out; `cluster` asks for them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from modelkit.deploy.base import DeploymentState, Replica, ReplicaState, Status
from modelkit.deploy.kubernetes.kinds import KUBERAY_SERVICE
from modelkit.deploy.kubernetes.manifests import CANARY, PERCENT, RECORD, TEMPLATE, TRACK
from modelkit.deploy.kubernetes.pods import CONTAINER
from modelkit.deploy.record import Record

__all__ = [
    "Observed",
    "deployment_status",
    "instance_of",
    "is_waiting_for_image",
    "record_of",
    "remains",
    "resource_status",
]

# What a container waits for that does not pass by itself.
_FAULTS: Final = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_DEADLINE: Final = "ProgressDeadlineExceeded"
_UNREADABLE: Final = "its record cannot be read; a newer modelkit may have written it"
# A RayService that is not ready for another reason than these may come to be.
_RAY_FAULTS: Final = frozenset({"InitializingTimeout", "ValidationFailed"})
# What KubeRay calls a cluster's head, which runs no replica.
_RAY_HEAD: Final = ("ray.io/node-type", "head")
_MAX_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was read of a deployment's pods: the pods, the last warning of each, and the last line of its log."""

    pods: Sequence[Mapping[str, Any]]
    warnings: Mapping[str, str]
    last_lines: Mapping[str, str]


def instance_of(item: Mapping[str, Any]) -> str:
    """Return the name of the deployment that an object belongs to."""
    labels = item["metadata"].get("labels") or {}
    return str(labels.get("app.kubernetes.io/instance") or item["metadata"]["name"])


def record_of(workload: Mapping[str, Any]) -> Record:
    """Return the record that an object carries; one that says no more than the name where it cannot be read."""
    name = instance_of(workload)
    record = Record.read((workload["metadata"].get("annotations") or {}).get(RECORD) or "", name)
    try:
        record.spec.parsed_config()
    except ValueError:  # settings that this modelkit does not know
        return Record.unreadable(name)
    return record


def deployment_status(
    workload: Mapping[str, Any], observed: Observed, canary: Mapping[str, Any] | None = None
) -> Status:
    """Return the status of a Deployment."""
    own = [pod for pod in _sorted(observed.pods) if not _is_of_canary(pod)]
    replicas = [_replica(pod, observed) for pod in own]
    state, reason = _state(workload, own, replicas)
    status = _status(workload, state, replicas, reason, num_wanted=int(workload["spec"].get("replicas", 0)))
    if canary is None:
        return status
    others = [pod for pod in _sorted(observed.pods) if _is_of_canary(pod)]
    return replace(
        status,
        canary=record_of(canary).spec,
        canary_percent=int(canary["metadata"]["annotations"].get(PERCENT, 0)),
        canary_replicas=tuple(_replica(pod, observed) for pod in others),
    )


def resource_status(workload: Mapping[str, Any], observed: Observed) -> Status:
    """Return the status of an object that somebody else's controller runs: by its conditions and its pods."""
    replicas = [_replica(pod, observed) for pod in _sorted(observed.pods) if not _is_head(pod)]
    state, reason = _resource_state(workload, replicas)
    num_wanted = sum(replica.state != "draining" for replica in replicas)
    return _status(workload, state, replicas, reason, num_wanted=num_wanted)


def remains(name: str, pods: Iterable[Mapping[str, Any]]) -> Status:
    """Return the status of a deployment of which only the services are left, and pods that end."""
    nothing = Observed(pods=(), warnings={}, last_lines={})
    return Status(
        name=name,
        record=Record.unreadable(name),
        state="stopping",
        replicas=tuple(_replica(pod, nothing) for pod in _sorted(pods)),
        reason=f"it is being stopped; where nobody does any more, `modelkit stop {name}` ends it",
    )


def _status(
    workload: Mapping[str, Any],
    state: DeploymentState,
    replicas: Sequence[Replica],
    reason: str,
    *,
    num_wanted: int,
) -> Status:
    record = record_of(workload)
    bounds = record.spec.parsed_config().deployment
    return Status(
        name=record.spec.name,
        record=record,
        state=state,
        replicas=tuple(replicas),
        num_wanted=num_wanted,
        min_replicas=bounds.min_replicas,
        max_replicas=bounds.max_replicas,
        reason="; ".join(part for part in ("" if record.is_readable else _UNREADABLE, reason) if part),
    )


def _is_of_canary(pod: Mapping[str, Any]) -> bool:
    return (pod["metadata"].get("labels") or {}).get(TRACK) == CANARY


def _is_head(pod: Mapping[str, Any]) -> bool:
    key, value = _RAY_HEAD
    return (pod["metadata"].get("labels") or {}).get(key) == value


# -------------------------------------------------------------------------------------------- of somebody else's controller


def _resource_state(  # noqa: PLR0911 - one line per state
    workload: Mapping[str, Any], replicas: Sequence[Replica]
) -> tuple[DeploymentState, str]:
    about, status = workload["metadata"], workload.get("status", {})
    has_ready = any(replica.state == "ready" for replica in replicas)
    on_the_way: DeploymentState = "updating" if has_ready else "starting"
    ready = _condition(workload, "Ready") or _kuberay_condition(workload)
    is_ray = workload["kind"] == KUBERAY_SERVICE.name
    if about.get("deletionTimestamp"):
        return "stopping", ""
    if status.get("observedGeneration", 0) < about.get("generation", 0):
        return on_the_way, "the cluster has not begun yet"
    if is_ray and (application := _ray_application(status)).get("status") == "DEPLOY_FAILED":
        return "failed", str(application.get("message") or "DEPLOY_FAILED")
    # The old cluster is ready all the time while a new one is prepared beside it.
    if is_ray and (upgrade := _condition(workload, "UpgradeInProgress")).get("status") == "True":
        return on_the_way, _said(upgrade)
    if is_ray and application.get("status") in {"NOT_STARTED", "DEPLOYING"}:
        return on_the_way, str(application.get("message") or application["status"])
    if ready.get("status") == "False" and (not is_ray or ready.get("reason") in _RAY_FAULTS):
        return "failed", _said(ready)
    if ready.get("status") != "True":
        return on_the_way, _said(ready)
    return ("running" if has_ready else "idle"), ""


def _ray_application(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what Ray says of the application: in the cluster that is prepared, else in the one that serves."""
    for place in ("pendingServiceStatus", "activeServiceStatus"):
        for application in ((status.get(place) or {}).get("applicationStatuses") or {}).values():
            return dict(application)
    return {}


def _kuberay_condition(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what older versions of KubeRay say in a word of their own, as a condition."""
    said = str(workload.get("status", {}).get("serviceStatus") or "")
    if not said:
        return {}
    return {"status": "True" if said == "Running" else "Unknown", "reason": said}


def is_waiting_for_image(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod's image could not be pulled, which only an event explains."""
    waits = {waiting.get("reason") for waiting in _waiting(pod)}
    return bool(waits & {"ImagePullBackOff", "ErrImagePull"})


# ------------------------------------------------------------------------------------------------------------- the whole


def _state(  # noqa: PLR0911 - one line per state
    workload: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], replicas: Sequence[Replica]
) -> tuple[DeploymentState, str]:
    about, spec, status = workload["metadata"], workload["spec"], workload.get("status", {})
    wanted = int(spec.get("replicas", 0))
    has_ready = any(replica.state == "ready" for replica in replicas)
    on_the_way: DeploymentState = "updating" if has_ready else "starting"
    if about.get("deletionTimestamp"):
        return "stopping", ""
    if status.get("observedGeneration", 0) < about.get("generation", 0):
        return on_the_way, "the cluster has not begun yet"
    updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if wanted == 0 and total == 0:
        return "idle", ""
    if updated == total == wanted == status.get("availableReplicas", 0):
        return "running", ""
    if failure := _condition(workload, "ReplicaFailure"):
        return "failed", _said(failure)
    progressing = _condition(workload, "Progressing")
    if progressing.get("reason") == _DEADLINE:
        return "failed", f"{_DEADLINE}: {_first_reason(replicas) or progressing.get('message', '')}"
    new, ready_new = _new_replicas(workload, pods, replicas)
    failed = [replica for replica in new if replica.state == "failed"]
    if failed and not ready_new:
        return "failed", failed[0].reason
    return on_the_way, _first_reason(
        new
    ) or f"{status.get('availableReplicas', 0)} of {wanted} replicas are ready"


def _new_replicas(
    workload: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], replicas: Sequence[Replica]
) -> tuple[list[Replica], list[Replica]]:
    """Return the replicas of the newest template that stay, and those of them that are ready."""
    template = workload["spec"]["template"]["metadata"].get("annotations", {}).get(TEMPLATE)
    names = {
        pod["metadata"]["name"]
        for pod in pods
        if pod["metadata"].get("annotations", {}).get(TEMPLATE) == template
    }
    new = [replica for replica in replicas if replica.name in names and replica.state != "draining"]
    return new, [replica for replica in new if replica.state == "ready"]


def _first_reason(replicas: Iterable[Replica]) -> str:
    return next((replica.reason for replica in replicas if replica.reason), "")


def _condition(workload: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = workload.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})


def _said(condition: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (condition.get("reason"), condition.get("message")) if part)


# ------------------------------------------------------------------------------------------------------------- a replica


def _sorted(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"])
    )


def _replica(pod: Mapping[str, Any], observed: Observed) -> Replica:
    name = pod["metadata"]["name"]
    state, reason = _pod_state(pod, observed.warnings.get(name, ""), observed.last_lines.get(name, ""))
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return Replica(
        name=name,
        state=state,
        version=pod["metadata"].get("annotations", {}).get("modelkit/version", ""),
        node=pod["spec"].get("nodeName", ""),
        reason=reason,
        num_restarts=sum(each.get("restartCount", 0) for each in statuses),
    )


def _pod_state(  # noqa: PLR0911 - one line per state
    pod: Mapping[str, Any], warning: str, last_line: str
) -> tuple[ReplicaState, str]:
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "draining", ""
    if status.get("phase") == "Failed":
        return "failed", _said(status)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return "starting", _said(scheduled)
    for waiting in _waiting(pod):
        reason = str(waiting.get("reason", ""))
        text = _explain_waiting(pod, waiting, warning)
        return ("failed" if reason in _FAULTS else "starting"), text
    if _condition(pod, "Ready").get("status") == "True":
        return "ready", ""
    if ended := _last_end(pod):
        return "starting", f"started again after {ended}"
    was_ready = any(each.get("started") for each in status.get("containerStatuses") or ())
    if was_ready:
        return "unready", warning or last_line or "not ready"
    return "starting", last_line or "the model is loading"


def _waiting(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return why containers wait, the first that has to start first."""
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return [each["state"]["waiting"] for each in containers if "waiting" in (each.get("state") or {})]


def _explain_waiting(pod: Mapping[str, Any], waiting: Mapping[str, Any], warning: str) -> str:
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason == "CrashLoopBackOff":
        return f"{reason}: the container ended with {_last_end(pod) or message}"
    if is_waiting_for_image(pod) and warning:
        return f"{reason}: {warning}"
    if reason in {"ContainerCreating", "PodInitializing"}:
        return f"{reason}: {warning}" if warning else reason
    return f"{reason}: {message}" if message else reason


def _last_end(pod: Mapping[str, Any]) -> str:
    """Return how a container last ended: its exit code and its last lines; "" where it never did."""
    status = pod.get("status", {})
    for each in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        ended = (each.get("state") or {}).get("terminated") or (each.get("lastState") or {}).get("terminated")
        if ended is None or (each["name"] != CONTAINER and ended.get("exitCode") == 0):
            continue
        why = f", {ended['reason']}" if ended.get("reason") not in {None, "Error", "Completed"} else ""
        lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
        said = ":\n" + "\n".join(lines[-_MAX_LINES:]) if lines else ""
        return f"exit code {ended.get('exitCode')}{why}{said}"
    return ""
