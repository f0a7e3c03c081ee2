"""The gRPC predict server: `app` is the process, `servicer` the gRPC adapter, `predictor` the transport-free core."""

from modelkit.server.app import LIVENESS, SERVICE_NAME, Server, ServerOptions, TlsFiles
from modelkit.server.predictor import Predictor, State

__all__ = ["LIVENESS", "SERVICE_NAME", "Predictor", "Server", "ServerOptions", "State", "TlsFiles"]
