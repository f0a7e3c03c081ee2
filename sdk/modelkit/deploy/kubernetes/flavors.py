"""Who runs a serverless deployment: Kubernetes itself cannot scale to zero and hold the first call.

Each flavor is somebody else's controller, told what to do by one object: KEDA's HTTP add-on, Knative Serving, or KubeRay.
Which one a cluster has is for its owner to say, once: `modelkit compute add --flavor`.
"""

import re
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import GRPC_PORT, Kind
from modelkit.config import Config
from modelkit.deploy.kubernetes.kinds import DEPLOYMENT, HTTP_SCALED_OBJECT, KNATIVE_SERVICE, KUBERAY_SERVICE
from modelkit.deploy.kubernetes.kuberay import kuberay_objects
from modelkit.deploy.kubernetes.manifests import (
    RECORD,
    deployment_object,
    labels,
    metadata,
    pod_template,
    service_objects,
    within,
)
from modelkit.deploy.kubernetes.pods import start_timeout_s
from modelkit.deploy.record import Record
from modelkit.errors import UsageError

__all__ = ["FLAVORS", "Flavor", "flavor_kind", "host_of", "serverless_objects", "workload_kind"]

Flavor = Callable[[Record, Compute, int | None], list[dict[str, Any]]]

_IDLE_S: Final = 300
# What a cluster allows by default (max-revision-timeout-seconds); a stream is cut after it.
_KNATIVE_TIMEOUT_S: Final = 600
_KNATIVE_MAX_CONCURRENCY: Final = 1000


def serverless_objects(
    record: Record, compute: Compute, num_replicas: int | None = None
) -> list[dict[str, Any]]:
    """Return the objects of a deployment that may scale to zero. Raises UsageError without a flavor that is known."""
    _, render = _known(compute)
    return render(record, compute, num_replicas)


def flavor_kind(compute: Compute) -> Kind:
    """Return the kind of object that the compute's flavor has to know. Raises UsageError where there is none."""
    return _known(compute)[0]


def workload_kind(config: Config, compute: Compute) -> Kind:
    """Return the kind of object that stands for a deployment. Raises UsageError without a flavor where it needs one."""
    if config.deployment.mode == "dedicated":
        return DEPLOYMENT
    kind = flavor_kind(compute)
    return DEPLOYMENT if kind == HTTP_SCALED_OBJECT else kind  # which scales one


def host_of(compute: Compute, name: str, namespace: str) -> str:
    """Return the host by which callers name a deployment: of the compute's endpoint, else one within the cluster."""
    if compute.endpoint:
        address = compute.endpoint.replace("{name}", name).rpartition("://")[2].partition("/")[0]
        return re.sub(r":\d+$", "", address)
    return f"{name}.{namespace}"


def _known(compute: Compute) -> "tuple[Kind, Flavor]":
    found = FLAVORS.get(compute.flavor or "")
    if found is None:
        what = (
            f"'{compute.flavor}' is no flavor" if compute.flavor else f"compute {compute.name} has no flavor"
        )
        raise UsageError(
            f"{what}, and Kubernetes alone cannot scale to zero: one of {', '.join(FLAVORS)} has to run in the cluster",
            cure=f"name the one that does: `modelkit compute add {compute.name} --replace --flavor keda`; or deploy with "
            "--mode dedicated",
        )
    return found


def _keda_objects(record: Record, compute: Compute, num_replicas: int | None) -> list[dict[str, Any]]:
    """A Deployment as ever, and KEDA's HTTP add-on in front, which holds calls and counts them."""
    spec = record.spec
    config = spec.parsed_config()
    wanted = config.deployment
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name, "service": spec.name}
    content = {
        "hosts": [host_of(compute, spec.name, compute.namespace or "default")],
        # One port, so gRPC: who calls over HTTP cannot wake it.
        "scaleTargetRef": {**target, "port": GRPC_PORT},
        "replicas": {"min": wanted.min_replicas, "max": wanted.max_replicas},
        "scaledownPeriod": ceil(wanted.scale_to_zero_after_s or _IDLE_S),
        "scalingMetric": {"concurrency": {"targetValue": wanted.target_concurrency}},
        "timeouts": {"conditionWait": f"{ceil(start_timeout_s(config))}s"},
    }
    return [
        *service_objects(spec, compute),
        deployment_object(record, config, compute, within(num_replicas, config)),
        _object(HTTP_SCALED_OBJECT, metadata(spec.name, spec, compute), content),
    ]


def _knative_objects(record: Record, compute: Compute, num_replicas: int | None) -> list[dict[str, Any]]:
    """One Knative Service, whose activator holds calls and whose autoscaler counts them."""
    del num_replicas  # Knative's own
    spec = record.spec
    config = spec.parsed_config()
    wanted = config.deployment
    annotations = {
        "autoscaling.knative.dev/metric": "concurrency",
        "autoscaling.knative.dev/target": str(wanted.target_concurrency),
        "autoscaling.knative.dev/min-scale": str(wanted.min_replicas),
        "autoscaling.knative.dev/max-scale": str(wanted.max_replicas),
        "serving.knative.dev/progress-deadline": f"{ceil(start_timeout_s(config))}s",
    }
    if wanted.scale_to_zero_after_s is not None:
        annotations["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] = (
            f"{ceil(wanted.scale_to_zero_after_s)}s"
        )
    template = pod_template(spec, config, compute)
    limit = config.server.max_concurrency
    content = {
        "template": {
            "metadata": {
                "labels": labels(spec),
                "annotations": template["metadata"]["annotations"] | annotations,
            },
            "spec": {
                "containerConcurrency": limit if limit <= _KNATIVE_MAX_CONCURRENCY else 0,
                "timeoutSeconds": _KNATIVE_TIMEOUT_S,
                **_knative_pod(template["spec"], config),
            },
        }
    }
    about = metadata(spec.name, spec, compute, {RECORD: record.to_json()})
    return [_object(KNATIVE_SERVICE, about, content)]


def _knative_pod(pod: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the part of a pod that Knative takes: one port, gRPC's own probes of it, and no settings of the pod's own.

    Init containers, node affinity and tolerations are there only where a replica needs them: Knative has a feature flag
    for each.
    """
    found = {key: value for key, value in pod.items() if key not in _KNATIVE_POD_OWN}
    server = {key: value for key, value in pod["containers"][0].items() if key not in _KNATIVE_OWN}
    grpc = {"grpc": {"port": GRPC_PORT}, "periodSeconds": _PERIOD_S, "timeoutSeconds": 5}
    server |= {
        "ports": [{"name": "h2c", "containerPort": GRPC_PORT}],
        "securityContext": _as_container_s(pod["securityContext"]) | server["securityContext"],
        "startupProbe": grpc | {"failureThreshold": ceil(start_timeout_s(config) / _PERIOD_S)},
        "readinessProbe": grpc | {"failureThreshold": 3},
    }
    return {**found, "containers": [server]}


def _as_container_s(security: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod's security settings as those of a container, which knows no group of volumes."""
    return {key: value for key, value in security.items() if key != "fsGroup"}


# Knative drains by timeoutSeconds, and has its own idea of how a pod ends; it wants security settings per container.
_KNATIVE_POD_OWN: Final = frozenset({"securityContext", "terminationGracePeriodSeconds"})
_KNATIVE_OWN: Final = frozenset({"lifecycle", "livenessProbe", "ports", "readinessProbe", "startupProbe"})
_PERIOD_S: Final = 2


def _kuberay_objects(record: Record, compute: Compute, num_replicas: int | None) -> list[dict[str, Any]]:
    del num_replicas
    return kuberay_objects(record, compute)


FLAVORS: Final[Mapping[str, tuple[Kind, Flavor]]] = {
    "keda": (HTTP_SCALED_OBJECT, _keda_objects),
    "knative": (KNATIVE_SERVICE, _knative_objects),
    "kuberay": (KUBERAY_SERVICE, _kuberay_objects),
}


def _object(kind: Kind, about: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": dict(about), "spec": dict(content)}
