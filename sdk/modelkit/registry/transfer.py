"""Copies a graph of manifests and blobs into a store: what is there already is not sent, tags come last.

Whatever ends a copy, a tag names the old thing or the new one, whole; and the next copy goes on with the blobs that are
missing. Blobs go in parallel, in pieces: memory does not grow with their size.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from modelkit.errors import RegistryError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry.base import Descriptor, Manifest, Source, Store

__all__ = ["CopyResult", "copy", "in_parallel"]

_WORKERS = 4
_JOIN_TIMEOUT_S = 2.0

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy did. `present` blobs were there, `mounted` ones came from beside; only `sent_bytes` were moved."""

    digest: str
    num_present: int
    num_mounted: int
    num_sent: int
    sent_bytes: int
    num_manifests_sent: int


def copy(
    source: Source,
    target: Store,
    root: str,
    *,
    tags: Sequence[str] = (),
    progress: TransferProgress = NO_PROGRESS,
    workers: int = _WORKERS,
) -> CopyResult:
    """Copy the manifest `root` (a digest, or a tag of the source) with all its parts, and then let `tags` name it.

    Tags are written in their order. Raises RegistryError; running it again goes on where it stopped.
    """
    manifests = list(_walk(source, root))
    top = manifests[-1]
    blobs = list({blob.digest: blob for manifest in manifests for blob in manifest.blobs}.values())
    states = in_parallel(lambda blob: _place(source, target, blob), blobs, workers)
    missing = [blob for blob, state in zip(blobs, states, strict=True) if state == "missing"]
    _send_all(source, target, missing, progress, workers)
    num_manifests_sent = 0
    for manifest in manifests:
        if target.find_manifest(manifest.digest) is None:
            target.put_manifest(manifest)
            num_manifests_sent += 1
    for tag in tags:
        found = target.find_manifest(tag)
        if found is None or found.digest != top.digest:
            target.put_manifest(top, tag)
    return CopyResult(
        digest=top.digest,
        num_present=states.count("present"),
        num_mounted=states.count("mounted"),
        num_sent=len(missing),
        sent_bytes=sum(blob.size_bytes for blob in missing),
        num_manifests_sent=num_manifests_sent,
    )


def _walk(source: Source, reference: str) -> Iterator[Manifest]:
    """Yield a manifest after all that it lists: the order in which a registry takes them."""
    manifest = source.get_manifest(reference)
    for child in manifest.children:
        yield from _walk(source, child.digest)
    yield manifest


def _place(source: Source, target: Store, blob: Descriptor) -> str:
    if target.has_blob(blob):
        return "present"
    home = source.home(blob)
    return "mounted" if home is not None and target.mount_blob(blob, home) else "missing"


def _send_all(
    source: Source, target: Store, blobs: Sequence[Descriptor], progress: TransferProgress, workers: int
) -> None:
    if not blobs:
        return
    progress.begin(len(blobs), sum(blob.size_bytes for blob in blobs))
    stop = threading.Event()

    def send(blob: Descriptor) -> None:
        progress.started(blob.name, blob.size_bytes)
        content = _Reported(source, blob, progress, stop)
        target.write_blob(blob, content)
        content.tell(blob.size_bytes)  # an attempt whose answer was lost had sent it all
        progress.finished(blob.name)

    # The largest first: beginning with the small ones would leave one worker alone with a large one at the end.
    in_parallel(send, sorted(blobs, key=lambda blob: -blob.size_bytes), workers, stop)


@dataclass(slots=True)
class _Reported:
    """A blob's content that tells how it goes; an attempt that begins anew takes back what the last one told."""

    source: Source
    blob: Descriptor
    progress: TransferProgress
    stop: threading.Event
    told_bytes: int = 0

    def __call__(self) -> Iterator[bytes]:
        self.tell(0)
        for piece in self.source.read_blob(self.blob):
            if self.stop.is_set():
                raise _StoppedError
            self.tell(self.told_bytes + len(piece))
            yield piece

    def tell(self, num_bytes: int) -> None:
        """Tell that `num_bytes` of the blob have gone so far."""
        if num_bytes != self.told_bytes:
            self.progress.advanced(self.blob.name, num_bytes - self.told_bytes)
        self.told_bytes = num_bytes


class _StoppedError(RegistryError):
    """Another transfer failed, or the person wants no more."""

    def __init__(self) -> None:
        super().__init__("stopped")


def in_parallel(
    function: Callable[[_T], _R], items: Sequence[_T], workers: int, stop: threading.Event | None = None
) -> list[_R]:
    """Call a function for every item in a few threads; return the results in the order of the items.

    The first error ends it and is raised; so does Ctrl-C. `stop` is set then, for those still at work. They are daemons:
    one that waits for a dead network does not keep the process.
    """
    stop = stop or threading.Event()
    results: dict[int, _R] = {}
    errors: list[BaseException] = []
    waiting = iter(enumerate(items))
    lock = threading.Lock()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    following = next(waiting, None)
                if following is None:
                    return
                index, item = following
                results[index] = function(item)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(error)
            stop.set()

    _join_all([threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))], stop)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


def _join_all(threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Start threads and wait for their end; on Ctrl-C for a moment only."""
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        with suppress(KeyboardInterrupt):
            for thread in threads:
                thread.join(_JOIN_TIMEOUT_S)
        raise
