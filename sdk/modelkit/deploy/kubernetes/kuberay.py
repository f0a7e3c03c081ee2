"""A Ray cluster for one model, which KubeRay makes and keeps: a RayService around modelkit's Ray application.

The model's own image is that of Ray's head and workers, so it has to have ray: `ray[serve]` in requirements.txt.
"""

from typing import Any, Final

from modelkit.computes import Compute
from modelkit.config import Config
from modelkit.deploy.kubernetes.kinds import KUBERAY_SERVICE
from modelkit.deploy.kubernetes.manifests import RECORD, labels, metadata
from modelkit.deploy.kubernetes.pods import pod_spec
from modelkit.deploy.ray_serve.manifest import application, serve_options
from modelkit.deploy.record import Record

__all__ = ["kuberay_objects", "serve_config"]

RAY_VERSION: Final = "2.60.0"
_GRPC_PORT: Final = 9000
_HTTP_PORT: Final = 8000
_CONTAINER: Final = "ray"
_WORKERS: Final = "replicas"


def kuberay_objects(record: Record, compute: Compute) -> list[dict[str, Any]]:
    """Return the RayService of a deployment."""
    import yaml

    spec = record.spec
    config = spec.parsed_config()
    deployment = config.deployment
    worker = _pod(record, config, compute)
    head = _without_cards(_pod(record, config, compute))
    content = {
        "serveConfigV2": yaml.safe_dump(serve_config(record), sort_keys=False),
        "rayClusterConfig": {
            "rayVersion": RAY_VERSION,
            # Ray asks for workers when replicas do not fit, and gives idle ones back.
            "enableInTreeAutoscaling": True,
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},  # noqa: S104 - in the pod
                "template": {"metadata": {"labels": labels(spec)}, "spec": head},
            },
            "workerGroupSpecs": [
                {
                    "groupName": _WORKERS,
                    "replicas": deployment.min_replicas,
                    "minReplicas": deployment.min_replicas,
                    "maxReplicas": deployment.max_replicas,
                    "rayStartParams": {},
                    "template": {"metadata": {"labels": labels(spec)}, "spec": worker},
                }
            ],
        },
    }
    about = metadata(spec.name, spec, compute, {RECORD: record.to_json()})
    return [
        {
            "apiVersion": KUBERAY_SERVICE.api_version,
            "kind": KUBERAY_SERVICE.name,
            "metadata": about,
            "spec": content,
        }
    ]


def serve_config(record: Record) -> dict[str, Any]:
    """Return the configuration of Ray Serve with this one application, as it is on any Ray cluster."""
    options = serve_options(grpc_port=_GRPC_PORT, http_port=_HTTP_PORT)
    return {**options, "applications": [application(record)]}


def _pod(record: Record, config: Config, compute: Compute) -> dict[str, Any]:
    """Return a replica's pod as a node of Ray: the same image and volumes; Ray starts what runs in it."""
    pod = pod_spec(record.spec, config, compute)
    server = pod["containers"][0]
    kept = ("image", "imagePullPolicy", "env", "resources", "securityContext", "volumeMounts")
    container = {key: server[key] for key in kept if key in server}
    container = {"name": _CONTAINER, "command": ["/bin/bash", "-lc", "--"], **container}
    return {**pod, "containers": [container]}


def _without_cards(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod that asks for no GPU: the head runs no replica."""
    container = dict(pod["containers"][0])
    container["resources"] = {
        kind: {name: amount for name, amount in amounts.items() if not name.endswith("/gpu")}
        for kind, amounts in container.get("resources", {}).items()
    }
    left_out = ("affinity", "tolerations", "initContainers")
    return {key: value for key, value in {**pod, "containers": [container]}.items() if key not in left_out}
