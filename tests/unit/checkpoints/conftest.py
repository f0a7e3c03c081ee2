"""A Hugging Face Hub on loopback: as much of its HTTP API as fetching a snapshot takes."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, `org/tiny`, at one commit; `org/gated` needs the token "secret". Records every request."""

    def __init__(self) -> None:
        self.files = {
            "config.json": b"{}",
            "model.safetensors": b"weights" * 1000,
            "pytorch_model.bin": b"the same weights, in an older format",
            "original/consolidated.pth": b"and once more",
        }
        self.requests: list[str] = []
        self.broken: set[str] = set()
        self.url = ""

    commit = COMMIT

    def answer(self, method: str, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(f"{method} {path}")
        if "/gated" in path and token != "Bearer secret":
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, b"{}"
        if not ("/tiny" in path or "/gated" in path):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return self._describe(path) if "/api/models/" in path else self._send_file(path)

    def _describe(self, path: str) -> tuple[int, dict[str, str], bytes]:
        revision = path.rpartition("/revision/")[2].partition("?")[0] if "/revision/" in path else "main"
        if revision not in {"main", COMMIT}:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        siblings = [{"rfilename": name} for name in self.files]
        body = {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def _send_file(self, path: str) -> tuple[int, dict[str, str], bytes]:
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name in self.broken:
            return 400, {}, b""  # not 500, which the library asks for again and again
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = self.files[name]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    @contextmanager
    def serving(self) -> Iterator["Hub"]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                status, headers, body = hub.answer(
                    self.command, self.path, self.headers.get("Authorization", "")
                )
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = _respond  # noqa: N815 - the library looks these names up

            def log_message(self, *_args) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub().serving() as hub:
        yield hub
