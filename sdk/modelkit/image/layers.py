"""Layers of an image as tar archives that are the same bytes for the same files: sorted, owned by root, without a date.

A small layer is written to a file and compressed. Weights are not: compression gains nothing on them and takes minutes,
so their layer is a tar that exists only while it is read.
"""

import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelkit.image.cache import cache_dir
from modelkit.image.requirements import ImageFile
from modelkit.registry import Content, Descriptor, FilePart

__all__ = [
    "GZIP_LAYER",
    "RAW_LAYER",
    "Entry",
    "Layer",
    "folder_entries",
    "group_by_size",
    "raw_layer",
    "write_layer",
]

RAW_LAYER = "application/vnd.oci.image.layer.v1.tar"
GZIP_LAYER = f"{RAW_LAYER}+gzip"

# Enough to fill a connection, few enough that Docker's limit of 127 layers is far.
_GROUP_BYTES = 512 * 1024**2
# Fast: a code layer is small, and what dependencies weigh is mostly compiled code.
_GZIP_LEVEL = 4
_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * (2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a layer, by its path from the root without a leading slash: a file, a link, or a folder."""

    name: str
    source: Path | bytes | None = None
    mode: int = 0o644
    link: str = ""

    @property
    def size_bytes(self) -> int:
        """The size of its content."""
        if isinstance(self.source, Path):
            return self.source.stat().st_size
        return len(self.source or b"")

    def header(self) -> bytes:
        """Return its header, with the long forms of GNU tar where a name or a size needs them."""
        info = tarfile.TarInfo(self.name)
        info.mode = self.mode
        if self.link:
            info.type, info.linkname = tarfile.SYMTYPE, self.link
        elif self.source is None:
            info.type = tarfile.DIRTYPE
        else:
            info.size = self.size_bytes
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")

    def content(self) -> Iterator[bytes]:
        """Yield its content, filled up to whole blocks."""
        size = self.size_bytes
        if isinstance(self.source, Path):
            yield from FilePart(self.source, size)()
        elif self.source:
            yield self.source
        if size % _BLOCK:
            yield b"\0" * (-size % _BLOCK)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: what it is for, its blob, and the digest of the blob uncompressed, which the image's config names."""

    name: str
    descriptor: Descriptor
    diff_id: str
    content: Content
    unpacked_bytes: int


def write_layer(name: str, entries: Iterable[Entry], path: Path) -> Layer:
    """Write a compressed layer to `path`."""
    blob, uncompressed, unpacked_bytes = _Hashed(path), hashlib.sha256(), 0
    # No name and no time in the header of gzip.
    with blob, gzip.GzipFile("", "wb", _GZIP_LEVEL, blob, mtime=0) as archive:
        for piece in _tar(entries):
            uncompressed.update(piece)
            unpacked_bytes += len(piece)
            archive.write(piece)
    descriptor = Descriptor(GZIP_LAYER, f"sha256:{blob.sha256.hexdigest()}", blob.size_bytes)
    content = FilePart(path, blob.size_bytes)
    return Layer(name, descriptor, f"sha256:{uncompressed.hexdigest()}", content, unpacked_bytes)


def raw_layer(name: str, folder: str, files: Sequence[ImageFile]) -> Layer:
    """Return an uncompressed layer of files below `folder`. It is read once for its digest, which is then remembered."""
    entries = [Entry(f"{folder}/{file.name}", file.path) for file in files]
    note = _note(entries)
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        digest, size_bytes = str(known["digest"]), int(known["size_bytes"])
    except (OSError, ValueError, KeyError):
        sha256, size_bytes = hashlib.sha256(), 0
        for piece in _tar(entries):
            sha256.update(piece)
            size_bytes += len(piece)
        digest = f"sha256:{sha256.hexdigest()}"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"digest": digest, "size_bytes": size_bytes}), encoding="utf-8")
    return Layer(name, Descriptor(RAW_LAYER, digest, size_bytes), digest, lambda: _tar(entries), size_bytes)


def group_by_size(files: Sequence[ImageFile]) -> list[list[ImageFile]]:
    """Divide files, in their order, into groups of half a gibibyte or one larger file."""
    groups: list[list[ImageFile]] = []
    room = 0
    for file in files:
        size = file.path.stat().st_size
        if size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(file)
        room -= size
    return groups


def _tar(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield a tar of entries, with the folders that they are in."""
    made: set[str] = set()
    ordered = sorted(entries, key=lambda entry: entry.name)
    given = {entry.name for entry in ordered}
    for entry in ordered:
        for parent in reversed(PurePosixPath(entry.name).parents):
            folder = parent.as_posix()
            if folder != "." and folder not in made | given:
                yield Entry(folder, mode=0o755).header()
                made.add(folder)
        yield entry.header()
        if entry.source is not None:
            yield from entry.content()
    yield _END


def _note(entries: Sequence[Entry]) -> Path:
    """Return where the digest of these files, as they are now, is kept."""
    digest = hashlib.sha256()
    for entry in entries:
        assert isinstance(entry.source, Path)
        status = entry.source.stat()
        fact = (
            entry.name,
            str(entry.source),
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
            status.st_dev,
        )
        digest.update(repr(fact).encode())
    return cache_dir() / "weights" / f"{digest.hexdigest()[:32]}.json"


class _Hashed(io.RawIOBase):
    """A new file that knows the digest of what was written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: Any) -> int:
        """Write and count."""
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def close(self) -> None:
        """Close the file too."""
        if not self.closed:
            self._file.close()
        super().close()


def folder_entries(folder: Path, prefix: str) -> Iterator[Entry]:
    """Yield all files below a folder, executable where they are, with `prefix` before their names."""
    for path in sorted(folder.rglob("*")):
        name = f"{prefix}/{path.relative_to(folder).as_posix()}"
        if path.is_symlink():
            yield Entry(name, link=str(path.readlink()), mode=0o777)
        elif path.is_file():
            yield Entry(name, path, 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
