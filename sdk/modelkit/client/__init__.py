"""Clients for a served model: light enough for a web handler, no engine, no numpy, no server code."""

from modelkit.client.aio import AsyncClient, AsyncMethods, AsyncRemoteMethod, AsyncStream
from modelkit.client.description import (
    ArgumentDescription,
    Limits,
    MethodDescription,
    ModelDescription,
    TypeDescription,
)
from modelkit.client.messages import Chunk, Response, Usage
from modelkit.client.retry import RetryPolicy
from modelkit.client.settings import TLS
from modelkit.client.sync import Client, Methods, RemoteMethod, Stream

__all__ = [
    "TLS",
    "ArgumentDescription",
    "AsyncClient",
    "AsyncMethods",
    "AsyncRemoteMethod",
    "AsyncStream",
    "Chunk",
    "Client",
    "Limits",
    "MethodDescription",
    "Methods",
    "ModelDescription",
    "RemoteMethod",
    "Response",
    "RetryPolicy",
    "Stream",
    "TypeDescription",
    "Usage",
]
