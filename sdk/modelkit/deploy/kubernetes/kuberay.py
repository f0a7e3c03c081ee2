"""A Ray cluster for one model, which KubeRay makes and keeps: a RayService around modelkit's Ray application.

The model's own image is that of Ray's head and workers, so it has to have ray: `ray[serve]` in requirements.txt.
"""

import json
from dataclasses import asdict, replace
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.config import Config
from modelkit.deploy.kubernetes.kinds import KUBERAY_SERVICE
from modelkit.deploy.kubernetes.manifests import RECORD, labels, metadata
from modelkit.deploy.kubernetes.pods import pod_spec
from modelkit.deploy.record import Record

__all__ = ["kuberay_objects", "serve_config"]

RAY_VERSION: Final = "2.60.0"
# Ray's application and the function that answers gRPC, both in the model's image.
_IMPORT_PATH: Final = "modelkit.deploy.ray_serve.replica:build"
_SERVICER: Final = "modelkit.deploy.ray_serve.contract.add_to_server"
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
    """Return the configuration of Ray Serve with this one application."""
    spec = record.spec
    config = spec.parsed_config()
    deployment = config.deployment
    fixed = {key: value for key, value in spec.config.items() if key != "deployment"}
    replica = asdict(replace(spec, config=fixed))
    resources: dict[str, Any] = {"num_cpus": config.compute.cpu_request_cores or 1.0}
    if config.compute.num_accelerators:
        resources["num_gpus"] = config.compute.num_accelerators
    application = {
        "name": spec.name,
        "route_prefix": "/",
        "import_path": _IMPORT_PATH,
        "args": {"spec": json.dumps(replica, sort_keys=True), "public_host": "0.0.0.0"},  # noqa: S104
        "deployments": [
            {
                "name": "model",
                "max_ongoing_requests": config.server.max_concurrency,
                "max_queued_requests": max(1, config.server.max_queue),
                "graceful_shutdown_timeout_s": config.server.drain_timeout_s,
                "autoscaling_config": {
                    "min_replicas": deployment.min_replicas,
                    "initial_replicas": max(1, deployment.min_replicas),
                    "max_replicas": deployment.max_replicas,
                    "target_ongoing_requests": deployment.target_concurrency,
                },
                "ray_actor_options": resources,
                "user_config": {"record": record.to_json()},
            }
        ],
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": _HTTP_PORT},  # noqa: S104
        "grpc_options": {"port": _GRPC_PORT, "grpc_servicer_functions": [_SERVICER]},
        "applications": [application],
    }


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
