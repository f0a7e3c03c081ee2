"""Reads a checkpoint's weights into the page cache while its engine imports, which takes seconds before the first file is opened.

Then the load finds them in memory. By several threads, because one alone, like an engine that touches page after page of a
mapping, leaves most disks idle. What it is worth: benchmarks/load_speed.py.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["ReadAhead", "reading_ahead"]

_NUM_READERS = 4
_BLOCK_BYTES = 8 * 2**20
# Less is read in the time that an engine imports in any case.
_LEAST_BYTES = 2**30
_PROBES = 16


class ReadAhead:
    """Reads files in the background, until they are read or it is stopped. The bytes are thrown away; the system keeps them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stopping = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(paths, part), name=f"read-ahead-{part}", daemon=True)
            for part in range(_NUM_READERS)
        ]

    def start(self) -> None:
        """Begin to read."""
        for reader in self._readers:
            reader.start()

    def wait(self) -> None:
        """Wait until all is read."""
        for reader in self._readers:
            reader.join()

    def stop(self) -> None:
        """Read no further than the blocks that are on their way; nobody has to wait for those."""
        self._stopping.set()

    def _read(self, paths: Sequence[Path], part: int) -> None:
        buffer = bytearray(_BLOCK_BYTES)
        with suppress(OSError):  # the engine will say what is wrong with a file
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    for start in range(part * _BLOCK_BYTES, path.stat().st_size, _NUM_READERS * _BLOCK_BYTES):
                        if self._stopping.is_set():
                            return
                        os.preadv(file.fileno(), [buffer], start)


@contextmanager
def reading_ahead(checkpoint: Path | None) -> Iterator[None]:
    """Read a checkpoint's weights ahead until the block ends, where that is worth it."""
    paths = sorted(checkpoint.glob("*.safetensors")) if checkpoint is not None else []
    if not _is_worth_it(paths):
        yield
        return
    ahead = ReadAhead(paths)
    ahead.start()
    try:
        yield
    finally:
        ahead.stop()


def _is_worth_it(paths: Sequence[Path]) -> bool:
    """Tell whether files are large, not in the page cache, and would stay there until they are loaded."""
    try:
        size_bytes = sum(path.stat().st_size for path in paths)
        return _LEAST_BYTES <= size_bytes <= _free_bytes() // 2 and not all(map(_is_cached, paths))
    except (OSError, ValueError):
        return False


def _free_bytes() -> int:
    """Return the memory that can be had without swapping; 0 where the system does not say (it is no Linux)."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _is_cached(path: Path) -> bool:
    """Tell whether places all over a file can be read without waiting for the disk."""
    byte = bytearray(1)
    with path.open("rb", buffering=0) as file:
        for number in range(_PROBES):
            try:
                os.preadv(file.fileno(), [byte], path.stat().st_size * number // _PROBES, os.RWF_NOWAIT)
            except OSError:  # it would have to wait, or this file system cannot tell
                return False
    return True
