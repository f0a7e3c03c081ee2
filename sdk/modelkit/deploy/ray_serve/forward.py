"""HTTP through Ray: each request goes on to the replica's own HTTP server on loopback, and its answer back as it comes.

So OpenAI's API, the methods, probes and the playground are the same ones as those of `modelkit serve`.
"""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

__all__ = ["Forwarder"]

# They belong to one connection, not to the message (RFC 9110, 7.6.1).
_HOP_BY_HOP: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
        "upgrade", "content-length",
    }
)  # fmt: skip


class Forwarder:
    """Passes requests on to one HTTP server. `close` ends its connections."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __call__(self, request: "Request") -> "StreamingResponse":
        """Return the server's answer; cancelling the iteration of its body ends the request there too."""
        from starlette.responses import StreamingResponse

        answer = await self._session.request(
            request.method,
            f"{self._base_url}{_path(request.scope)}",
            headers=[(key, value) for key, value in request.headers.items() if key not in _HOP_BY_HOP],
            data=await request.body() or None,
            allow_redirects=False,
        )

        async def body() -> AsyncGenerator[bytes, None]:
            try:
                async for piece in answer.content.iter_any():
                    yield piece
            finally:
                answer.close()

        response = StreamingResponse(body(), status_code=answer.status)
        kept = [(key, value) for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP]
        response.raw_headers = [
            (key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in kept
        ]
        return response

    async def close(self) -> None:
        """End the connections."""
        await self._session.close()


def _path(scope: Any) -> str:
    """Return path and query below the application's prefix, as they were sent."""
    path: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    path = path.removeprefix(scope.get("root_path", "")) or "/"
    query: bytes = scope.get("query_string", b"")
    return f"{path}?{query.decode('latin-1')}" if query else path
