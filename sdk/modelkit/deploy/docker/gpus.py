"""The GPUs of a Docker host: which there are, which are taken, and who gets which.

Docker does not list GPUs; nvidia-smi does, in a container that sees all of them and is gone a moment later.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from modelkit.computes.docker_api import DockerHost
from modelkit.config.accelerators import accelerator_by_name
from modelkit.config.models import ComputeConfig
from modelkit.errors import DeployError, UsageError
from modelkit.progress import size_text

__all__ = ["LOOKING", "Gpu", "assign", "device_request", "list_gpus", "parse_gpus", "suitable", "sweep"]

LOOKING = "modelkit.looking-for-gpus"

_QUERY = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
_ASK_TIMEOUT_S = 60.0
_LEFT_BEHIND_S = 600.0  # nobody waits so long; by two clocks, which need not agree to the minute
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `kind` is our name of it, such as NVIDIA-H200."""

    id: str
    kind: str
    memory_bytes: int


def list_gpus(host: DockerHost, image: str) -> list[Gpu]:
    """Return the GPUs of a host, asked from inside a container of an image. Raises DeployError where it can give none."""
    from docker.types import DeviceRequest

    sweep(host)
    every = DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])
    with host.asking("make a container that looks for GPUs"):
        asking = host.client.containers.create(
            image, entrypoint=_QUERY, device_requests=[every], labels={LOOKING: "true"}
        )
    try:
        output = _answer(host, asking)
    finally:
        with host.asking("remove a container that has looked for GPUs"):
            asking.remove(force=True, v=True)
    return parse_gpus(output.decode(errors="replace"))


def _answer(host: DockerHost, asking: Any, *, timeout_s: float = _ASK_TIMEOUT_S) -> bytes:
    """Run a container that was made to the end, and return what it says."""
    import docker.errors
    import requests.exceptions

    try:
        with host.asking("look for GPUs"):
            asking.start()
            asking.wait(timeout=timeout_s)
            output: bytes = asking.logs(stdout=True, stderr=False)
    except DeployError as error:
        cause = error.__cause__
        if isinstance(cause, docker.errors.APIError):
            raise DeployError(
                f"the Docker daemon of {host.compute.name} cannot give a GPU to a container: {cause.explanation}",
                cure="with an NVIDIA GPU, install nvidia-container-toolkit there, then: sudo nvidia-ctk runtime configure "
                "--runtime=docker && sudo systemctl restart docker; without one: --set compute.num_accelerators=0",
            ) from cause
        if isinstance(cause, requests.exceptions.RequestException) and "timed out" in str(cause):
            raise DeployError(
                f"nvidia-smi on {host.compute.name} has not answered within {timeout_s:g} s",
                cure="see what `nvidia-smi` says on that machine: a GPU may have failed",
            ) from cause
        raise
    return output


def sweep(host: DockerHost, *, older_than_s: float = _LEFT_BEHIND_S) -> None:
    """Remove the containers that looked for GPUs for somebody who was killed meanwhile."""
    import docker.errors

    for each in host.containers(LOOKING):
        if time.time() - each["Created"] >= older_than_s:
            with host.asking("remove a container that has looked for GPUs"), suppress(docker.errors.APIError):
                host.client.api.remove_container(each["Id"], force=True, v=True)


def parse_gpus(text: str) -> list[Gpu]:
    """Read what nvidia-smi prints: a line for each GPU with its UUID, name and memory in MiB."""
    gpus = []
    for line in text.splitlines():
        uuid, _, rest = (part.strip() for part in line.partition(","))
        name, _, mib = (part.strip() for part in rest.rpartition(","))
        if uuid.startswith(("GPU-", "MIG-")) and mib.isdigit():
            known = accelerator_by_name(name)
            kind = known.name if known is not None else name.replace(" ", "-")
            gpus.append(Gpu(uuid, kind, int(mib) * _MIB))
    return gpus


def suitable(gpus: Sequence[Gpu], compute: ComputeConfig) -> list[Gpu]:
    """Return the GPUs that config.yaml would have, the kind that it names first before the others."""
    kinds = compute.accelerator_type or ("*",)
    least = compute.accelerator_memory_bytes or 0
    ranked = [
        (rank, gpu)
        for gpu in gpus
        if gpu.memory_bytes >= least
        and (rank := next((i for i, kind in enumerate(kinds) if _is_kind(gpu.kind, kind)), None)) is not None
    ]
    return [gpu for _, gpu in sorted(ranked, key=lambda pair: pair[0])]


def assign(
    compute: ComputeConfig,
    num_replicas: int,
    gpus: Sequence[Gpu],
    taken: Sequence[str],
    inherited: Sequence[tuple[str, ...]],
    *,
    may_wait: bool,
) -> list[tuple[str, ...]]:
    """Return the GPUs of each new replica: free ones, then those of the replicas that it replaces.

    `taken` are held by other replicas, `inherited` by those that go, in the order in which they do. Unless `may_wait`, the
    first new replica has to have free ones, or nothing could begin. Raises DeployError, UsageError.
    """
    num_each = compute.num_accelerators
    if not num_each or not num_replicas:
        return [()] * num_replicas
    right = suitable(gpus, compute)
    if len(right) < num_each:
        raise UsageError(
            f"a replica needs {_needs(compute)}, and the host has {_has(gpus)}",
            cure="change compute.num_accelerators, accelerator_type or accelerator_memory, or take another compute",
        )
    given_up = [gpu for group in inherited for gpu in group]
    free = [gpu.id for gpu in right if gpu.id not in taken and gpu.id not in given_up]
    known = {gpu.id for gpu in right}
    order = [*free, *(gpu for gpu in given_up if gpu in known)]
    if len(order) < num_each * num_replicas:
        raise DeployError(
            f"{num_replicas} replicas need {num_each * num_replicas} GPUs, and {len(order)} are free for them",
            cure="ask for fewer replicas, or stop another deployment: `modelkit ps` lists them",
        )
    if len(free) < num_each and not may_wait:
        raise DeployError(
            "no GPU is free for a new replica beside the old ones",
            cure="--set deployment.max_surge_percent=0 replaces them one after another; a deployment of one replica "
            "does not answer meanwhile",
        )
    return [tuple(order[i * num_each : (i + 1) * num_each]) for i in range(num_replicas)]


def _is_kind(kind: str, pattern: str) -> bool:
    return fnmatchcase(kind.lower(), pattern.lower())


def _needs(compute: ComputeConfig) -> str:
    kinds = " or ".join(compute.accelerator_type)
    memory = compute.accelerator_memory_bytes
    return (
        f"{compute.num_accelerators} GPU{'s' if compute.num_accelerators > 1 else ''}"
        + (f" of kind {kinds}" if kinds else "")
        + (f" with {size_text(memory)}" if memory else "")
    )


def _has(gpus: Sequence[Gpu]) -> str:
    kinds: dict[str, int] = {}
    for gpu in gpus:
        kinds[gpu.kind] = kinds.get(gpu.kind, 0) + 1
    return ", ".join(f"{num} {kind}" for kind, num in kinds.items()) or "none"


def device_request(gpus: Sequence[str]) -> Any:
    """Return what gives a container these GPUs and no other."""
    from docker.types import DeviceRequest

    return DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])
