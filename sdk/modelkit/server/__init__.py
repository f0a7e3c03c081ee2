"""The gRPC predict server: `app` is the process, `servicer` the gRPC adapter, `predictor` the transport-free core."""

import os

# Engines are started as child processes while calls run. gRPC would stop its threads around each fork, for children that
# go on to use it; ours become other programs at once. It reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from modelkit.server.app import LIVENESS, SERVICE_NAME, Server, ServerOptions, TlsFiles
from modelkit.server.predictor import Predictor, State

__all__ = ["LIVENESS", "SERVICE_NAME", "Predictor", "Server", "ServerOptions", "State", "TlsFiles"]
