"""From a source into the cache: in parallel, going on where an earlier transfer stopped, each file verified.

Nothing counts before its sha256 has been computed from the bytes on this disk. Two processes that want the same content
transfer it once: one works, the other waits, and goes on by itself should the first one die.
"""

import contextlib
import hashlib
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from modelkit.checkpoints.base import (
    BrokenTransferError,
    ChangedFileError,
    CheckpointSource,
    NoRangesError,
    SourceFile,
)
from modelkit.checkpoints.cache import Cache, disk_error, hash_file, sync_file, version_key
from modelkit.checkpoints.partial import Claim, Partial, RestartedError
from modelkit.errors import LoadError, ModelkitError
from modelkit.progress import NO_PROGRESS, TransferProgress, size_text

__all__ = ["fetch"]

NUM_WORKERS = 8
MAX_FAILURES = 6  # in a row, of one part
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
POLL_S = 0.2

_NOTE_INTERVAL_S = 2.0
_LEAVE_TIMEOUT_S = 2.0
# Left free, so that what else the machine does can go on.
_SPARE_BYTES = 64 * 1024**2

_Task = Callable[[], "Iterable[_Task]"]
_Note = Callable[[str], None]


def fetch(
    source: CheckpointSource,
    files: Sequence[SourceFile],
    cache: Cache,
    progress: TransferProgress = NO_PROGRESS,
    on_note: _Note = lambda _: None,
) -> dict[str, str]:
    """Bring files into the cache and return the sha256 of each by its path. What is there is not fetched again.

    `on_note` hears of what takes time and is no progress: a broken connection, another process at work. Raises LoadError;
    what has arrived by then is kept, and the next call goes on from there.
    """
    found: dict[str, str] = {}
    transfers: dict[str, _Transfer] = {}
    paths: dict[str, list[str]] = {}
    for file in files:
        key = version_key(source.where, file)
        paths.setdefault(key, []).append(file.path)
        if key in transfers or key in found:
            continue
        transfer = _Transfer(source, file, key, cache, progress, on_note)
        there = transfer.find()
        if there is not None:
            found[key] = there
        else:
            transfers[key] = transfer
    if transfers:
        left_bytes = sum(each.left_bytes() for each in transfers.values())
        _check_disk(cache, left_bytes)
        progress.begin(len(transfers), left_bytes)
        _Crew(list(transfers.values())).run()
        assert all(transfer.is_done for transfer in transfers.values())
    sha256s = found | {key: transfer.sha256 for key, transfer in transfers.items()}
    return {path: sha256s[key] for key, those in paths.items() for path in those}


def _check_disk(cache: Cache, left_bytes: int) -> None:
    try:
        cache.root.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(cache.root).free
    except OSError as error:
        raise disk_error(error, cache.root) from error
    if left_bytes + _SPARE_BYTES > free_bytes:
        raise LoadError(
            f"{size_text(left_bytes)} have to be fetched, and {cache.root} has {size_text(free_bytes)} free, "
            f"{size_text(_SPARE_BYTES)} of which are left alone",
            cure="`modelkit cache prune` deletes what no checkpoint uses; or let MODELKIT_CACHE_DIR name a larger disk",
        )


class _BusyError(Exception):
    """Another process works on this file."""


class _StoppedError(Exception):
    """The whole fetch has ended, for whatever reason."""


class _Transfer:
    """One content on its way. Its tasks run in the crew's threads; each returns the tasks that come next."""

    def __init__(
        self,
        source: CheckpointSource,
        file: SourceFile,
        key: str,
        cache: Cache,
        progress: TransferProgress,
        on_note: _Note,
    ) -> None:
        self.file = file
        self.sha256 = file.sha256 or ""
        self.stop = threading.Event()
        self._source = source
        self._key = key
        self._cache = cache
        self._progress = progress
        self._on_note = on_note
        self._claim = Claim(cache.partial(f"{key}.lock"))
        self._partial = Partial(cache.partial(key), file.size_bytes)
        self._num_spoilt = 0
        self.is_done = False
        self._beginning = threading.Lock()
        self._noted_at = -_NOTE_INTERVAL_S
        self._has_waited = False

    @property
    def target(self) -> Path:
        """Where the file is written."""
        return self._partial.path

    def find(self) -> str | None:
        """Return the content's sha256 where it is in the cache."""
        sha256 = self.file.sha256 or self._cache.known_sha256(self._key)
        return sha256 if sha256 and self._cache.find_blob(sha256, self.file.size_bytes) else None

    def left_bytes(self) -> int:
        """Return about how much has to be written yet."""
        with contextlib.suppress(OSError):
            there = self._partial.path.stat().st_blocks * 512
            return max(self.file.size_bytes - there, 0)
        return self.file.size_bytes

    def close(self) -> None:
        """Let go of everything, so that another process may go on."""
        self.stop.set()
        self._partial.close()
        self._claim.give_up()

    # ---------------------------------------------------------------------------------------------------------- tasks

    def begin(self) -> Iterable[_Task]:
        """Take what is on this machine, or see which parts are missing."""
        if not self._claim.take():
            if not self._has_waited:
                self._on_note(f"waiting for another process that fetches {self.file.path}")
                self._has_waited = True
            raise _BusyError
        there = self.find()
        if there is not None:
            return self._end(there)
        copy = self._source.copy_on_disk(self.file)
        if copy is not None and self._adopt(copy):
            return ()
        if not self._partial.has_begun and self._download():
            return self._check_download()
        self._partial.open()
        self._progress.started(self.file.path, self.file.size_bytes, self._partial.done_bytes)
        return self._parts()

    def _parts(self) -> Iterable[_Task]:
        missing = self._partial.missing()
        if not missing:
            self._partial.advance_hash()
            return [self._finish] if self._partial.completes() else []
        span, layout = self._partial.span, self._partial.layout
        return [partial(self._fetch_part, index, layout, *span(index)) for index in missing]

    def _fetch_part(self, index: int, layout: int, start: int, stop: int) -> Iterable[_Task]:
        try:
            return self._complete_part(index, layout, start, stop)
        except RestartedError:
            return ()

    def _complete_part(self, index: int, layout: int, start: int, stop: int) -> Iterable[_Task]:
        num_failures = 0
        while (had := self._partial.count(index, layout)) < stop - start:
            try:
                self._receive(index, layout, start + had, stop)
            except BrokenTransferError as error:
                has_progressed = self._partial.count(index, layout) > had
                num_failures = 1 if has_progressed else num_failures + 1
                if num_failures > MAX_FAILURES:
                    raise
                self._wait(error, num_failures)
            except NoRangesError:
                return self._begin_whole(layout)
        self._partial.advance_hash()
        return [self._finish] if self._partial.completes() else []

    def _receive(self, index: int, layout: int, start: int, stop: int) -> None:
        """Write one answer of the source."""
        position = start
        with self._source.open(self.file, start, stop) as blocks:
            for block in blocks:
                if self.stop.is_set():
                    raise _StoppedError
                position += len(block)
                if position > stop:
                    raise ChangedFileError(self.file.path, self._source.where)
                self._partial.write(index, block, layout)
                self._report(len(block))
                self._partial.advance_hash()
        if position < stop:
            raise BrokenTransferError(f"{self._source.where} sent a part of {self.file.path} only")

    def _begin_whole(self, layout: int) -> Iterable[_Task]:
        """Begin anew, in one piece; of the parts that find out that they cannot be had, the first one does it."""
        with self._beginning:
            if layout != self._partial.layout:
                return ()
            return self._restart(whole=True)

    def _restart(self, *, whole: bool = False) -> Iterable[_Task]:
        self._report(-self._partial.restart(whole=whole))
        return self._parts()

    def _finish(self) -> Iterable[_Task]:
        """Verify the file and make it count."""
        sha256 = self._partial.sha256
        if not self._is_right(self._partial.path, sha256):
            return self._begin_again(sha256)
        self._partial.sync()
        self._partial.close()
        self._cache.add_blob(self._partial.path, sha256)
        self._partial.end_journal()
        return self._end(sha256)

    def _is_right(self, path: Path, sha256: str) -> bool:
        if self.file.sha256 is not None:
            return sha256 == self.file.sha256
        if self.file.git_blob_id is not None:
            return _git_blob_id(path, self.file.size_bytes) == self.file.git_blob_id
        return True

    def _begin_again(self, sha256: str) -> Iterable[_Task]:
        """Discard a file that is not what it should be, and fetch it once more."""
        if self._num_spoilt:
            self._partial.discard()
            expected = self.file.sha256 or self.file.git_blob_id
            raise LoadError(
                f"{self.file.path} from {self._source.where} is not what it should be: its hash is {sha256[:12]}..., "
                f"and {str(expected)[:12]}... was expected, twice. Nothing of it was kept",
                cure="something on the way changes it (a proxy, a mirror, a disk), or the file was replaced: "
                "`modelkit lock --check` tells",
            )
        self._num_spoilt += 1
        self._on_note(f"{self.file.path} arrived damaged: fetching it once more")
        return self._restart()

    def _end(self, sha256: str) -> Iterable[_Task]:
        self.sha256, self.is_done = sha256, True
        if self.file.sha256 is None:
            self._cache.note_sha256(self._key, sha256)
        self._claim.give_up()
        self._progress.finished(self.file.path)
        return ()

    # ----------------------------------------------------------------------------------------------- by other ways

    def _adopt(self, copy: Path) -> bool:
        """Take a file of this machine, by a link where that is possible, if its content is the right one."""
        self._progress.started(self.file.path, self.file.size_bytes)
        draft = self._partial.path.with_name(f"{self._partial.path.name}.copy")
        draft.unlink(missing_ok=True)
        try:
            try:
                draft.hardlink_to(copy.resolve())
            except OSError:
                shutil.copyfile(copy, draft)
            sha256 = hash_file(draft, self._report)
            right = self._is_right(draft, sha256)
            if right:
                sync_file(draft)
                self._cache.add_blob(draft, sha256)
                self._end(sha256)
            else:
                self._progress.advanced(self.file.path, -self.file.size_bytes)
        except OSError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return right

    def _download(self) -> bool:
        """Let the source fetch the file in its own way, if it has one."""
        num_reported = 0

        def report(num_bytes: int) -> None:
            nonlocal num_reported
            num_reported += num_bytes
            self._report(num_bytes)

        self._progress.started(self.file.path, self.file.size_bytes)
        done = self._source.download(self.file, self._partial.path, report)
        self._report(self.file.size_bytes - num_reported if done else -num_reported)
        return done

    def _check_download(self) -> Iterable[_Task]:
        """Verify what the source's own way has brought."""
        sha256 = hash_file(self._partial.path)
        if sha256 != self.file.sha256:
            self._partial.path.unlink()
            self._partial.open()
            return self._begin_again(sha256)
        sync_file(self._partial.path)
        self._cache.add_blob(self._partial.path, sha256)
        return self._end(sha256)

    def _report(self, num_bytes: int) -> None:
        self._progress.advanced(self.file.path, num_bytes)

    def _wait(self, error: BrokenTransferError, num_failures: int) -> None:
        wait_s = min(error.retry_after_s or BACKOFF_S * 2 ** (num_failures - 1), MAX_BACKOFF_S)
        now = time.monotonic()
        if now - self._noted_at >= _NOTE_INTERVAL_S:
            self._noted_at = now
            self._on_note(f"{error.message}; trying again in {wait_s:g} s")
        if self.stop.wait(wait_s):
            raise _StoppedError


class _Crew:
    """Threads that work through the tasks of all transfers, a few files at a time, in order."""

    def __init__(self, transfers: Sequence[_Transfer]) -> None:
        self._transfers = transfers
        self._ready = deque((transfer, transfer.begin) for transfer in transfers)
        self._work: queue.SimpleQueue[tuple[_Transfer, _Task] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[_Transfer, _Task, Iterable[_Task] | BaseException]] = (
            queue.SimpleQueue()
        )

    def run(self) -> None:
        """Work until everything is there. Raises the first error, after all threads were told to stop."""
        threads = [
            threading.Thread(target=self._serve, name=f"modelkit-fetch-{number}", daemon=True)
            for number in range(NUM_WORKERS)
        ]
        for thread in threads:
            thread.start()
        try:
            self._lead()
        finally:
            for transfer in self._transfers:
                transfer.close()
            for _ in threads:
                self._work.put(None)
            # A thread that waits for a server ends when that answers; it has nothing left to write to.
            deadline = time.monotonic() + _LEAVE_TIMEOUT_S
            for thread in threads:
                thread.join(max(deadline - time.monotonic(), 0))

    def _lead(self) -> None:
        num_running, waiting = 0, list[tuple[_Transfer, _Task]]()
        while self._ready or num_running or waiting:
            while self._ready and num_running < NUM_WORKERS:
                self._work.put(self._ready.popleft())
                num_running += 1
            try:
                transfer, task, result = self._results.get(timeout=POLL_S)
            except queue.Empty:
                self._ready.extend(waiting)
                waiting.clear()
                continue
            num_running -= 1
            if isinstance(result, _BusyError):
                waiting.append((transfer, task))
            elif isinstance(result, BaseException):
                raise _as_load_error(result, transfer)
            else:
                # Before other files: one that is begun is ended first.
                self._ready.extendleft(reversed([(transfer, following) for following in result]))

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            transfer, task = work
            try:
                result: Iterable[_Task] | BaseException = task()
            except BaseException as error:  # noqa: BLE001 - the thread that leads decides
                result = error
            self._results.put((transfer, task, result))


def _as_load_error(error: BaseException, transfer: _Transfer) -> BaseException:
    if isinstance(error, OSError) and not isinstance(error, ModelkitError):
        failure = disk_error(error, transfer.target)
        failure.__cause__ = error
        return failure
    return error


def _git_blob_id(path: Path, size_bytes: int) -> str:
    """Return the SHA-1 that git names a file's content by: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    digest = hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1024**2), b""):
            digest.update(block)
    return digest.hexdigest()
