"""The container of one replica: everything that `docker run` would be told, from the state alone. Pure."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from modelkit.computes import Compute
from modelkit.computes.docker_api import (
    GRPC_PORT,
    HTTP_PORT,
    REPLICA,
    REVISION,
    VERSION,
    bind_address,
    port_range,
)
from modelkit.computes.identity import DEPLOYMENT_VARIABLE
from modelkit.config import Config
from modelkit.deploy.docker.state import State
from modelkit.deploy.record import DeploymentSpec
from modelkit.image.container import CACHE_VOLUME
from modelkit.image.plan import CACHE_DIR

__all__ = [
    "GPUS",
    "container_options",
    "drain_timeout_s",
    "missing_options",
]

GPUS = "modelkit.deployment.gpus"

_SHM_SIZE = "16g"
_STOP_SLACK_S = 5
_LOG = {"type": "json-file", "config": {"max-size": "20m", "max-file": "5"}}
_UNFIT = re.compile(r"[^a-zA-Z0-9_.-]+")


def drain_timeout_s(config: Config) -> int:
    """Return after how many seconds a container that was told to end is killed."""
    return round(config.server.drain_timeout_s) + _STOP_SLACK_S


def container_options(
    compute: Compute,
    state: State,
    number: int,
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    gpus: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the options of the docker SDK's `containers.create` for one replica, `gpus` as their ids."""
    spec = state.record.spec
    config = spec.parsed_config()
    address, ports = bind_address(compute), port_range(compute)
    options: dict[str, Any] = {
        "image": spec.artifact,
        "name": f"{spec.name}-{_UNFIT.sub('-', spec.version)}-{number}",
        "command": list(command),
        "environment": {DEPLOYMENT_VARIABLE: spec.name, **environment},
        "labels": {
            **state.labels(),
            VERSION: spec.version,
            REPLICA: str(number),
            REVISION: state.revision,
            GPUS: ",".join(gpus),
        },
        "ports": {f"{port}/tcp": (address, ports) for port in (GRPC_PORT, HTTP_PORT)},
        "restart_policy": {"Name": "unless-stopped"},
        "security_opt": ["no-new-privileges"],
        "stop_signal": "SIGTERM",
        "volumes": {CACHE_VOLUME: {"bind": CACHE_DIR, "mode": "rw"}},
        "log_config": _LOG,
    }
    if config.compute.cpu_limit_cores is not None:
        options["nano_cpus"] = int(config.compute.cpu_limit_cores * 1e9)
    if config.compute.cpu_memory_bytes is not None:
        options["mem_limit"] = config.compute.cpu_memory_bytes
    if config.compute.num_accelerators:
        # The processes of a tensor-parallel engine talk through it; Docker's default is 64 MB.
        options["shm_size"] = _SHM_SIZE
        options["gpus"] = list(gpus)
    return options


def missing_options(spec: DeploymentSpec, entrypoint: Sequence[str]) -> list[str]:
    """Return what the image's entrypoint has to be told beside what it says already."""
    said = list(pairwise(entrypoint))
    wanted = [option for option in spec.serve_options() if option not in said]
    if spec.api_key_env:
        wanted.append(("--api-key-env", spec.api_key_env))
    return [part for option in wanted for part in option]
