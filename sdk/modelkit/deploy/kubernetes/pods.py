"""What one replica is: the pod of an image that `modelkit build` made, of a record's specification alone."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import GRPC_PORT, HTTP_PORT
from modelkit.config import Config
from modelkit.deploy.kubernetes.accelerators import gpu_affinity, gpu_resource, gpu_tolerations
from modelkit.deploy.kubernetes.secrets import REGISTRY_SECRET, secret_refs
from modelkit.deploy.record import DeploymentSpec
from modelkit.image.plan import CACHE_DIR, USER_ID, VENV_DIR

__all__ = ["CONTAINER", "PRE_STOP_S", "pod_spec", "start_timeout_s"]

CONTAINER: Final = "server"

# A replica goes on taking calls for so long after it was told to end: until everybody who balances has heard of it.
PRE_STOP_S: Final = 5
_STOP_SLACK_S: Final = 10
_START_TIMEOUT_S: Final = 600.0
# A container that is started has its image and its volumes already; those may take minutes before that.
_START_SLACK_S: Final = 600.0
_PERIOD_S: Final = 2
_SHM_BYTES: Final = 16 * 1024**3
_REGISTRY_DIR: Final = "/run/modelkit/registry"
_FETCH = "import sys; from modelkit.versions.local import materialize; materialize(sys.argv[1])"


def pod_spec(spec: DeploymentSpec, config: Config, compute: Compute) -> dict[str, Any]:
    """Return the pod of a replica."""
    volumes = _Volumes(config, compute)
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ceil(config.server.drain_timeout_s) + PRE_STOP_S + _STOP_SLACK_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": [{"name": REGISTRY_SECRET}],
    }
    if volumes.fetches_version:
        pod["initContainers"] = [_weights_container(spec, config, volumes)]
    pod["containers"] = [server_container(spec, config, volumes)]
    if volumes.volumes:
        pod["volumes"] = volumes.volumes
    if (affinity := gpu_affinity(config.compute)) is not None:
        pod["affinity"] = affinity
    if tolerations := gpu_tolerations(config.compute):
        pod["tolerations"] = tolerations
    return pod


def server_container(spec: DeploymentSpec, config: Config, volumes: "_Volumes") -> dict[str, Any]:
    """Return the container that serves."""
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": spec.artifact,
        "imagePullPolicy": "IfNotPresent",  # it is named by its digest, and never another
        "args": _arguments(spec),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a status then has the last lines of one that died
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
        ],
    }
    if secrets := secret_refs(spec):
        container["env"] = [each.as_env() for each in secrets]
    container |= {
        "resources": _resources(config),
        "securityContext": _UNPRIVILEGED,
        "startupProbe": {
            **_probe("/ready"),
            "failureThreshold": ceil(start_timeout_s(config) / _PERIOD_S),
        },
        "readinessProbe": {**_probe("/ready"), "failureThreshold": 2},
        "livenessProbe": {**_probe("/health", period_s=10), "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
    }
    if volumes.mounts:
        container["volumeMounts"] = volumes.mounts
    return container


def _arguments(spec: DeploymentSpec) -> list[str]:
    """Return what the server in the image is told: what was laid over config.yaml, and where its API key is."""
    options = spec.serve_options()
    options += [("--api-key-env", spec.api_key_env)] if spec.api_key_env else []
    return [part for option in options for part in option]


def start_timeout_s(config: Config) -> float:
    """Return how long a container may take until its model is ready: its engine, and weights that it fetches."""
    engine_s = config.engine.start_timeout_s if config.engine is not None else 0.0
    fetch_s = _START_SLACK_S if config.checkpoints is not None else 0.0
    return max(_START_TIMEOUT_S, engine_s) + fetch_s


class _Volumes:
    """The volumes of a pod, and where its containers see them."""

    def __init__(self, config: Config, compute: Compute) -> None:
        self.volumes: list[dict[str, Any]] = []
        self.mounts: list[dict[str, Any]] = []
        checkpoint = config.checkpoints
        is_fetched = checkpoint is not None and checkpoint.when != "build" and checkpoint.type != "local"
        # Weights that were uploaded with the version come from its registry, before the server starts.
        self.fetches_version = is_fetched and checkpoint is not None and checkpoint.when == "upload"
        if config.compute.num_accelerators:
            size = min(_SHM_BYTES, (config.compute.cpu_memory_bytes or 2 * _SHM_BYTES) // 2)
            shm = {"medium": "Memory", "sizeLimit": memory_text(size)}
            self._add("shm", "/dev/shm", {"emptyDir": shm})  # noqa: S108 - where engines share tensors
        if is_fetched:
            claim = compute.cache_volume
            cache = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
            self._add("cache", CACHE_DIR, cache)
        if self.fetches_version:
            items = [{"key": ".dockerconfigjson", "path": "config.json"}]
            secret = {"secretName": REGISTRY_SECRET, "optional": True, "items": items}
            self.volumes.append({"name": "registry", "secret": secret})

    def _add(self, name: str, path: str, source: Mapping[str, Any]) -> None:
        self.volumes.append({"name": name, **source})
        self.mounts.append({"name": name, "mountPath": path})


def _weights_container(spec: DeploymentSpec, config: Config, volumes: _Volumes) -> dict[str, Any]:
    """Return what fetches a version's weights into the cache, where the server then finds them."""
    requests = {key: value for key, value in _resources(config).items() if key == "requests"}
    for resource in [name for name in requests.get("requests", {}) if name.endswith("/gpu")]:
        del requests["requests"][resource]
    mounts = [mount for mount in volumes.mounts if mount["name"] == "cache"]
    return {
        "name": "weights",
        "image": spec.artifact,
        "imagePullPolicy": "IfNotPresent",
        "command": [f"{VENV_DIR}/bin/python", "-c", _FETCH, spec.artifact],
        "env": [{"name": "DOCKER_CONFIG", "value": _REGISTRY_DIR}],
        "resources": requests,
        "securityContext": _UNPRIVILEGED,
        "volumeMounts": [*mounts, {"name": "registry", "mountPath": _REGISTRY_DIR, "readOnly": True}],
    }


_UNPRIVILEGED: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _probe(path: str, *, period_s: int = _PERIOD_S) -> dict[str, Any]:
    # Over HTTP, which every version of Kubernetes can, and which asks for no API key.
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": period_s, "timeoutSeconds": 5}


def _resources(config: Config) -> dict[str, Any]:
    compute = config.compute
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    if compute.cpu_limit_cores is not None:
        limits["cpu"] = cpu_text(compute.cpu_limit_cores)
    if compute.cpu_memory_bytes is not None:
        limits["memory"] = memory_text(compute.cpu_memory_bytes)
    cpu = compute.cpu_request_cores or compute.cpu_limit_cores
    memory = compute.cpu_memory_request_bytes or compute.cpu_memory_bytes
    if cpu is not None:
        requests["cpu"] = cpu_text(cpu)
    if memory is not None:
        requests["memory"] = memory_text(memory)
    if (resource := gpu_resource(compute)) is not None:
        limits[resource] = requests[resource] = str(compute.num_accelerators)
    return {key: value for key, value in (("limits", limits), ("requests", requests)) if value}


def cpu_text(cores: float) -> str:
    """Write cores as Kubernetes does: "4", "500m"."""
    return str(round(cores)) if cores == round(cores) else f"{round(cores * 1000)}m"


def memory_text(num_bytes: int) -> str:
    """Write bytes as Kubernetes does, in the largest unit that is exact: "16Gi"."""
    for unit, size in (("Gi", 1024**3), ("Mi", 1024**2), ("Ki", 1024)):
        if num_bytes % size == 0:
            return f"{num_bytes // size}{unit}"
    return str(num_bytes)
