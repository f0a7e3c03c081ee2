"""HTTP beside gRPC: OpenAI's API for language models, JSON and SSE for every method, probes, metrics, a playground.

`app` puts it together and owns the port; `openai`, `methods` and `probes` are the routes; `calls` runs a call through
the predictor; `sse`, `errors`, `json_codec` and `openapi` are the formats.
"""

from modelkit.server.http.app import HttpServer, Identity
from modelkit.server.http.openai import has_openai

__all__ = ["HttpServer", "Identity", "has_openai"]
