"""Content that can be opened again: what a transfer needs that may have to begin anew."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.errors import RegistryError
from modelkit.registry.base import Content, Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PIECE_BYTES", "Bytes", "FilePart", "PieceReader", "Pieces", "describe", "verified"]

# Large enough that a piece costs nothing beside its hash, small enough that a dozen of them do not count.
PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bytes:
    """Content in memory: configs, manifests of packages, signatures."""

    data: bytes

    def __call__(self) -> Iterator[bytes]:
        """Yield the bytes."""
        yield self.data


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file, or `size_bytes` of it from `start`."""

    path: Path
    size_bytes: int
    start: int = 0

    def __call__(self) -> Iterator[bytes]:
        """Yield the part in pieces. Raises RegistryError where the file ends before it."""
        left = self.size_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while left:
                piece = file.read(min(PIECE_BYTES, left))
                if not piece:
                    raise RegistryError(
                        f"{self.path} has become shorter while it was read",
                        cure="let no other program write it, and run the command again",
                    )
                left -= len(piece)
                yield piece


def describe(content: Content, media_type: str, **annotations: str) -> Descriptor:
    """Return the descriptor of some content, which is read once for it."""
    sha256, size_bytes = hashlib.sha256(), 0
    for piece in content():
        sha256.update(piece)
        size_bytes += len(piece)
    return Descriptor(media_type, f"sha256:{sha256.hexdigest()}", size_bytes, annotations)


def verified(pieces: Iterable[bytes], descriptor: Descriptor) -> Iterator[bytes]:
    """Pass a blob on, and raise RegistryError at its end where it is not what its descriptor says."""
    sha256, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        sha256.update(piece)
        size_bytes += len(piece)
        if size_bytes > descriptor.size_bytes:
            break
        yield piece
    if size_bytes != descriptor.size_bytes or f"sha256:{sha256.hexdigest()}" != descriptor.digest:
        raise RegistryError(
            f"{descriptor.name} is not what its digest says: damaged, or changed while it was read",
            cure="run the command again; where it repeats, push the content again from an undamaged copy",
        )


class Pieces:
    """Cuts a stream where requests end, wherever its own pieces do; `taken_bytes` counts what was handed out."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.taken_bytes = 0

    def take(self, num_bytes: int) -> Iterator[bytes]:
        """Yield the next `num_bytes`, fewer where the stream ends."""
        while num_bytes:
            piece = self._rest or next(self._pieces, None)
            if piece is None:
                return
            head, self._rest = piece[:num_bytes], piece[num_bytes:]
            num_bytes -= len(head)
            self.taken_bytes += len(head)
            yield head

    def close(self) -> None:
        """Close the stream, where it is one that can be closed."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class PieceReader(RawIOBase):
    """Pieces as a file that is read once, from its beginning to its end: what `tarfile` wants."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer as far as the piece at hand goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        num = min(len(view), len(self._rest))
        view[:num], self._rest = self._rest[:num], self._rest[num:]
        return num
