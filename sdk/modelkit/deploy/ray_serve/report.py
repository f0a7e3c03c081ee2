"""What a check of a Ray cluster finds: reachable, authorised, versions, GPUs, what is free."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelkit import __version__
from modelkit.computes.ray_api import RayApi
from modelkit.deploy.base import Gpus, Report
from modelkit.deploy.ray_serve.setup import setup_problem
from modelkit.errors import DeployError, UsageError

__all__ = ["look"]

_TYPE_PREFIX: Final = "accelerator_type:"
_MIN_VERSION: Final = (2, 60)


def look(api: RayApi) -> Report:
    """Look at a cluster. Never raises for what it finds."""
    try:
        return _look(api)
    except (DeployError, UsageError) as error:
        return Report(problems=((error.message, error.cure),))


def _look(api: RayApi) -> Report:
    version = api.version()
    instance, nodes, usage = api.instance(), api.nodes(), api.usage()
    cpu, memory = _free(usage, nodes, "CPU"), _free(usage, nodes, "memory")
    problems = list(_problems(api, version, instance))
    return Report(
        versions=(("Ray", version), ("modelkit here", __version__)),
        num_nodes=len(nodes),
        cpu_total=cpu[1],
        cpu_free=cpu[0],
        memory_total_bytes=int(memory[1]),
        memory_free_bytes=int(memory[0]),
        gpus=tuple(_gpus(usage, nodes)),
        problems=tuple(problems),
    )


def _problems(api: RayApi, version: str, instance: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < _MIN_VERSION:
        yield (f"the cluster runs Ray {version}", "update it to Ray 2.60 or later")
    if problem := setup_problem(api.compute, instance):
        yield problem.message, problem.cure
    elif not instance.get("grpc_options"):
        yield "it has not been set up for modelkit", f"`modelkit compute setup {api.compute.name}`"


def _free(
    usage: Mapping[str, tuple[float, float]], nodes: Iterable[Mapping[str, Any]], name: str
) -> tuple[float, float]:
    """Return how much of a resource is free, and how much there is."""
    total = sum(float((node.get("resources_total") or {}).get(name, 0)) for node in nodes)
    used = usage.get(name, (0.0, total))[0]
    return max(0.0, total - used), total


def _gpus(usage: Mapping[str, tuple[float, float]], nodes: list[dict[str, Any]]) -> Iterable[Gpus]:
    """Yield the GPUs by type. Ray counts what is free over all types: where there are several, all of a type's are shown."""
    kinds: dict[str, int] = {}
    for node in nodes:
        resources = node.get("resources_total") or {}
        num = int(resources.get("GPU", 0))
        kind = next(
            (key.removeprefix(_TYPE_PREFIX) for key in resources if key.startswith(_TYPE_PREFIX)), "GPU"
        )
        if num:
            kinds[kind] = kinds.get(kind, 0) + num
    num_free = int(_free(usage, nodes, "GPU")[0])
    for kind, num in sorted(kinds.items()):
        yield Gpus(kind, num, min(num, num_free))
