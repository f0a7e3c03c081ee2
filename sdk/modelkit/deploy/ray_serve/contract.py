"""What Ray's proxies and replicas have to know of the contract: registered once per cluster, the same for every model.

Ray imports `add_to_server` by name wherever it takes gRPC calls, and answers none of a contract that it was not told of
when Serve first started. So the name stays, whatever becomes of the rest.
"""

from typing import Any, Final

__all__ = ["SERVICER_FUNCTION", "add_to_server"]

SERVICER_FUNCTION: Final = "modelkit.deploy.ray_serve.contract.add_to_server"


def add_to_server(servicer: Any, server: Any) -> None:
    """Register modelkit.inference.v1 and grpc.health.v1; Ray puts handlers of its own in the place of the servicer's."""
    from grpc_health.v1 import health_pb2_grpc

    from modelkit.server.servicer import add_to_server as add_inference

    add_inference(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
