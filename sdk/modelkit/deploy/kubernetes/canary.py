"""Two versions side by side: a second Deployment, and a Gateway's route that shares the calls out by weight.

A service alone can only share by numbers of replicas. The route exists whenever the compute's endpoint is the host of a
Gateway: so that a canary changes a weight, and takes no call's way away.
"""

from collections.abc import Mapping
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.kubernetes_api import GRPC_PORT, HTTP_PORT
from modelkit.deploy.kubernetes.kinds import HTTP_ROUTE
from modelkit.deploy.kubernetes.manifests import (
    CANARY,
    PERCENT,
    deployment_object,
    metadata,
    service_objects,
)
from modelkit.deploy.record import DeploymentSpec, Record

__all__ = ["GatewayRef", "canary_objects", "route_object"]

_ALL_PERCENT: Final = 100
# The path of every gRPC call is /SERVICE/METHOD; all others are HTTP's.
_SERVICES: Final = (
    "modelkit.inference.v1.InferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
)

GatewayRef = Mapping[str, str]


def canary_objects(spec: DeploymentSpec, compute: Compute, percent: int) -> list[dict[str, Any]]:
    """Return the Deployment and the service of a canary."""
    config = spec.parsed_config()
    deployment = deployment_object(
        Record(spec), config, compute, max(1, config.deployment.min_replicas), track=CANARY
    )
    deployment["metadata"]["annotations"][PERCENT] = str(percent)
    return [*service_objects(spec, compute, track=CANARY), deployment]


def route_object(
    spec: DeploymentSpec, compute: Compute, gateway: GatewayRef, host: str, *, percent: int = 0
) -> dict[str, Any]:
    """Return the route of a deployment: `percent` of the calls to its canary, all others to itself.

    One HTTPRoute for gRPC and HTTP both, told apart by their paths: a GRPCRoute and an HTTPRoute may not share a host.
    """

    def backends(port: int) -> list[dict[str, Any]]:
        shares = {spec.name: _ALL_PERCENT - percent}
        if percent:  # without a share there may be no second service, or none that is ready
            shares[f"{spec.name}-{CANARY}"] = percent
        return [{"name": name, "port": port, "weight": weight} for name, weight in shares.items()]

    paths = [{"path": {"type": "PathPrefix", "value": f"/{service}"}} for service in _SERVICES]
    content = {
        "parentRefs": [dict(gateway)],
        "hostnames": [host],
        "rules": [
            {"matches": paths, "backendRefs": backends(GRPC_PORT)},
            {"backendRefs": backends(HTTP_PORT)},
        ],
    }
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.name,
        "metadata": metadata(spec.name, spec, compute),
        "spec": content,
    }
