"""A repository of a registry, over HTTP.

A blob is sent as containerd does it, POST then one PUT with the whole content, which every registry takes; where a proxy
before it limits the size of a request, in pieces with PATCH. A request that failed in passing is repeated; a blob that
arrived before the failure is seen by HEAD and not sent again.
Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

import json
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from modelkit.errors import RegistryError
from modelkit.registry.auth import Authorizer
from modelkit.registry.base import (
    INDEX,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Content,
    Descriptor,
    Manifest,
    Store,
)
from modelkit.registry.content import Pieces
from modelkit.registry.failures import (
    TransientError,
    UnknownReferenceError,
    refusal,
    transport_failure,
)
from modelkit.registry.reference import DOCKER_HUB, Reference

if TYPE_CHECKING:
    import httpx

__all__ = ["Client"]

_T = TypeVar("_T")

_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 60.0  # a registry that asks for more is given up: the person decides
_TOLD_PAUSE_S = 1.0
_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_NOT_FOUND, _UNAUTHORIZED, _TOO_LARGE, _CREATED, _PARTIAL = 404, 401, 413, 201, 206
_READS = frozenset({"GET", "HEAD"})
# How much of a blob goes into one request, from all of it down to what any proxy lets pass.
_REQUEST_BYTES = (None, 64 * 1024 * 1024, 8 * 1024 * 1024, 768 * 1024)


class Client:
    """One repository of a registry; see `base.Store`. Plain HTTP only to this machine, or where `plain_http` says so."""

    def __init__(
        self,
        reference: Reference,
        *,
        plain_http: bool = False,
        attempts: int = _ATTEMPTS,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        import httpx

        self.reference = reference.at()
        self._plain_http = plain_http
        self._attempts = attempts
        self._on_note = on_note
        self._request_size = 0  # an index of _REQUEST_BYTES
        self._http = httpx.Client(
            verify=_trust(),
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=not reference.is_loopback,  # a proxy cannot reach this machine's loopback
            # A proxy that compresses what it passes on would change the bytes that a digest is made of.
            headers={"User-Agent": "modelkit", "Accept-Encoding": "identity"},
        )
        self._auth = Authorizer(self._http, reference, allow_http=plain_http or reference.is_loopback)

    @property
    def name(self) -> str:
        """The repository with its registry."""
        return self.reference.name

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------------- blobs

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob is there, complete."""
        return self._persist(lambda: self._look(descriptor, f"look for {descriptor.name} in {self.name}"))

    def _look(self, descriptor: Descriptor, action: str) -> bool:
        response = self._send("HEAD", f"blobs/{descriptor.digest}", action, also={_NOT_FOUND})
        return response.status_code != _NOT_FOUND

    def read_blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield a blob in pieces, unverified; a connection that breaks is made again from where it was."""
        done, failures = start, 0
        while done < descriptor.size_bytes:
            try:
                for piece in self._read_from(descriptor, done):
                    done += len(piece)
                    failures = 0
                    yield piece
                if done < descriptor.size_bytes:
                    raise TransientError(
                        f"cannot read {descriptor.name} from {self.name}: it ended early",
                        cure="run the command again; where it repeats, push it again",
                    )
            except TransientError as error:
                failures += 1
                self._pause(error, failures)

    def _read_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        import httpx

        action = f"read {descriptor.name} from {self.name}"
        headers = {"Range": f"bytes={start}-{descriptor.size_bytes - 1}"} if start else {}
        response = self._send("GET", f"blobs/{descriptor.digest}", action, headers=headers, stream=True)
        skip = start if response.status_code != _PARTIAL else 0
        try:
            for piece in response.iter_raw():
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(skip - len(piece), 0)
        except httpx.TransportError as error:
            raise transport_failure(error, action, self.reference.registry) from error
        finally:
            response.close()

    def home(self, descriptor: Descriptor) -> Store:  # noqa: ARG002 - the shape of every source
        """Return this repository: another one of the registry may mount its blobs."""
        return self

    def mount_blob(self, descriptor: Descriptor, home: Store) -> bool:
        """Take a blob from another repository of the same registry. False where the registry does not do that."""
        if not isinstance(home, Client) or home.reference.registry != self.reference.registry:
            return False
        source = home.reference.repository
        if source == self.reference.repository:
            return False
        action = f"mount {descriptor.name} from {source} in {self.name}"
        scope = f"{self._scope('pull,push')} repository:{source}:pull"
        query = f"mount={quote(descriptor.digest)}&from={quote(source, safe='')}"

        def mount() -> bool:
            response = self._send("POST", f"blobs/uploads/?{query}", action, scope=scope)
            if response.status_code == _CREATED:
                return True
            # It began an upload instead, which nobody will go on with.
            self._send("DELETE", self._location(response), action, also=range(400, 600))
            return False

        try:
            return self._persist(mount)
        except RegistryError:
            return False  # not allowed to read there, perhaps; sending the blob will say what is really wrong

    def write_blob(self, descriptor: Descriptor, content: Content) -> None:
        """Send a blob. Raises RegistryError."""
        action = f"push {descriptor.name} to {self.name}"
        attempted = False

        def write() -> None:
            nonlocal attempted
            if attempted and self._look(descriptor, action):
                return  # the answer was lost, not the blob
            attempted = True
            self._write_once(descriptor, content, action)

        self._persist(write)

    def _write_once(self, descriptor: Descriptor, content: Content, action: str) -> None:
        while True:
            size_index = self._request_size
            location = self._location(self._send("POST", "blobs/uploads/", action))
            limit = _REQUEST_BYTES[size_index]
            pieces = Pieces(content())
            try:
                also = set() if size_index == len(_REQUEST_BYTES) - 1 else {_TOO_LARGE}
                response: httpx.Response | None = None
                if limit is not None and descriptor.size_bytes > limit:
                    location, response = self._patch_all(location, descriptor, pieces, limit, action, also)
                if response is None:
                    rest = descriptor.size_bytes - pieces.taken_bytes
                    response = self._put_blob(location, descriptor, pieces, rest, action, also)
            finally:
                pieces.close()
            if response.status_code != _TOO_LARGE:
                return
            self._request_size = max(self._request_size, size_index + 1)

    def _patch_all(
        self, location: str, descriptor: Descriptor, pieces: "Pieces", limit: int, action: str, also: set[int]
    ) -> "tuple[str, httpx.Response | None]":
        """Send a blob in pieces of `limit` bytes; return where to complete it, or the refusal of a piece."""
        for start in range(0, descriptor.size_bytes, limit):
            num = min(limit, descriptor.size_bytes - start)
            headers = {
                "Content-Length": str(num),
                "Content-Range": f"{start}-{start + num - 1}",
                "Content-Type": "application/octet-stream",
            }
            body = pieces.take(num)
            response = self._send("PATCH", location, action, headers=headers, content=body, also=also)
            if response.status_code in also:
                return location, response
            location = self._location(response)
        return location, None

    def _put_blob(
        self, location: str, descriptor: Descriptor, pieces: "Pieces", rest: int, action: str, also: set[int]
    ) -> "httpx.Response":
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(descriptor.digest, safe='')}"
        headers = {"Content-Length": str(rest), "Content-Type": "application/octet-stream"}
        return self._send("PUT", url, action, headers=headers, content=pieces.take(rest), also=also)

    # ---------------------------------------------------------------------------------------------------- manifests

    def find_manifest(self, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest by tag or digest, None where it is not there."""
        action = f"look for {self._named(reference)}"

        def look() -> Descriptor | None:
            response = self._send(
                "HEAD", f"manifests/{reference}", action, headers=_ACCEPT, also={_NOT_FOUND}
            )
            if response.status_code == _NOT_FOUND:
                return None
            try:
                size, digest = (
                    int(response.headers["Content-Length"]),
                    response.headers["Docker-Content-Digest"],
                )
                return Descriptor(response.headers["Content-Type"], digest, size)
            except KeyError:  # the specification lets a registry leave them out
                return self.get_manifest(reference).descriptor()

        return self._persist(look)

    def get_manifest(self, reference: str) -> Manifest:
        """Return a manifest by tag or digest; by digest it is verified. Raises UnknownReferenceError."""
        action = f"read {self._named(reference)}"

        def get() -> Manifest:
            response = self._send("GET", f"manifests/{reference}", action, headers=_ACCEPT, also={_NOT_FOUND})
            if response.status_code == _NOT_FOUND:
                raise UnknownReferenceError(self._named(reference))
            manifest = Manifest.parse(response.content, response.headers.get("Content-Type", ""))
            if ":" in reference and manifest.digest != reference:
                raise RegistryError(
                    f"{self._named(reference)} is not what its digest says",
                    cure="push it again: it is damaged",
                )
            return manifest

        return self._persist(get)

    def put_manifest(self, manifest: Manifest, tag: str | None = None) -> None:
        """Store a manifest, all of whose parts are there, and let `tag` name it. Raises RegistryError."""
        reference = tag or manifest.digest
        action = f"push {self._named(reference)}"
        if len(manifest.content) > MAX_MANIFEST_BYTES:
            raise RegistryError(
                f"{action}: the manifest has {len(manifest.content):,} bytes, and registries take 4 MiB",
                cure="have fewer files: one archive in place of thousands of small ones",
            )
        headers = {"Content-Type": manifest.media_type}

        def put() -> "httpx.Response":
            url, content = f"manifests/{reference}", manifest.content
            return self._send("PUT", url, action, headers=headers, content=content)

        response = self._persist(put)
        if manifest.subject is not None and "OCI-Subject" not in response.headers:
            self._note_referrer(manifest, manifest.subject)

    def check_writable(self) -> None:
        """Raise RegistryError where this repository cannot be written: an upload is begun, and given up again."""
        action = f"push to {self.name}"

        def begin() -> None:
            location = self._location(self._send("POST", "blobs/uploads/", action))
            self._send("DELETE", location, action, also=range(400, 600))

        self._persist(begin)

    def claim_tag(self, manifest: Manifest, tag: str) -> bool:
        """Let a tag name a manifest, unless it names another one; looked at before and after, for want of a better way."""
        found = self.find_manifest(tag)
        if found is None:
            self.put_manifest(manifest, tag)
            found = self.find_manifest(tag)
        return found is not None and found.digest == manifest.digest

    def tags(self) -> list[str]:
        """Return all tags, sorted; none where the repository does not exist yet."""
        action = f"list the tags of {self.name}"

        def all_pages() -> list[str]:
            found: list[str] = []
            url: str | None = "tags/list"
            while url is not None:
                response = self._send("GET", url, action, also={_NOT_FOUND})
                if response.status_code == _NOT_FOUND:
                    break
                found += response.json().get("tags") or []
                following = response.links.get("next")
                url = urljoin(str(response.url), following["url"]) if following else None
            return sorted(set(found))

        return self._persist(all_pages)

    def referrers(self, digest: str) -> Sequence[Descriptor]:
        """Return the manifests whose subject is `digest`; where the registry has no list of them, by the tag instead."""
        action = f"list what is attached to {self._named(digest)}"

        def get() -> dict[str, Any] | None:
            response = self._send(
                "GET", f"referrers/{digest}", action, headers={"Accept": INDEX}, also={_NOT_FOUND}
            )
            if response.status_code == _NOT_FOUND or "json" not in response.headers.get("Content-Type", ""):
                return None
            return json.loads(response.content)  # type: ignore[no-any-return]

        document = self._persist(get)
        if document is not None:
            return [Descriptor.from_json(value) for value in document.get("manifests") or ()]
        return self._noted_referrers(digest)

    def _noted_referrers(self, digest: str) -> list[Descriptor]:
        tag = _referrers_tag(digest)
        return self.get_manifest(tag).children if self.find_manifest(tag) is not None else []

    def _note_referrer(self, manifest: Manifest, subject: Descriptor) -> None:
        """Add a manifest to the index that stands for the list of referrers in a registry that keeps none."""
        known = self._noted_referrers(subject.digest)
        if any(descriptor.digest == manifest.digest for descriptor in known):
            return
        new = manifest.descriptor(annotations=manifest.annotations, artifact_type=manifest.artifact_type)
        listed = [descriptor.to_json() for descriptor in (*known, new)]
        index = Manifest.build({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
        self.put_manifest(index, _referrers_tag(subject.digest))

    # --------------------------------------------------------------------------------------------------------- HTTP

    def _named(self, reference: str) -> str:
        return f"{self.name}{'@' if ':' in reference else ':'}{reference}"

    def _scope(self, actions: str) -> str:
        """Return what a token must allow; no more than the request needs, or who may only read would get none."""
        return f"repository:{self.reference.repository}:{actions}"

    @cached_property
    def _base(self) -> str:
        registry = self.reference.registry
        host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
        scheme = (
            "http" if self._plain_http or (self.reference.is_loopback and self._is_plain(host)) else "https"
        )
        return f"{scheme}://{host}/v2/{self.reference.repository}/"

    def _is_plain(self, host: str) -> bool:
        """Tell whether a registry on this machine speaks plain HTTP: most do, and nothing in its name says so."""
        import httpx

        try:
            self._http.get(f"https://{host}/v2/")
        except httpx.TransportError as error:
            return "CERTIFICATE_VERIFY_FAILED" not in str(error)
        return False

    def _location(self, response: "httpx.Response") -> str:
        """Return where an upload goes on. A registry behind a proxy may not know that it is reached by HTTPS."""
        location: str = urljoin(str(response.url), response.headers.get("Location", ""))
        if self._base.startswith("https://") and location.startswith("http://"):
            return "https://" + location.removeprefix("http://")
        return location

    def _send(
        self,
        method: str,
        url: str,
        action: str,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        scope: str = "",
        also: Iterable[int] = (),
        stream: bool = False,
    ) -> "httpx.Response":
        """Send one request, logging in where the registry asks for it; redirects of reads are followed.

        Returns a response of success, or with a status in `also`. Raises RegistryError.
        """
        url = urljoin(self._base, url)
        scope = scope or self._scope("pull" if method in _READS else "pull,push")
        sent: str | None = None
        is_ours = urlsplit(url).netloc == urlsplit(self._base).netloc  # another host gets no credentials
        while True:
            known = self._auth.header(scope) if is_ours else None
            response = self._send_once(method, url, action, known, headers or {}, content, stream=stream)
            if response.is_success or response.status_code in also:
                return response
            response.read()
            challenge = response.headers.get("WWW-Authenticate", "")
            if (
                response.status_code != _UNAUTHORIZED
                or not is_ours
                or (known is not None and known == sent)
                or not self._auth.answer(challenge, scope, known)
            ):
                raise refusal(response, action, self.name, self._auth.login)
            sent = self._auth.header(scope)
            if content is not None and not isinstance(content, bytes):
                # Part of the body is gone; the caller has to begin again, now with a valid token.
                raise TransientError(
                    f"cannot {action}: the token expired", cure="run the command again", after_s=0
                )

    def _send_once(
        self,
        method: str,
        url: str,
        action: str,
        authorization: str | None,
        headers: dict[str, str],
        content: bytes | Iterable[bytes] | None,
        *,
        stream: bool,
    ) -> "httpx.Response":
        import httpx

        sent = headers if authorization is None else {**headers, "Authorization": authorization}
        request = self._http.build_request(method, url, headers=sent, content=content)
        if method == "POST":
            request.headers.setdefault("Content-Length", "0")
        try:
            return self._http.send(request, stream=stream, follow_redirects=method in _READS)
        except httpx.TransportError as error:
            raise transport_failure(error, action, self.reference.registry) from error

    def _persist(self, function: Callable[[], _T]) -> _T:
        """Call a function until it does not fail in passing. Raises what the last attempt did."""
        failures = 0
        while True:
            try:
                return function()
            except TransientError as error:
                failures += 1
                self._pause(error, failures)

    def _pause(self, error: TransientError, failures: int) -> None:
        """Wait before the next attempt, longer each time. Raises the error where there is no next one."""
        wanted_s = error.after_s if error.after_s is not None else _FIRST_PAUSE_S * 2 ** (failures - 1)
        if failures >= self._attempts or wanted_s > _LONGEST_PAUSE_S:
            raise error
        wait_s = wanted_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients, keeps no secret
        if wait_s >= _TOLD_PAUSE_S:
            self._on_note(f"{error.message}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s)


_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")


def _trust() -> ssl.SSLContext:
    """Return the authorities to trust: the system's, or SSL_CERT_FILE, or a library's where the system has none."""
    context = ssl.create_default_context()
    if not context.get_ca_certs() and not ssl.get_default_verify_paths().capath:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
