"""The one shape every source of checkpoints has: it lists files, and it opens a range of one.

Everything else (what is wanted, where it is kept, resuming, retrying, verifying) is the same for all of them and lives in
`selection`, `cache` and `fetch`. A source is used from several threads at once.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelkit.errors import LoadError

__all__ = [
    "BLOCK_BYTES",
    "BrokenTransferError",
    "ChangedFileError",
    "CheckpointSource",
    "Listing",
    "NoRangesError",
    "SourceFile",
    "checked_path",
    "token_of",
]

# What is read and written at a time.
BLOCK_BYTES = 1024**2

_MAX_PATH_CHARACTERS = 1024


class BrokenTransferError(LoadError):
    """A transfer stopped half-way, or the server is busy: the same request may succeed a moment later."""

    def __init__(self, message: str, *, cure: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, cure=cure or "try again: what has arrived is kept")
        self.retry_after_s = retry_after_s


class ChangedFileError(LoadError):
    """A file is no longer what the listing, or an earlier part of it, said it is."""

    def __init__(self, path: str, where: str) -> None:
        super().__init__(
            f"{path} changed at {where} while it was fetched: nothing of it counts",
            cure="try again; where it was meant to change, `modelkit lock --update` pins the new files",
        )


class NoRangesError(LoadError):
    """The server sends whole files only, from their beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a checkpoint as its source describes it, before anything of it is read.

    `path` is relative, with slashes. `sha256` is None where the source does not know it. `version` tells contents of the
    same path apart (an ETag, a git blob id); "" where only the sha256 does. `git_blob_id` is the SHA-1 that git gives the
    content, where the source is a git repository and the file lies in it.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    version: str = ""
    git_blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Every file of a checkpoint, and what its revision stands for now (a commit), None where there are none."""

    revision: str | None
    files: tuple[SourceFile, ...]


class CheckpointSource(ABC):
    """A place that has a checkpoint. Making one touches nothing; every method may raise LoadError with the cure.

    `where` names it in messages, such as "org/name" or "s3://bucket/prefix"; it holds no secret.
    """

    where: str

    @abstractmethod
    def list_files(self) -> Listing:
        """Return every file there is, whatever the config wants of them."""

    @abstractmethod
    def open(
        self, file: SourceFile, start: int = 0, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Return the bytes from `start` up to `stop` (the end by default), in blocks of any size.

        Raises BrokenTransferError, while opening or reading, for what may succeed when tried again;
        ChangedFileError where the file is not the one that was listed, NoRangesError where only `start=0, stop=None`
        would work.
        """

    def copy_on_disk(self, file: SourceFile) -> Path | None:  # noqa: ARG002 - most sources have none
        """Return a file of this machine that should have the content; whoever uses it verifies it."""
        return None

    def download(
        self,
        file: SourceFile,  # noqa: ARG002
        target: Path,  # noqa: ARG002
        on_bytes: Callable[[int], None],  # noqa: ARG002
    ) -> bool:
        """Write a whole file to `target` by a way of the source's own; False where `open` is the way."""
        return False

    def close(self) -> None:
        """Let go of connections."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_path(path: str, where: str) -> str:
    """Return a path that a source gave, if it stays inside the checkpoint's folder. Raises LoadError where it does not."""
    parts = path.split("/")
    is_plain = path.isprintable() and "\\" not in path and len(path) <= _MAX_PATH_CHARACTERS
    if not is_plain or any(part in {"", ".", ".."} for part in parts):
        raise LoadError(
            f"{where} lists a file called {path!r}, which could be written outside the checkpoint's folder",
            cure="do not use this checkpoint: such a name is no accident",
        )
    return path


def token_of(variable: str | None) -> str | None:
    """Return the token in the variable that `token_env` names, None without one. Raises LoadError where it is not set."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise LoadError(
            f"the environment variable {variable}, which checkpoints.token_env names, is not set",
            cure=f"export {variable}=..., or remove checkpoints.token_env where none is needed",
        )
    if not (token.isascii() and token.isprintable()):
        raise LoadError(
            f"the token in {variable} has characters that no header can carry",
            cure=f"export {variable} anew, as it was given to you",
        )
    return token
