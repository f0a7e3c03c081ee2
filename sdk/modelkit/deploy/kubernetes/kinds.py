"""The kinds of objects that a deployment is made of, and how they are spelled in clusters of different ages."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from modelkit.computes.kubernetes_api import Kind

__all__ = [
    "AUTOSCALER",
    "DEPLOYMENT",
    "DISRUPTION_BUDGET",
    "GATEWAY",
    "HTTP_ROUTE",
    "HTTP_SCALED_OBJECT",
    "KNATIVE_SERVICE",
    "KUBERAY_SERVICE",
    "POD",
    "SECRET",
    "SERVICE",
    "adapted",
    "as_served",
    "kind_of",
    "owned_kinds",
]

POD: Final = Kind("v1", "Pod", "pods")
SECRET: Final = Kind("v1", "Secret", "secrets")
SERVICE: Final = Kind("v1", "Service", "services")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
AUTOSCALER: Final = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
HTTP_SCALED_OBJECT: Final = Kind("http.keda.sh/v1alpha1", "HTTPScaledObject", "httpscaledobjects")
KNATIVE_SERVICE: Final = Kind("serving.knative.dev/v1", "Service", "services")
KUBERAY_SERVICE: Final = Kind("ray.io/v1", "RayService", "rayservices")
GATEWAY: Final = Kind("gateway.networking.k8s.io/v1", "Gateway", "gateways")
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")

# In the order in which they are applied: a service is there before the first replica is ready.
_ALL: Final = (
    SERVICE,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    AUTOSCALER,
    HTTP_SCALED_OBJECT,
    KNATIVE_SERVICE,
    KUBERAY_SERVICE,
    HTTP_ROUTE,
)

# The version of an API that older clusters serve, with the same fields as far as they are used here.
_OLDER: Final = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}


def kind_of(item: Mapping[str, Any]) -> Kind:
    """Return the kind of an object, in the version that it is written in."""
    for kind in _ALL:
        if kind.name == item["kind"] and item["apiVersion"] in {
            kind.api_version,
            _OLDER.get(kind.api_version),
        }:
            return Kind(item["apiVersion"], kind.name, kind.plural)
    raise ValueError(f"{item['apiVersion']} {item['kind']}")


def as_served(kind: Kind, served: Collection[str]) -> Kind | None:
    """Return a kind in the version that a cluster serves, None where it serves none."""
    if kind.api_version in served:
        return kind
    older = _OLDER.get(kind.api_version)
    return None if older is None or older not in served else Kind(older, kind.name, kind.plural)


def owned_kinds(served: Collection[str]) -> list[Kind]:
    """Return all kinds that a deployment may have objects of in a cluster."""
    return [found for kind in _ALL if (found := as_served(kind, served)) is not None]


def adapted(items: Iterable[Mapping[str, Any]], served: Collection[str]) -> list[dict[str, Any]]:
    """Return objects in the versions that a cluster serves. Those it does not know at all stay as they are."""
    result = []
    for item in items:
        kind = as_served(kind_of(item), served)
        result.append({**item, "apiVersion": kind.api_version if kind is not None else item["apiVersion"]})
    return result
