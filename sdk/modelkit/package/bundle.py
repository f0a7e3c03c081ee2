"""A package as one tar: the same bytes for the same files, made while it is read, and unpacked without trust.

Not compressed: what a compressor writes depends on its version, and code is small.
"""

import tarfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from modelkit.errors import UsageError
from modelkit.package.collect import Package, PackagedFile
from modelkit.registry.content import PieceReader

__all__ = ["bundle", "read_member", "unpack"]

_PIECE_BYTES = 1024 * 1024


def bundle(package: Package) -> Callable[[], Iterator[bytes]]:
    """Return the package's tar as content that can be opened again. Reading it raises UsageError where a file has changed."""

    def content() -> Iterator[bytes]:
        for file in package.files:
            yield _header(file)
            left = file.size_bytes
            with file.source.open("rb") as source:
                while piece := source.read(_PIECE_BYTES):
                    left -= len(piece)
                    yield piece
            if left:  # else the tar would be one that nobody can unpack
                raise UsageError(
                    f"{file.source} has changed while it was read",
                    cure="let no other program write into the model folder, or list the file in .modelkitignore",
                )
            yield bytes(-file.size_bytes % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)

    return content


def _header(file: PackagedFile) -> bytes:
    """Return a header that says nothing of this machine: no owner, no time."""
    info = tarfile.TarInfo(file.path)
    info.size = file.size_bytes
    info.mode = 0o755 if file.is_executable else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def unpack(pieces: Iterable[bytes], folder: Path, listed: Container[str] | None = None) -> None:
    """Unpack a bundle into a folder. Raises UsageError where it would write outside, or is no bundle.

    A bundle holds plain files; with `listed`, those of these paths and no others.
    """

    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if not member.isfile() or (listed is not None and member.name not in listed):
            raise tarfile.FilterError(f"it holds {member.name!r}, which is no file of the package")
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(fileobj=PieceReader(pieces), mode="r|") as tar:
            tar.extractall(folder, filter=check)  # noqa: S202 - `check` is stricter than "data"
    except tarfile.TarError as error:
        raise UsageError(
            f"the package cannot be unpacked: {error}",
            cure="do not use it: modelkit does not write such packages",
        ) from error


def read_member(pieces: Iterable[bytes], path: str) -> bytes | None:
    """Return one small file of a bundle, None where it has none of that path; nothing after it is read."""
    with tarfile.open(fileobj=PieceReader(pieces), mode="r|") as tar:
        for member in tar:
            if member.name == path:
                file = tar.extractfile(member)
                return None if file is None else file.read()
    return None
