"""What a long transfer tells while it runs: the core reports, the command line decides how it looks.

Fetching a checkpoint, pushing an image and pulling one are the same thing to a person who waits: so many files, so many
bytes, and how long it will take. Every method may be called from any thread.
"""

from typing import Protocol

__all__ = ["NO_PROGRESS", "TransferProgress", "size_text"]


class TransferProgress(Protocol):
    """Hears how a transfer of several files goes."""

    def begin(self, num_files: int, total_bytes: int) -> None:
        """Say how much there is to transfer, without what is there already; again where more is found."""

    def started(self, name: str, size_bytes: int, done_bytes: int = 0) -> None:
        """Say that a file is under way, `done_bytes` of it from an earlier attempt."""

    def advanced(self, name: str, num_bytes: int) -> None:
        """Say that more of a file has arrived; a negative number takes back what an attempt has lost."""

    def finished(self, name: str) -> None:
        """Say that a file is complete and verified."""


class _NoProgress:
    """Hears nothing."""

    def begin(self, num_files: int, total_bytes: int) -> None: ...

    def started(self, name: str, size_bytes: int, done_bytes: int = 0) -> None: ...

    def advanced(self, name: str, num_bytes: int) -> None: ...

    def finished(self, name: str) -> None: ...


NO_PROGRESS: TransferProgress = _NoProgress()


def size_text(num_bytes: float) -> str:
    """Write a size as people read it: "16.1 GB", "3.4 MB", "812 bytes"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale or (unit == "GB" and num_bytes >= 1e8):  # noqa: PLR2004 - 0.1 GB reads better than 100 MB
            return f"{num_bytes / scale:.1f} {unit}"
    return "1 byte" if num_bytes == 1 else f"{num_bytes:.0f} bytes"
