"""The hashes of large files, remembered: a checkpoint is read for them once, and not for each upload.

What is remembered holds for a file of the same place, size, time of change and inode. It is no proof: whoever receives a
blob hashes it again, and refuses one that is not what was announced.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from modelkit.checkpoints.cache import cache_dir
from modelkit.errors import UsageError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import FilePart
from modelkit.registry.transfer import in_parallel

__all__ = ["hash_parts", "part_ranges"]

_WORKERS = 4


def part_ranges(size_bytes: int, part_bytes: int) -> list[tuple[int, int]]:
    """Return (start, size) of each part of a file, all of `part_bytes` but the last; one for an empty file."""
    starts = range(0, max(size_bytes, 1), part_bytes)
    return [(start, min(part_bytes, size_bytes - start)) for start in starts]


def hash_parts(
    files: Sequence[tuple[Path, int, Sequence[tuple[int, int]]]],
    progress: TransferProgress = NO_PROGRESS,
    *,
    anew: bool = False,
) -> list[list[str]]:
    """Return the sha256 of each range of each file, given as (path, size, ranges); unknown ones are computed in parallel.

    `anew` reads the files whatever is remembered: they may be damaged.

    Raises UsageError where a file cannot be read.
    """
    known = [{} if anew else _recall(path, ranges) for path, _, ranges in files]
    todo = [
        (number, start, size)
        for number, (_, _, ranges) in enumerate(files)
        for start, size in ranges
        if (start, size) not in known[number]
    ]
    if todo:
        progress.begin(len(todo), sum(size for _, _, size in todo))

    def work(item: tuple[int, int, int]) -> str:
        number, start, size = item
        return _hash(FilePart(files[number][0], size, start), progress)

    for (number, start, size), sha256 in zip(todo, in_parallel(work, todo, _WORKERS), strict=True):
        known[number][start, size] = sha256
    for number in {number for number, _, _ in todo}:
        _remember(files[number][0], known[number])
    return [[known[number][each] for each in ranges] for number, (_, _, ranges) in enumerate(files)]


def _hash(part: FilePart, progress: TransferProgress) -> str:
    name = part.path.name
    progress.started(name, part.size_bytes)
    sha256 = hashlib.sha256()
    try:
        for piece in part():
            sha256.update(piece)
            progress.advanced(name, len(piece))
    except OSError as error:
        raise UsageError(
            f"{part.path} cannot be read: {error.strerror}",
            cure="see that it is there, and to its permissions",
        ) from error
    progress.finished(name)
    return sha256.hexdigest()


def _record(path: Path) -> Path | None:
    """Return where a file's hashes are remembered; None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    identity = f"{path.resolve()} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    return cache_dir() / "digests" / hashlib.sha256(identity.encode()).hexdigest()


def _recall(path: Path, ranges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    record = _record(path)
    try:
        found = {} if record is None else json.loads(record.read_text(encoding="ascii"))
        return {each: found[key] for each in ranges if (key := f"{each[0]}+{each[1]}") in found}
    except (OSError, ValueError):
        return {}


def _remember(path: Path, known: dict[tuple[int, int], str]) -> None:
    record = _record(path)
    if record is None:
        return
    text = json.dumps({f"{start}+{size}": sha256 for (start, size), sha256 in known.items()})
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_name(f".{record.name}.{os.getpid()}")
        draft.write_text(text, encoding="ascii")
        draft.replace(record)
