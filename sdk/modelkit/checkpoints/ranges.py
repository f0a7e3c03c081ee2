"""Ranges of files over HTTP, for the sources that have URLs: what each answer of a server means for a transfer.

A redirect is followed once per file and its target kept: a hub sends each large file on to a CDN, and asking it again for
every range would cost a round trip each. Credentials never follow a redirect to another host.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelkit.checkpoints.base import BrokenTransferError, ChangedFileError, NoRangesError, SourceFile
from modelkit.errors import LoadError

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpRanges"]

CONNECT_TIMEOUT_S = 10.0
# Longer than a CDN takes to fetch a cold file from behind it.
READ_TIMEOUT_S = 60.0

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHANGED = frozenset({412, 416})
_REFUSED = frozenset({400, 401, 403, 404, 410})
_TOTAL = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+)")

Explain = Callable[["httpx.Response", str], LoadError | None]


class HttpRanges:
    """One HTTP client, safe to use from several threads. `explain` puts an answer of 4xx into the source's words."""

    def __init__(self, where: str, explain: Explain) -> None:
        import httpx

        self.where = where
        self._explain = explain
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )
        self._locations: dict[str, str] = {}
        self._etags: dict[str, str] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def open(
        self, file: SourceFile, url: str, headers: Mapping[str, str], start: int, stop: int | None
    ) -> Iterator[Iterator[bytes]]:
        """Return the bytes of a range, as `CheckpointSource.open` promises it."""
        end = file.size_bytes if stop is None else min(stop, file.size_bytes)
        if start >= end:
            yield iter(())
            return
        is_whole = start == 0 and end == file.size_bytes
        asked = {} if is_whole else {"Range": f"bytes={start}-{end - 1}"}
        with self._translating(), self._get(file.path, url, {**headers, **asked}) as response:
            if response.status_code not in {200, 206}:
                raise self._refusal(response, file.path)
            self._check(response, file, start, is_whole=is_whole)
            yield self._blocks(response)

    def size_bytes(self, path: str, url: str, headers: Mapping[str, str]) -> int:
        """Return the size of a file, asked for with a range of one byte: many servers of files refuse HEAD."""
        with self._translating(), self._get(path, url, {**headers, "Range": "bytes=0-0"}) as response:
            if response.status_code == 416:  # noqa: PLR2004 - Range Not Satisfiable: an empty file has no first byte
                return 0
            if response.status_code not in {200, 206}:
                raise self._refusal(response, path)
            match = _TOTAL.match(response.headers.get("Content-Range", ""))
            size = match["total"] if match else response.headers.get("Content-Length")
            if size is None:
                raise LoadError(
                    f"{self.where} does not say how large {path} is", cure="serve it as a plain file"
                )
            return int(size)

    @contextmanager
    def _get(self, path: str, url: str, headers: Mapping[str, str]) -> "Iterator[httpx.Response]":
        """Send a request to where the file was last found; where that is refused by now, ask for the way again."""
        headers = {"Accept-Encoding": "identity", **headers}
        location = self._locations.get(path)
        if location is not None:
            bare = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            with self._client.stream("GET", location, headers=bare) as response:
                if response.status_code not in _REFUSED:
                    yield response
                    return
            self._locations.pop(path, None)  # a signed URL ends some day
        with self._client.stream("GET", url, headers=headers) as response:
            if response.is_success and any(_left_host(before, response) for before in response.history):
                self._locations[path] = str(response.url)
            yield response

    def _check(self, response: "httpx.Response", file: SourceFile, start: int, *, is_whole: bool) -> None:
        """Make sure that what comes is the range that was asked for, of the file that was listed."""
        if response.status_code == 200 and not is_whole:  # noqa: PLR2004
            raise NoRangesError(f"{self.where} does not send parts of files")
        if response.status_code == 206:  # noqa: PLR2004
            match = _TOTAL.match(response.headers.get("Content-Range", ""))
            total, came = (int(match["total"]), int(match["start"])) if match else (None, None)
            if total != file.size_bytes or came != start:
                raise ChangedFileError(file.path, self.where)
        else:
            length = response.headers.get("Content-Length")
            if length is not None and int(length) != file.size_bytes:
                raise ChangedFileError(file.path, self.where)
        etag = response.headers.get("ETag", "")
        # A weak one may stay the same, or change, whatever the bytes do.
        if etag and not etag.startswith("W/") and self._etags.setdefault(file.path, etag) != etag:
            self._etags.pop(file.path, None)
            raise ChangedFileError(file.path, self.where)

    def _blocks(self, response: "httpx.Response") -> Iterator[bytes]:
        with self._translating():
            yield from response.iter_raw()

    def _refusal(self, response: "httpx.Response", path: str) -> LoadError:
        status = response.status_code
        if status in _CHANGED:
            return ChangedFileError(path, self.where)
        host = response.url.host
        if status in _BUSY:
            after = response.headers.get("Retry-After", "")
            return BrokenTransferError(
                f"{host} answers {status} {response.reason_phrase} for {path}",
                retry_after_s=float(after) if after.isdigit() else None,
            )
        return self._explain(response, path) or LoadError(
            f"cannot fetch {path} from {self.where}: {host} answers {status} {response.reason_phrase}",
            cure="see that the address is right and may be read",
        )

    @contextmanager
    def _translating(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TooManyRedirects as error:
            raise LoadError(
                f"{self.where} redirects in a circle", cure="see that the address is right"
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise BrokenTransferError(
                f"the connection to {self.where} broke: {reason}",
                cure="connect to the network and try again: what has arrived is kept",
            ) from error
        except httpx.InvalidURL as error:
            raise LoadError(
                f"{self.where} has an address that is none: {error}", cure="correct it in config.yaml"
            ) from error


def _left_host(before: "httpx.Response", after: "httpx.Response") -> bool:
    return (before.url.host, before.url.port) != (after.url.host, after.url.port)
