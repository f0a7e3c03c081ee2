"""The GPUs of a Docker host: which there are, which are taken, and who gets which.

Docker does not list GPUs; nvidia-smi does, in a container that sees all of them and is gone a moment later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from modelkit.computes.docker_api import DockerHost
from modelkit.config.accelerators import accelerator_by_name
from modelkit.config.models import ComputeConfig
from modelkit.errors import DeployError, UsageError
from modelkit.progress import size_text

__all__ = ["Gpu", "assign", "list_gpus", "parse_gpus", "suitable"]

_QUERY = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
_ASK_TIMEOUT_S = 60.0
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `kind` is our name of it, such as NVIDIA-H200."""

    id: str
    kind: str
    memory_bytes: int


def list_gpus(host: DockerHost, image: str) -> list[Gpu]:
    """Return the GPUs of a host, asked from inside a container of an image. Raises DeployError where it can give none."""
    import docker.errors
    from docker.types import DeviceRequest

    every = DeviceRequest(count=-1, capabilities=[["gpu", "utility"]])
    with host.asking("make a container that looks for GPUs"):
        asking = host.client.containers.create(image, entrypoint=_QUERY, device_requests=[every])
    try:
        asking.start()
        asking.wait(timeout=_ASK_TIMEOUT_S)
        output: bytes = asking.logs(stdout=True, stderr=False)
    except docker.errors.APIError as error:
        raise DeployError(
            f"the Docker daemon of {host.compute.name} cannot give a GPU to a container: {error.explanation}",
            cure="with an NVIDIA GPU, install nvidia-container-toolkit there, then: sudo nvidia-ctk runtime configure "
            "--runtime=docker && sudo systemctl restart docker; without one: --set compute.num_accelerators=0",
        ) from error
    finally:
        with host.asking("remove a container that has looked for GPUs"):
            asking.remove(force=True, v=True)
    return parse_gpus(output.decode(errors="replace"))


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
