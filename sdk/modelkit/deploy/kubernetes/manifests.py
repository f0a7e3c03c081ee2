"""All objects of a deployment, of its record and its compute alone: nothing is asked, the same for the same record.

They are written for a cluster of today; `kinds.adapted` spells them for an older one.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import GRPC_PORT, HTTP_PORT, replicas_service
from modelkit.config import Config
from modelkit.deploy.kubernetes.kinds import AUTOSCALER, DEPLOYMENT, DISRUPTION_BUDGET, SERVICE
from modelkit.deploy.kubernetes.pods import pod_spec, start_timeout_s
from modelkit.deploy.record import DeploymentSpec, Record

__all__ = [
    "CANARY",
    "MAX_NAME_CHARACTERS",
    "PERCENT",
    "RECORD",
    "STABLE",
    "TEMPLATE",
    "TRACK",
    "as_yaml",
    "dedicated_objects",
    "deployment_object",
    "is_autoscaled",
    "labels",
    "metadata",
    "pod_template",
    "selector",
    "service_objects",
    "starting_one",
    "within",
]

# The record with its history, on the object that stands for the deployment.
RECORD: Final = "modelkit/record"
# On the Deployment of a canary: its share of the calls.
PERCENT: Final = "modelkit/percent"
# On each pod: which template it is of, whatever else of the version is the same.
TEMPLATE: Final = "modelkit/template"
# Which of two versions side by side a pod belongs to.
TRACK: Final = "modelkit/track"
STABLE: Final = "stable"
CANARY: Final = "canary"
# The longest name that leaves room for those made of it, of which Kubernetes takes 63 characters.
MAX_NAME_CHARACTERS: Final = 54

_CALLS_METRIC: Final = "modelkit_calls_running"
_CPU_PERCENT: Final = 70
_NEW_REPLICAS_WAIT_S: Final = 600
_SCALE_DOWN_WAIT_S: Final = 300


def dedicated_objects(
    record: Record, compute: Compute, *, num_replicas: int | None = None, scales_on_calls: bool = True
) -> list[dict[str, Any]]:
    """Return the objects of a deployment whose replicas always run.

    With autoscaling the number of replicas is the autoscaler's; `num_replicas` is the one to keep meanwhile. Without
    `scales_on_calls`, for a cluster that has no metrics of pods, it goes by CPU.
    """
    spec = record.spec
    config = spec.parsed_config()
    deployment = config.deployment
    if not is_autoscaled(config):
        num_replicas = deployment.min_replicas
    num_replicas = within(num_replicas, config)
    objects = service_objects(spec, compute)
    objects.append(deployment_object(record, config, compute, num_replicas))
    if deployment.min_replicas > 1:
        objects.append(_disruption_budget(spec, compute))
    if is_autoscaled(config):
        objects.append(_autoscaler(spec, config, compute, on_calls=scales_on_calls))
    return objects


def deployment_object(
    record: Record, config: Config, compute: Compute, num_replicas: int | None, *, track: str = STABLE
) -> dict[str, Any]:
    """Return the Deployment, which has the record with it."""
    spec = record.spec
    name = spec.name if track == STABLE else f"{spec.name}-{track}"
    surge = config.deployment.max_surge_percent
    content: dict[str, Any] = {} if num_replicas is None else {"replicas": num_replicas}
    content |= {
        "revisionHistoryLimit": 2,  # the record has the history
        "progressDeadlineSeconds": ceil(start_timeout_s(config)) + _NEW_REPLICAS_WAIT_S,
        "selector": {"matchLabels": selector(spec.name, track)},
        "strategy": {
            "type": "RollingUpdate",
            # The old replica ends when the new one is ready, unless there may be none beside it.
            "rollingUpdate": {"maxSurge": f"{surge}%", "maxUnavailable": 0}
            if surge
            else {"maxSurge": 0, "maxUnavailable": 1},
        },
        "template": pod_template(spec, config, compute, track),
    }
    annotations = {RECORD: record.to_json()}
    return _object(DEPLOYMENT, metadata(name, spec, compute, annotations), content)


def pod_template(
    spec: DeploymentSpec, config: Config, compute: Compute, track: str = STABLE
) -> dict[str, Any]:
    """Return the pods of a Deployment."""
    pod = pod_spec(spec, config, compute)
    annotations = {
        "modelkit/version": spec.version,
        "modelkit/digest": spec.digest,
        TEMPLATE: hashlib.sha256(json.dumps(pod, sort_keys=True).encode()).hexdigest()[:16],
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(HTTP_PORT),
        "prometheus.io/path": "/metrics",
    }
    return {
        "metadata": {"labels": labels(spec) | selector(spec.name, track), "annotations": annotations},
        "spec": pod,
    }


def starting_one(
    objects: Sequence[dict[str, Any]], current: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the objects so that a template that is new to a Deployment without replicas starts one.

    A version that cannot start is seen now, and not by the first caller.
    """

    def template_of(item: Mapping[str, Any]) -> object:
        return (item["spec"]["template"]["metadata"].get("annotations") or {}).get(TEMPLATE)

    return [
        {**item, "spec": {**item["spec"], "replicas": 1}}
        if current is not None
        and item["kind"] == DEPLOYMENT.name
        and item["spec"].get("replicas") == 0
        and template_of(item) != template_of(current)
        else item
        for item in objects
    ]


def service_objects(spec: DeploymentSpec, compute: Compute, *, track: str = STABLE) -> list[dict[str, Any]]:
    """Return the service that has an address, and the headless one whose addresses are the replicas.

    The type of the first is left to its default and to whoever sets it: `kubectl patch` makes it a LoadBalancer, and
    the next version does not take that back.
    """
    name = spec.name if track == STABLE else f"{spec.name}-{track}"
    pods = selector(spec.name, track)
    ports = [
        # h2c: a gateway in front has to know that this is HTTP/2 without TLS.
        _port("grpc", GRPC_PORT) | {"appProtocol": "kubernetes.io/h2c"},
        _port("http", HTTP_PORT),
    ]
    plain = _object(SERVICE, metadata(name, spec, compute), {"selector": pods, "ports": ports})
    if track != STABLE:
        return [plain]
    headless = {"clusterIP": "None", "selector": pods, "ports": ports}
    return [plain, _object(SERVICE, metadata(replicas_service(spec.name), spec, compute), headless)]


def _port(name: str, number: int) -> dict[str, Any]:
    # The protocol is part of a port's key: older clusters want to be told even the default.
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}


def selector(name: str, track: str = STABLE) -> dict[str, str]:
    """Return the labels by which the pods of a deployment are found; they never change."""
    return {
        "app.kubernetes.io/managed-by": "modelkit",
        "app.kubernetes.io/instance": name,
        TRACK: track,
    }


def labels(spec: DeploymentSpec) -> dict[str, str]:
    """Return the labels of every object of a deployment."""
    return {
        "app.kubernetes.io/name": _label(spec.model_id),
        "app.kubernetes.io/instance": spec.name,
        "app.kubernetes.io/version": _label(spec.version),
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": "modelkit",
    }


def metadata(
    name: str, spec: DeploymentSpec, compute: Compute, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata of an object of a deployment."""
    found: dict[str, Any] = {"name": name}
    if compute.namespace:
        found["namespace"] = compute.namespace
    found["labels"] = labels(spec)
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def within(num_replicas: int | None, config: Config) -> int | None:
    """Return a number of replicas moved into the bounds."""
    if num_replicas is None:
        return None
    return min(max(num_replicas, config.deployment.min_replicas), config.deployment.max_replicas)


def is_autoscaled(config: Config) -> bool:
    """Tell whether the number of replicas follows the load."""
    return config.deployment.max_replicas > config.deployment.min_replicas


def as_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    """Return objects as one text that kubectl takes."""
    import yaml

    return "".join(
        f"---\n{yaml.dump(item, Dumper=_dumper(), sort_keys=False, width=110)}" for item in objects
    )


def _dumper() -> Any:
    """Return a dumper that writes the same list twice rather than a name for it."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    return Plain


def _disruption_budget(spec: DeploymentSpec, compute: Compute) -> dict[str, Any]:
    content = {"maxUnavailable": 1, "selector": {"matchLabels": selector(spec.name)}}
    return _object(DISRUPTION_BUDGET, metadata(spec.name, spec, compute), content)


def _autoscaler(spec: DeploymentSpec, config: Config, compute: Compute, *, on_calls: bool) -> dict[str, Any]:
    deployment = config.deployment
    if on_calls:
        target = {"type": "AverageValue", "averageValue": str(deployment.target_concurrency)}
        metric: dict[str, Any] = {
            "type": "Pods",
            "pods": {"metric": {"name": _CALLS_METRIC}, "target": target},
        }
    else:
        target_cpu = {"type": "Utilization", "averageUtilization": _CPU_PERCENT}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target_cpu}}
    content = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name},
        "minReplicas": deployment.min_replicas,
        "maxReplicas": deployment.max_replicas,
        "metrics": [metric],
        # Starting a replica costs minutes of a GPU: not taken back for a lull.
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": _SCALE_DOWN_WAIT_S}},
    }
    return _object(AUTOSCALER, metadata(spec.name, spec, compute), content)


def _object(kind: Any, about: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": dict(about), "spec": dict(content)}


def _label(text: str) -> str:
    """Return a text as the value of a label: at most 63 letters, digits, '.', '_' and '-', without these at its ends."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("._-") or "unknown"
