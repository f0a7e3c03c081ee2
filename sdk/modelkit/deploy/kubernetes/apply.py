"""Sends objects to a cluster, and takes away those that are no longer wanted."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modelkit.computes.kubernetes_api import Kind, KubernetesApi, KubernetesError, label_selector
from modelkit.deploy.kubernetes.kinds import adapted, kind_of, owned_kinds
from modelkit.errors import DeployError

__all__ = ["apply_objects", "delete_all", "owned_objects", "prune"]


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
    api: KubernetesApi, name: str, wanted: Sequence[Mapping[str, Any]], served: Collection[str]
) -> list[str]:
    """Delete what a deployment has and no longer wants, and return what that was."""
    kept = {(item["kind"], item["metadata"]["name"]) for item in wanted}
    gone = []
    for kind, item in owned_objects(api, name, served):
        if (kind.name, item["metadata"]["name"]) not in kept:
            api.delete(kind.path(api.namespace, item["metadata"]["name"]))
            gone.append(f"{kind.name} {item['metadata']['name']}")
    return gone


def delete_all(api: KubernetesApi, name: str, served: Collection[str]) -> None:
    """Delete all objects of a deployment: first what scales and runs it, its services last."""
    for kind, item in reversed(owned_objects(api, name, served)):
        api.delete(kind.path(api.namespace, item["metadata"]["name"]))
