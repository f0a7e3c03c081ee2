"""A checkpoint that is a folder on this machine: used where it lies, never copied."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

from modelkit.checkpoints.base import BLOCK_BYTES, CheckpointSource, Listing, SourceFile, checked_path
from modelkit.checkpoints.lock import LOCK_NAME
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError

__all__ = ["LocalSource"]


class LocalSource(CheckpointSource):
    """The folder `checkpoints.path`, relative to the model folder."""

    def __init__(self, config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None) -> None:
        del revision
        if config.path is None:
            raise LoadError(
                "a local checkpoint needs 'checkpoints.path'",
                cure="name the folder with the weights in config.yaml, such as path: checkpoint",
            )
        self.where = config.path
        self._model_dir = model_dir
        self._path = model_dir / Path(config.path).expanduser()

    @property
    def folder(self) -> Path:
        """The folder, an absolute path. Raises LoadError where it is not there, or is empty."""
        folder = self._path.resolve()
        if not folder.exists():
            raise LoadError(f"there is no checkpoint folder {folder}", cure=self._cure())
        if not folder.is_dir():
            raise LoadError(
                f"the checkpoint {folder} is not a folder", cure="name the folder that holds the file"
            )
        if not any(folder.iterdir()):
            raise LoadError(f"the checkpoint folder {folder} is empty", cure=self._cure())
        return folder

    def list_files(self) -> Listing:
        """Return the files below the folder. A link to a file is that file; one to a folder is not followed.

        Hidden files and folders, such as those that downloads leave behind, are no part of a checkpoint, nor is the lock
        where the checkpoint is the model folder itself.
        """
        folder, files = self.folder, []
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".") and name != LOCK_NAME):
                path = Path(parent, name)
                relative = checked_path(path.relative_to(folder).as_posix(), str(folder))
                files.append(self._file(path, relative))
        return Listing(None, tuple(files))

    def _file(self, path: Path, relative: str) -> SourceFile:
        if not path.is_file():
            what = "a link to nothing" if path.is_symlink() else "no plain file"
            raise LoadError(f"{path} is {what}", cure="remove it, or put the file there")
        status = path.stat()
        version = f"{status.st_size}-{status.st_mtime_ns}"
        return SourceFile(path=relative, size_bytes=status.st_size, version=version)

    @contextmanager
    def open(self, file: SourceFile, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """Return a range of a file."""
        with (self._path / file.path).open("rb", buffering=0) as stream:
            stream.seek(start)
            yield _blocks(stream, (file.size_bytes if stop is None else stop) - start)

    def _cure(self) -> str:
        script = self._model_dir / "train.py"
        if script.is_file():
            return f"make it with: python {script}"
        return "put the weights there, or correct 'checkpoints.path' in config.yaml"


def _blocks(stream: RawIOBase, num_bytes: int) -> Iterator[bytes]:
    read = stream.read
    while num_bytes > 0 and (block := read(min(BLOCK_BYTES, num_bytes))):
        num_bytes -= len(block)
        yield block
