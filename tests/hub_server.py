"""A Hugging Face Hub on loopback: its API, its redirects to a CDN on another port, and every way in which it can fail.

It is enough of a hub for huggingface_hub itself, with HF_ENDPOINT. Small files come from the hub, large ones (those that
git LFS would keep) from the CDN, by a redirect, with ranges. Any other file server is in it too: `url_of`.

    python tests/hub_server.py --size-mib 1024     serves org/big until stdin ends; prints the hub's URL first
"""

import argparse
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Content:
    """The bytes of a file, in memory or on disk."""

    size_bytes: int
    sha256: str
    git_blob_id: str
    data: bytes | None = None
    path: Path | None = None

    @classmethod
    def of(cls, data: bytes) -> "Content":
        blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return cls(len(data), hashlib.sha256(data).hexdigest(), blob_id, data=data)

    @classmethod
    def at(cls, path: Path) -> "Content":
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path.stat().st_size, sha256, sha256[:40], path=path)

    def read(self, start: int, stop: int) -> bytes:
        if self.data is not None:
            return self.data[start:stop]
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)


@dataclass
class Repo:
    """One repository: its commits, and where its branches are."""

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    is_gated: bool = False

    def commit(self, files: dict[str, bytes | Content], branch: str = "main") -> str:
        contents = {
            path: each if isinstance(each, Content) else Content.of(each) for path, each in files.items()
        }
        seed = json.dumps([len(self.commits), sorted((p, c.sha256) for p, c in contents.items())])
        commit = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[commit] = contents
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Faults:
    """What goes wrong. Numbers count down to zero; paths are those of files."""

    rate_bytes_s: float | None = None  # of the whole CDN
    busy: int = 0  # so many answers are 503
    cuts: int = 0  # so many answers end in the middle
    flips: Counter = field(default_factory=Counter)  # path -> so many answers have a wrong bit
    changed: dict[str, Content] = field(default_factory=dict)  # path -> what it is from now on
    changes_after: dict[str, tuple[int, Content]] = field(
        default_factory=dict
    )  # path -> (answers, what then)
    has_ranges: bool = True
    ranges_left: int | None = (
        None  # so many answers are the ranges that were asked for, then all are whole files
    )
    limited: int = 0  # so many answers of the hub's API are 429
    expires_after: int | None = (
        None  # so many answers of the CDN, the signature in its addresses changes, once
    )


class HubServer:
    """The hub and its CDN. `sent` counts the bytes of file contents by path, `requests` has "hub GET /path"."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.sent: Counter[str] = Counter()
        self.requests: list[str] = []
        self.authorized: list[str] = []
        self.signature = 1
        self.xet = False  # say of large files that xet has them, where there is no such storage
        self._mutex = threading.Lock()
        self._due = 0.0
        self._servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def add_repo(self, name: str, files: dict[str, bytes | Content], **settings) -> Repo:
        repo = self.repos[name] = Repo(**settings)
        repo.commit(files)
        return repo

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0][0].server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1][0].server_port}"

    def url_of(self, repo: str, path: str) -> str:
        """A plain URL of a file, as any file server has it."""
        return f"{self.cdn_url}/plain/{repo}/{path}"

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        for role in ("hub", "cdn"):
            server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "role": role}))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), name=f"test-{role}")
            thread.start()
            self._servers.append((server, thread))
        try:
            yield self
        finally:
            for server, thread in self._servers:
                server.shutdown()
                server.close_connections()
                server.server_close()
                thread.join()

    # What a fault costs is counted here, for handlers of both servers.

    def take(self, name: str) -> bool:
        with self._mutex:
            left = getattr(self.faults, name)
            setattr(self.faults, name, max(left - 1, 0))
            return left > 0

    def may_send_range(self) -> bool:
        with self._mutex:
            if self.faults.ranges_left is None:
                return self.faults.has_ranges
            self.faults.ranges_left -= 1
            return self.faults.ranges_left >= 0

    def is_signed(self, address: str) -> bool:
        with self._mutex:
            if self.faults.expires_after == 0:
                self.signature, self.faults.expires_after = self.signature + 1, None
            elif self.faults.expires_after is not None:
                self.faults.expires_after -= 1
            return address.endswith(f"?Signature={self.signature}")

    def take_flip(self, path: str) -> bool:
        with self._mutex:
            left = self.faults.flips[path]
            self.faults.flips[path] = max(left - 1, 0)
            return left > 0

    def current(self, path: str, content: Content) -> Content:
        """Return what a file is by now."""
        with self._mutex:
            if path in self.faults.changes_after:
                left, then = self.faults.changes_after[path]
                if left == 0:
                    return then
                self.faults.changes_after[path] = (left - 1, then)
        return self.faults.changed.get(path, content)

    def count(self, path: str, num_bytes: int) -> None:
        with self._mutex:
            if num_bytes > 1:  # one byte is how the size of a file is asked for
                self.sent[path] += num_bytes

    def throttle(self, num_bytes: int) -> None:
        if self.faults.rate_bytes_s is None:
            return
        with self._mutex:
            now = time.monotonic()
            self._due = max(self._due, now) + num_bytes / self.faults.rate_bytes_s
            wait_s = self._due - now
        time.sleep(wait_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args) -> None:
        self._connections: set = set()
        super().__init__(*args)

    def process_request(self, request, client_address) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for request in list(self._connections):
            with suppress(OSError):
                request.shutdown(2)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    role: str

    def log_message(self, *_args) -> None: ...

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.role} {self.command} {self.path}")
        if self.headers.get("Authorization"):
            self.hub.authorized.append(f"{self.role} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"))
        elif path.startswith(("/blob/", "/plain/")):
            self._answer_cdn(path)
        else:
            self._answer_resolve(path)

    do_HEAD = do_GET  # noqa: N815 - the library looks these names up

    # ------------------------------------------------------------------------------------------------------- the hub

    def _repo(self, name: str) -> Repo | None:
        """Return a repository that the caller may see, or answer why not."""
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None:
            self._refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
        elif repo.token is not None and token != repo.token:
            if repo.is_gated:
                self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
            else:
                self._refuse(401, "RepoNotFound", "Invalid username or password.")
        else:
            return repo
        return None

    def _answer_api(self, rest: str) -> None:
        match = re.fullmatch(r"(?P<name>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^/]+).*)?", rest)
        if self.hub.take("busy"):
            self._refuse(503, "", "busy", {"Retry-After": "0"})
            return
        if self.hub.take("limited"):
            self._refuse(429, "", "too many requests", {"Retry-After": "0"})
            return
        repo = self._repo(match["name"])
        if repo is None:
            return
        commit = repo.resolve(match["revision"] or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
            return
        files = repo.commits[commit]
        if match["kind"] == "tree":
            self._send_json([self._tree_entry(path, each) for path, each in files.items()])
            return
        siblings = [self._sibling(path, each) for path, each in files.items()]
        name = match["name"]
        self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    @staticmethod
    def _tree_entry(path: str, content: Content) -> dict:
        entry = {"type": "file", "path": path, "size": content.size_bytes, "oid": content.git_blob_id}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": content.sha256, "size": content.size_bytes, "pointerSize": 134}
        return entry

    @staticmethod
    def _sibling(path: str, content: Content) -> dict:
        entry = {"rfilename": path, "size": content.size_bytes, "blobId": content.git_blob_id}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"sha256": content.sha256, "size": content.size_bytes, "pointerSize": 134}
        return entry

    def _answer_resolve(self, path: str) -> None:
        match = re.fullmatch(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path)
        if match is None:
            self._refuse(404, "", "no such page")
            return
        repo = self._repo(match["name"])
        if repo is None:
            return
        commit = repo.resolve(match["revision"])
        content = repo.commits.get(commit or "", {}).get(match["file"])
        if content is None:
            code = "EntryNotFound" if commit else "RevisionNotFound"
            self._refuse(404, code, f"{match['file']} not found")
            return
        headers = {"X-Repo-Commit": commit}
        if not match["file"].endswith(LFS_SUFFIXES):
            self._send_content(match["file"], content, headers | {"ETag": f'"{content.git_blob_id}"'})
            return
        self.send_response(302)
        location = (
            f"{self.hub.cdn_url}/blob/{match['name']}/{commit}/{match['file']}?Signature={self.hub.signature}"
        )
        if self.hub.xet:
            headers["X-Xet-Hash"] = content.sha256
            refresh = f"{self.hub.url}/api/models/{match['name']}/xet-read-token/{commit}"
            headers["Link"] = f'<{refresh}>; rel="xet-auth"'
        linked = {"X-Linked-Etag": f'"{content.sha256}"', "X-Linked-Size": str(content.size_bytes)}
        for name, value in (headers | linked | {"Location": location, "Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ------------------------------------------------------------------------------------------------------- the CDN

    def _answer_cdn(self, path: str) -> None:
        if path.startswith("/blob/") and not self.hub.is_signed(self.path):
            self._refuse(403, "", "Request has expired")
            return
        _, kind, owner, name, rest = path.split("/", 4)
        repo = self.hub.repos.get(f"{owner}/{name}")
        commit = repo.branches["main"] if repo and kind == "plain" else rest.partition("/")[0]
        file = rest if kind == "plain" else rest.partition("/")[2]
        content = repo.commits.get(commit, {}).get(file) if repo else None
        if content is None:
            self._refuse(404, "", "no such file")
            return
        if repo.token and kind == "plain" and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self._refuse(401, "", "who are you?")
            return
        content = self.hub.current(file, content)
        self._send_content(file, content, {"ETag": f'"cdn-{content.sha256[:16]}"'})

    def _send_content(self, path: str, content: Content, headers: dict[str, str]) -> None:
        if self.command == "GET" and self.hub.take("busy"):
            self._refuse(503, "", "busy", {"Retry-After": "0"})
            return
        start, stop, status = 0, content.size_bytes, 200
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        match = match if match and self.hub.may_send_range() else None
        if match:
            start, stop = int(match[1]), min(int(match[2] or stop - 1) + 1, stop)
            status = 206
            if start >= content.size_bytes:
                self._refuse(416, "", "no such range", {"Content-Range": f"bytes */{content.size_bytes}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{content.size_bytes}"}
        has_body = self.command != "HEAD"
        cut_at = (start + stop) // 2 if has_body and stop - start > 1 and self.hub.take("cuts") else None
        is_flipped = has_body and self.hub.take_flip(path)
        self.send_response(status)
        if self.hub.faults.has_ranges:
            headers = headers | {"Accept-Ranges": "bytes"}
        for name, value in (headers | {"Content-Length": str(stop - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self._send_body(path, content, start, stop if cut_at is None else cut_at, is_flipped=is_flipped)
        if cut_at is not None:
            self.close_connection = True
            self.connection.shutdown(2)

    def _send_body(self, path: str, content: Content, start: int, stop: int, *, is_flipped: bool) -> None:
        if content.path is not None and self.hub.faults.rate_bytes_s is None and not is_flipped:
            self._send_file(path, content.path, start, stop)
            return
        for at in range(start, stop, _CHUNK_BYTES):
            block = content.read(at, min(at + _CHUNK_BYTES, stop))
            if is_flipped and at == start:
                block = bytes([block[0] ^ 1]) + block[1:]
            self.hub.throttle(len(block))
            self.wfile.write(block)
            self.hub.count(path, len(block))

    def _send_file(self, path: str, file: Path, start: int, stop: int) -> None:
        self.wfile.flush()
        with file.open("rb") as stream:
            while start < stop:
                sent = os.sendfile(
                    self.connection.fileno(), stream.fileno(), start, min(stop - start, 1 << 20)
                )
                start += sent
                self.hub.count(path, sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, action="append", default=[])
    parser.add_argument("--rate-mib", type=float)
    options = parser.parse_args()
    hub = HubServer()
    files: dict[str, bytes | Content] = {"config.json": b"{}", "tokenizer.json": b"[]" * 1000}
    hub.add_repo("org/big", files | {file.name: Content.at(file) for file in options.file})
    if options.rate_mib:
        hub.faults.rate_bytes_s = options.rate_mib * 1024**2
    with hub.serving():
        print(hub.url, flush=True)
        for line in sys.stdin:  # "sent" asks for the counts
            if line.strip() == "sent":
                print(json.dumps(hub.sent), flush=True)


if __name__ == "__main__":
    main()
