"""The build context: a folder with exactly what the image gets, and nothing else of this machine.

It is kept for each model folder, at the same place each time, for BuildKit sends only what has changed in a folder
since it last saw it. Large files are hard links, so that a checkpoint is neither read nor doubled.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from modelkit.errors import BuildError
from modelkit.image.requirements import ImageFile

__all__ = ["content_time_s", "folder_files", "stage"]

_LINKED_BYTES = 4 * 1024**2
_READABLE = 0o444


def folder_files(folder: Path) -> tuple[ImageFile, ...]:
    """Return every file of a checkpoint's folder, by name; links are followed, for the Hub's cache is made of them."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.relative_to(folder).parts
    ]
    return tuple(ImageFile(path.relative_to(folder).as_posix(), path.resolve()) for path in sorted(found))


def content_time_s(data: bytes) -> int:
    """Return a time made of a file's content, for its copy in the context.

    BuildKit takes a file of the same size and time for unchanged. The real time would do, but it goes into the layer:
    the same content would be another layer after each checkout.
    """
    return int.from_bytes(hashlib.sha256(data).digest()[:4]) // 4


def stage(context: Path, texts: Mapping[str, str], files: Iterable[ImageFile]) -> None:
    """Make `context` hold these texts and files and nothing else. Raises BuildError where it cannot be written."""
    try:
        wanted = {name: text.encode() for name, text in texts.items()}
        linked = {file.name: file.path for file in files}
        _remove_others(context, {*wanted, *linked})
        for name, data in wanted.items():
            _write(context / name, data, executable=False)
        for name, path in linked.items():
            _place(context / name, path)
    except OSError as error:
        raise BuildError(
            f"the build context in {context} cannot be written: {error.strerror or error}",
            cure="make room there, or let XDG_CACHE_HOME name another folder",
        ) from error


def _remove_others(context: Path, wanted: set[str]) -> None:
    for folder, folders, names in os.walk(context, topdown=False):
        here = Path(folder)
        for name in names:
            if (here / name).relative_to(context).as_posix() not in wanted:
                (here / name).unlink()
        for name in folders:
            if not any((here / name).iterdir()):
                (here / name).rmdir()


def _place(target: Path, path: Path) -> None:
    """Link a large file, or copy one that a link will not do for: another disk, or one that only its owner may read."""
    status = path.stat()
    if status.st_size < _LINKED_BYTES:
        _write(target, path.read_bytes(), executable=bool(status.st_mode & 0o100))
        return
    if target.exists():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    if status.st_mode & _READABLE == _READABLE:
        try:
            os.link(path, target)
        except OSError:
            pass  # another file system
        else:
            return
    shutil.copyfile(path, target)
    target.chmod(0o644)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _write(target: Path, data: bytes, *, executable: bool) -> None:
    """Write a copy that everybody may read, whatever the author's umask is: the image's user owns nothing of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    target.chmod(0o755 if executable else 0o644)
    time_s = content_time_s(data)
    os.utime(target, (time_s, time_s))
