"""A proxy before a real registry, for what a registry does only on bad days: limits, overload, cuts, slowness.

It also counts what is sent through it.
"""

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from modelkit.registry import Reference

PIECE_BYTES = 64 * 1024


@dataclass
class Rules:
    """What the proxy does to requests. `refuse` may return (status, headers, body) in place of the registry."""

    max_body_bytes: int | None = None
    bytes_per_s: float | None = None
    cut_reads_after_bytes: int | None = None
    refuse: Callable[[str, str], tuple[int, dict[str, str], bytes] | None] = lambda method, path: None
    hide_headers: frozenset[str] = frozenset()


@dataclass
class RegistryProxy:
    """Runs in threads of this process; `requests` lists (method, path, body bytes) as they come."""

    upstream_port: int
    rules: Rules = field(default_factory=Rules)
    requests: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments) -> None: ...

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server looks for these names

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address) -> None: ...  # a client that was killed

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.host = f"localhost:{self.port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reference(self, repository: str) -> Reference:
        return Reference(self.host, repository)

    @property
    def blob_bytes(self) -> int:
        """How many bytes of blobs were sent through."""
        return sum(num for _, path, num in self.requests if "/blobs/" in path)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        refusal = self.rules.refuse(request.command, request.path)
        if self.rules.max_body_bytes is not None and length > self.rules.max_body_bytes:
            refusal = 413, {}, b"<html>413 Request Entity Too Large</html>"
        if refusal is not None:
            self.requests.append((request.command, request.path, 0))
            request.close_connection = True
            _answer(request, *refusal)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=30)
        try:
            self._pass_on(request, upstream, length)
        except OSError:
            request.close_connection = True
        finally:
            upstream.close()

    def _pass_on(self, request, upstream, length: int) -> None:
        headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
        upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        self._send_body(request, upstream, length)
        response = upstream.getresponse()
        request.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in {"connection", "date", "server"} | self.rules.hide_headers:
                request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            self._relay_body(request, response)

    def _send_body(self, request, upstream, length: int) -> None:
        num = 0
        entry = len(self.requests)
        self.requests.append((request.command, request.path, 0))
        while num < length:
            piece = request.rfile.read1(min(PIECE_BYTES, length - num))
            if not piece:
                raise ConnectionResetError
            upstream.send(piece)
            num += len(piece)
            self.requests[entry] = (request.command, request.path, num)
            self._slow_down(piece)

    def _relay_body(self, request, response) -> None:
        left = self.rules.cut_reads_after_bytes if "/blobs/" in request.path else None
        while piece := response.read(PIECE_BYTES):
            if left is not None and left <= len(piece):
                request.wfile.write(piece[:left])
                raise ConnectionResetError
            request.wfile.write(piece)
            left = None if left is None else left - len(piece)
            self._slow_down(piece)

    def _slow_down(self, piece: bytes) -> None:
        if self.rules.bytes_per_s:
            time.sleep(len(piece) / self.rules.bytes_per_s)


def _answer(request, status: int, headers: dict[str, str], body: bytes) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
