"""The contract's methods, registered at a gRPC server: our own, and those of Ray, whose proxies import this by name.

Ray Serve answers no contract but those it was told of when it first started on a cluster. So the name of
`add_to_server` stays whatever becomes of the rest, and this file imports next to nothing.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["SERVICER_FUNCTION", "add_inference_to_server", "add_to_server"]

SERVICER_FUNCTION: Final = "modelkit.inference.contract.add_to_server"


def add_to_server(servicer: Any, server: Any) -> None:
    """Register modelkit.inference.v1 and grpc.health.v1; Ray puts handlers of its own in the place of the servicer's."""
    from grpc_health.v1 import health_pb2_grpc

    add_inference_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def add_inference_to_server(servicer: Any, server: Any) -> None:
    """Register a servicer, as the generated function does; but a malformed message reaches it as None.

    Left to gRPC, a message that cannot be read ends in UNKNOWN and the text of a Python exception.
    """
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            servicer.Describe, _reader(pb.DescribeRequest), pb.DescribeResponse.SerializeToString
        ),
        "Predict": grpc.unary_unary_rpc_method_handler(
            servicer.Predict, _reader(pb.PredictRequest), pb.PredictResponse.SerializeToString
        ),
        "Generate": grpc.unary_stream_rpc_method_handler(
            servicer.Generate, _reader(pb.GenerateRequest), pb.GenerateResponse.SerializeToString
        ),
        "Stream": grpc.stream_stream_rpc_method_handler(
            servicer.Stream, _reader(pb.StreamRequest), pb.StreamResponse.SerializeToString
        ),
    }
    service_name = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))


def _reader(message: Any) -> Callable[[bytes], Any]:
    parse = message.FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return None

    return read
