"""Sends objects to a cluster, and takes away those that are no longer wanted."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from modelkit.computes.kubernetes_api import Kind, KubernetesApi, KubernetesError, label_selector
from modelkit.deploy.kubernetes.kinds import adapted, kind_of, owned_kinds
from modelkit.errors import DeployError

__all__ = ["apply_objects", "owned_objects", "prune"]


def apply_objects(api: KubernetesApi, objects: Iterable[Mapping[str, Any]], served: Collection[str]) -> None:
    """Apply objects in their order. Raises KubernetesError with the object that the cluster does not take."""
    for item in adapted(objects, served):
        name = item["metadata"]["name"]
        try:
            api.apply(kind_of(item).path(api.namespace, name), item)
        except KubernetesError as error:
            raise DeployError(f"{item['kind']} {name}: {error.message}", cure=error.cure) from error


def owned_objects(
    api: KubernetesApi, name: str | None, served: Collection[str]
) -> list[tuple[Kind, dict[str, Any]]]:
    """Return all objects of a deployment, or of all; not those that a controller has made of them."""
    selector = label_selector(name)
    return [
        (kind, {"apiVersion": kind.api_version, "kind": kind.name, **item})  # a list leaves that out
        for kind in owned_kinds(served)
        for item in api.items(kind.path(api.namespace), labelSelector=selector)
        if not item["metadata"].get("ownerReferences")
    ]


def prune(
    api: KubernetesApi,
    name: str,
    wanted: Sequence[Mapping[str, Any]],
    served: Collection[str],
    *,
    keeps: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> list[str]:
    """Delete what a deployment has, no longer wants, and is not to be kept all the same; return what that was."""
    kept = {(item["kind"], item["metadata"]["name"]) for item in wanted}
    gone = []
    for kind, item in reversed(owned_objects(api, name, served)):
        about = (kind.name, item["metadata"]["name"])
        if about not in kept and not keeps(item):
            api.delete(kind.path(api.namespace, about[1]))
            gone.append(" ".join(about))
    return gone
