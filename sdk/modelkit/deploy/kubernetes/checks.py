"""Whether a cluster can be used, and what it has: asked once, by `modelkit compute check`."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import KubernetesApi
from modelkit.config.quantities import parse_cpu, parse_memory
from modelkit.deploy.base import Gpus, Report
from modelkit.deploy.kubernetes.accelerators import PRODUCT_LABEL
from modelkit.deploy.kubernetes.flavors import FLAVORS
from modelkit.errors import ModelkitError

__all__ = ["check_cluster"]

# Server-side apply has been stable since.
_OLDEST: Final = (1, 22)
_GPU_RESOURCES: Final = ("nvidia.com/gpu", "amd.com/gpu")
_RIGHTS: Final = tuple(
    (verb, group, resource)
    for group, resource, verbs in (
        ("apps", "deployments", ("get", "list", "create", "patch", "delete")),
        ("", "services", ("get", "list", "create", "patch", "delete")),
        ("", "pods", ("get", "list")),
        ("", "pods/log", ("get",)),
        ("", "events", ("list",)),
        ("", "endpoints", ("get",)),
        ("policy", "poddisruptionbudgets", ("list", "create", "patch", "delete")),
        ("autoscaling", "horizontalpodautoscalers", ("list", "create", "patch", "delete")),
    )
    for verb in verbs
)


def check_cluster(api: KubernetesApi) -> Report:
    """Return what was found. Nothing that is found raises."""
    try:
        version = api.version()
        served = api.served()
    except ModelkitError as error:
        return Report(problems=((error.message, error.cure),))
    problems = list(_missing_rights(api))
    notes = [*_flavor_notes(api.compute, served, problems), *_version_notes(version)]
    if not any(group.startswith("custom.metrics.k8s.io/") for group in served):
        notes.append("no metrics of pods (custom.metrics.k8s.io): autoscaling goes by CPU")
    capacity, problem = _capacity(api)
    if problem:
        notes.append(problem)
    return Report(
        versions=(("Kubernetes", version),), problems=tuple(problems), notes=tuple(notes), **capacity
    )


def _missing_rights(api: KubernetesApi) -> Iterable[tuple[str, str]]:
    """Yield what may not be done in the namespace, one entry per resource."""
    missing: dict[str, list[str]] = {}
    for verb, group, resource in _RIGHTS:
        main, _, part = resource.partition("/")
        attributes = {"namespace": api.namespace, "verb": verb, "group": group, "resource": main}
        if part:
            attributes["subresource"] = part
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        except ModelkitError as error:
            yield error.message, error.cure
            return
        if not answer.get("status", {}).get("allowed"):
            missing.setdefault(resource, []).append(verb)
    for resource, verbs in missing.items():
        yield (
            f"you may not {', '.join(verbs)} {resource} in namespace {api.namespace}",
            "ask for a Role with these verbs; the built-in ClusterRole 'edit' has them all",
        )


def _flavor_notes(
    compute: Compute, served: Collection[str], problems: list[tuple[str, str]]
) -> Iterable[str]:
    found = [name for name, (kind, _) in FLAVORS.items() if kind.api_version in served]
    if compute.flavor and compute.flavor not in FLAVORS:
        problems.append((f"'{compute.flavor}' is no flavor", f"one of: {', '.join(FLAVORS)}"))
    elif compute.flavor and compute.flavor not in found:
        kind, _ = FLAVORS[compute.flavor]
        problems.append(
            (
                f"the cluster does not know {kind.name} ({kind.api_version}), which --flavor {compute.flavor} needs",
                "install its controller, or name another flavor",
            )
        )
    elif not compute.flavor:
        yield (
            f"for serverless deployments: --flavor {' or '.join(found)}"
            if found
            else f"no serverless deployments: none of {', '.join(FLAVORS)} is installed"
        )


def _version_notes(version: str) -> Iterable[str]:
    parts = version.lstrip("v").split(".")[:2]
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    if numbers > (0, 0) and numbers < _OLDEST:
        yield f"{version} is old: server-side apply is stable since 1.22"


def _capacity(api: KubernetesApi) -> tuple[dict[str, Any], str]:
    """Return nodes, cores, memory and GPUs, all and free; and why not, where the cluster does not tell."""
    try:
        nodes = [node for node in api.items("/api/v1/nodes") if not node["spec"].get("unschedulable")]
        pods = api.items("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed")
    except ModelkitError:
        return {}, "nodes and their free capacity are not shown: the cluster does not tell you of them"
    names = {node["metadata"]["name"]: node for node in nodes}
    total, used = Counter[str](), Counter[str]()
    gpus_total, gpus_used = Counter[str](), Counter[str]()
    for node in nodes:
        amounts = _amounts(node["status"].get("allocatable") or {})
        total.update(amounts)
        gpus_total[_product(node)] += _num_gpus(amounts)
    for pod in pods:
        if (where := names.get(pod["spec"].get("nodeName", ""))) is not None:
            amounts = _requests(pod)
            used.update(amounts)
            gpus_used[_product(where)] += _num_gpus(amounts)
    gpus = tuple(
        Gpus(kind, number, max(0, number - gpus_used[kind]))
        for kind, number in sorted(gpus_total.items())
        if number
    )
    found = {
        "num_nodes": len(nodes),
        "cpu_total": total["cpu"],
        "cpu_free": max(0.0, round(total["cpu"] - used["cpu"], 3)),
        "memory_total_bytes": int(total["memory"]),
        "memory_free_bytes": max(0, int(total["memory"] - used["memory"])),
        "gpus": gpus,
    }
    return found, ""


def _requests(pod: Mapping[str, Any]) -> Counter[str]:
    found = Counter[str]()
    for container in pod["spec"]["containers"]:
        found.update(_amounts((container.get("resources") or {}).get("requests") or {}))
    return found


def _amounts(resources: Mapping[str, str]) -> Counter[str]:
    found = Counter[str]()
    for name, text in resources.items():
        number = parse_cpu(text) if name == "cpu" else parse_memory(text)
        if number is not None:
            found[name] += number  # type: ignore[assignment]
    return found


def _num_gpus(amounts: Mapping[str, float]) -> int:
    return int(sum(amounts.get(name, 0) for name in _GPU_RESOURCES))


def _product(node: Mapping[str, Any]) -> str:
    return str(node["metadata"].get("labels", {}).get(PRODUCT_LABEL) or "unknown")
