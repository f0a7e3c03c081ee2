"""One file on its way into the cache: written in parts, hashed from its beginning as it grows, resumed after any end.

Parts may arrive in any order. How many bytes each has is written down after the bytes themselves, so that whoever goes on
after a kill knows what is there; what it finds is hashed again, and only a file with the right sha256 leaves this place.
"""

import fcntl
import hashlib
import os
import struct
import threading
from pathlib import Path

from modelkit.checkpoints.base import BLOCK_BYTES

__all__ = ["Claim", "Partial", "RestartedError"]

PART_BYTES = 32 * 1024**2

_NUMBER = struct.Struct("<Q")
# Hashing goes on in steps: often enough to find the bytes still in the page cache, rarely enough to cost nothing.
_HASH_STEP_BYTES = 8 * BLOCK_BYTES


class Claim:
    """The right to work on one transfer, of all threads and processes; it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._ending = threading.Lock()

    def take(self) -> bool:
        """Return whether the claim is ours now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it before may have deleted the file: a lock on that one excludes nobody.
            is_current = os.fstat(descriptor).st_ino == self._path.stat().st_ino
        except OSError:  # held by somebody else, or deleted between the two
            is_current = False
        if not is_current:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_up(self) -> None:
        """End the claim. The file is deleted while it is still locked. A transfer and who runs it may both end it."""
        with self._ending:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                self._path.unlink(missing_ok=True)
                os.close(descriptor)


class RestartedError(Exception):
    """Another thread has begun the file anew: the parts of before are no more."""


class Partial:
    """The file under way at `path`, of a known size. Its methods may be called from several threads."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._journal_path = path.with_name(f"{path.name}.parts")
        self._mutex = threading.Lock()
        self._hashing = threading.Lock()
        self._data = self._journal = -1
        # Which of the layouts that a file has had the numbers of parts belong to.
        self.layout = 0
        self._lay_out(PART_BYTES)

    def _lay_out(self, part_bytes: int) -> None:
        self.layout += 1
        self.part_bytes = part_bytes
        self.counts = [0] * -(-self.size_bytes // part_bytes)
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether an earlier transfer has left something to go on with."""
        return self._journal_path.exists()

    @property
    def done_bytes(self) -> int:
        """How much has arrived."""
        return sum(self.counts)

    @property
    def sha256(self) -> str:
        """The sha256 of what has been hashed: of everything, once it `completes`."""
        return self._digest.hexdigest()

    def open(self) -> None:
        """Open the file, taking over what an earlier transfer has left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not self._take_over():
            self.restart()

    def close(self) -> None:
        """Stop writing; what has arrived stays."""
        with self._mutex:
            for descriptor in (self._data, self._journal):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data = self._journal = -1

    def restart(self, *, whole: bool = False) -> int:
        """Begin anew with nothing; with `whole` in one part, for servers that send nothing else. Return what is lost."""
        with self._hashing, self._mutex:
            lost_bytes = self.done_bytes
            self._lay_out(max(self.size_bytes, 1) if whole else PART_BYTES)
            os.ftruncate(self._data, 0)
            os.ftruncate(self._journal, 0)
            header = _NUMBER.pack(self.part_bytes) + _NUMBER.pack(self.size_bytes)
            os.pwrite(self._journal, header + bytes(_NUMBER.size * len(self.counts)), 0)
        return lost_bytes

    def discard(self) -> None:
        """Delete the file and its journal."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def end_journal(self) -> None:
        """Forget how far the parts got: the file is complete."""
        self._journal_path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._data)

    def span(self, index: int) -> tuple[int, int]:
        """Return where a part begins and ends."""
        start = index * self.part_bytes
        return start, min(start + self.part_bytes, self.size_bytes)

    def missing(self) -> list[int]:
        """Return the parts that are not complete."""
        return [index for index in range(len(self.counts)) if self._lacks(index)]

    def _lacks(self, index: int) -> bool:
        start, stop = self.span(index)
        return self.counts[index] < stop - start

    def count(self, index: int, layout: int) -> int:
        """Return how much of a part has arrived. Raises RestartedError."""
        with self._mutex:
            if layout != self.layout:
                raise RestartedError
            return self.counts[index]

    def write(self, index: int, block: bytes, layout: int | None = None) -> None:
        """Add to a part of a layout, the present one by default.

        Raises RestartedError, and ValueError where the transfer has been closed, or the part would overflow.
        """
        with self._mutex:
            if layout not in {None, self.layout}:
                raise RestartedError
            start, stop = self.span(index)
            at = start + self.counts[index]
            if self._data < 0:
                raise ValueError("the transfer has ended")
            if at + len(block) > stop:
                raise ValueError("more bytes than were asked for")
            view = memoryview(block)
            while view:
                num = os.pwrite(self._data, view, at)
                view, at = view[num:], at + num
            self.counts[index] = at - start
            os.pwrite(self._journal, _NUMBER.pack(at - start), _NUMBER.size * (2 + index))

    def advance_hash(self) -> None:
        """Hash what has arrived without a gap.

        Does nothing while another thread is at it: that one goes on with what has arrived meanwhile.
        """
        while self._hashable() and self._hashing.acquire(blocking=False):
            try:
                self._hash_to(self._front())  # nobody begins the file anew meanwhile
            finally:
                self._hashing.release()

    def completes(self) -> bool:
        """Tell whether everything has arrived and been hashed; to one caller only."""
        with self._mutex:
            is_first = self._hashed == self.size_bytes and not self._is_complete
            self._is_complete |= is_first
        return is_first

    def _hashable(self) -> bool:
        with self._mutex:
            front = self._front()
            is_far = front == self.size_bytes or front - self._hashed >= _HASH_STEP_BYTES
            return front > self._hashed and is_far

    def _front(self) -> int:
        """Return how much has arrived without a gap, from the beginning."""
        for index in range(self._hashed // self.part_bytes, len(self.counts)):
            if self._lacks(index):
                return self.span(index)[0] + self.counts[index]
        return self.size_bytes

    def _hash_to(self, end: int) -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while self._hashed < end:
            with self._mutex:  # a transfer that is closed meanwhile must not read another file's bytes
                if self._data < 0:
                    raise ValueError("the transfer has ended")
                view = buffer[: min(BLOCK_BYTES, end - self._hashed)]
                num = os.preadv(self._data, [view], self._hashed)
            if num == 0:
                raise ValueError("the file has become shorter")
            self._digest.update(view[:num])
            self._hashed += num

    def _take_over(self) -> bool:
        """Read the journal of an earlier transfer; False where there is none that fits."""
        journal = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        try:
            part_bytes, size_bytes, *counts = (number for (number,) in _NUMBER.iter_unpack(journal))
        except (struct.error, ValueError):
            return False
        if part_bytes == 0 or size_bytes != self.size_bytes or len(counts) != -(-size_bytes // part_bytes):
            return False
        self._lay_out(part_bytes)
        end = max((self.span(index)[0] + count for index, count in enumerate(counts) if count), default=0)
        if end > os.fstat(self._data).st_size:
            return False
        self.counts = [min(count, _length(self.span(index))) for index, count in enumerate(counts)]
        return True


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]
