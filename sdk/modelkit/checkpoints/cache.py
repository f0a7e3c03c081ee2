"""The cache of checkpoints: one file per content, shared by all models, and folders of links to them.

    blobs/sha256/ab/abcd...    a content, complete and verified: it came here by a rename, and is read-only
    versions/KEY               the sha256 of a file whose source names it in another way (a git blob id, an ETag)
    partial/KEY, KEY.parts     a transfer under way or cut off, and how far each part of it got; KEY.lock is who works on it
    checkpoints/NAME/          a checkpoint's folder: links to blobs, made aside and renamed
    checkpoints/NAME.json      what it is, as modelkit.lock has it; its time of change is the last use
    pulled/DIGEST/             a version that was served by its name, which `versions.local` makes

Whoever fetches holds `.lock` shared, whoever prunes holds it alone. A process that serves from a checkpoint's folder holds
the folder's record, one that serves a version that version's folder, so that nobody prunes them away.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelkit.checkpoints.base import BLOCK_BYTES, SourceFile
from modelkit.checkpoints.lock import LockedCheckpoint
from modelkit.errors import LoadError

__all__ = [
    "Cache",
    "KeptCheckpoint",
    "PulledVersion",
    "cache_dir",
    "disk_error",
    "hash_file",
    "sync_file",
    "sync_folder",
    "version_key",
]

_MAX_NAME = 64


def cache_dir() -> Path:
    """Return the cache's folder: MODELKIT_CACHE_DIR, else modelkit in the user's cache folder."""
    given = os.environ.get("MODELKIT_CACHE_DIR")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelkit"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCheckpoint:
    """A checkpoint's folder in the cache, and when it was last used (seconds since 1970)."""

    folder: Path
    checkpoint: LockedCheckpoint
    last_used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledVersion:
    """A version that was served by its name: its folder, when it was last used, and what it takes on the disk."""

    folder: Path
    last_used: float
    size_bytes: int


class Cache:
    """The cache in one folder. Every method may raise LoadError where the folder cannot be read or written."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_dir()

    def check(self) -> None:
        """Raise LoadError where the cache's folder is something else: an empty cache is none that cannot be read."""
        try:
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            next(self.root.glob("*"), None)
        except OSError as error:
            raise LoadError(
                f"the cache {self.root} cannot be read: {error.strerror}",
                cure="let MODELKIT_CACHE_DIR name a folder, or unset it",
            ) from error

    # ------------------------------------------------------------------------------------------------------- contents

    def blob(self, sha256: str) -> Path:
        """Return where a content is, or would be."""
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def find_blob(self, sha256: str, size_bytes: int) -> Path | None:
        """Return a content that is there, with the size it must have."""
        blob = self.blob(sha256)
        try:
            return blob if blob.stat().st_size == size_bytes else None
        except OSError:
            return None

    def partial(self, key: str) -> Path:
        """Return where a transfer is written until it is complete."""
        return self.root / "partial" / key

    def add_blob(self, draft: Path, sha256: str) -> Path:
        """Take over a file whose content has been verified and is on the disk; the caller has synced it."""
        blob = self.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if draft.stat().st_nlink == 1:  # else it is another cache's file too
            draft.chmod(0o444)
        draft.replace(blob)
        sync_folder(blob.parent)
        return blob

    def known_sha256(self, key: str) -> str | None:
        """Return the sha256 of a version that was fetched before."""
        try:
            known = (self.root / "versions" / key).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return known if re.fullmatch("[0-9a-f]{64}", known) else None

    def note_sha256(self, key: str, sha256: str) -> None:
        """Remember which content a version has."""
        _write(self.root / "versions" / key, sha256 + "\n")

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def find_checkpoint(self, checkpoint: LockedCheckpoint) -> Path | None:
        """Return a checkpoint's folder where it is complete: each file there, with its size. Notes that it was used."""
        folder = self._folder(checkpoint)
        record = folder.with_name(f"{folder.name}.json")
        if not record.is_file() or not _is_complete(folder, checkpoint):
            return None
        with contextlib.suppress(OSError):  # a cache that is mounted read-only serves as well
            os.utime(record)
        return folder

    def find_resolved(self, is_wanted: Callable[[LockedCheckpoint], bool]) -> LockedCheckpoint | None:
        """Return the complete checkpoint that was used last of those that `is_wanted`."""
        kept = sorted(self.list_checkpoints(), key=lambda each: each.last_used, reverse=True)
        found = (each for each in kept if is_wanted(each.checkpoint))
        return next((each.checkpoint for each in found if _is_complete(each.folder, each.checkpoint)), None)

    def add_checkpoint(self, checkpoint: LockedCheckpoint) -> Path:
        """Make a checkpoint's folder, all or nothing, of blobs that are all there; return it.

        One that is whole stays as it is, with its record: another process may serve from it, and holds that record.
        """
        there = self.find_checkpoint(checkpoint)
        if there is not None:
            return there
        folder = self._folder(checkpoint)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            for file in checkpoint.files:
                link = draft / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                depth = file.path.count("/") + 2
                target = self.blob(file.sha256).relative_to(self.root)
                link.symlink_to(Path(*[".."] * depth, target))
            _write(folder.with_name(f"{folder.name}.json"), checkpoint.model_dump_json(exclude_defaults=True))
            if folder.exists():  # damaged
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(FileExistsError):
                draft.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise disk_error(error, folder) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return folder

    def list_checkpoints(self) -> list[KeptCheckpoint]:
        """Return every checkpoint of the cache, by name."""
        kept = []
        for record in sorted((self.root / "checkpoints").glob("*.json")):
            try:
                checkpoint = LockedCheckpoint.model_validate_json(record.read_text(encoding="utf-8"))
                last_used = record.stat().st_mtime
            except (OSError, ValueError):
                continue
            folder = record.with_name(record.name.removesuffix(".json"))
            kept.append(KeptCheckpoint(folder=folder, checkpoint=checkpoint, last_used=last_used))
        return kept

    def hold(self, folder: Path) -> None:
        """Keep a checkpoint's folder from being pruned as long as this process lives."""
        with contextlib.suppress(OSError):
            record = os.open(folder.with_name(f"{folder.name}.json"), os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(record, fcntl.LOCK_SH)  # never closed: the lock ends with the process

    def remove_checkpoint(self, kept: KeptCheckpoint) -> bool:
        """Delete a checkpoint's folder; False where a process serves from it. Its blobs stay until they are pruned."""
        record = kept.folder.with_name(f"{kept.folder.name}.json")
        try:
            stream = record.open("rb")
        except FileNotFoundError:  # another process has pruned meanwhile
            return True
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            record.unlink()
            shutil.rmtree(kept.folder, ignore_errors=True)
        return True

    # ------------------------------------------------------------------------------------------------ versions, pulled

    def pulled(self, digest: str) -> Path:
        """Return where a version of this digest is, or would be."""
        return self.root / "pulled" / digest.rpartition(":")[2]

    def hold_pulled(self, folder: Path) -> None:
        """Say that a version is used now, and keep it from being pruned as long as this process lives."""
        with contextlib.suppress(OSError):
            os.utime(folder)
            fcntl.flock(os.open(folder, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)  # never closed

    def list_pulled(self) -> list[PulledVersion]:
        """Return every version that was served by its name; one that is being pulled is hidden and left out."""
        return [
            PulledVersion(folder=folder, last_used=folder.stat().st_mtime, size_bytes=_tree_size(folder))
            for folder in sorted((self.root / "pulled").glob("[!.]*"))
            if folder.is_dir()
        ]

    def remove_pulled(self, version: PulledVersion) -> bool:
        """Delete a version's folder; False where a process serves from it."""
        try:
            held = os.open(version.folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(version.folder, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(held)
        return True

    def _folder(self, checkpoint: LockedCheckpoint) -> Path:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", checkpoint.where).strip("-")[-_MAX_NAME:] or "checkpoint"
        return self.root / "checkpoints" / f"{slug}-{checkpoint.identity[:16]}"

    # ------------------------------------------------------------------------------------------------- who works on it

    @contextmanager
    def fetching(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the cache so that nobody prunes meanwhile; others may fetch too."""
        with self._hold(fcntl.LOCK_SH, on_wait):
            yield

    @contextmanager
    def pruning(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the cache alone; `on_wait` is called where a fetch has to end first."""
        with self._hold(fcntl.LOCK_EX, on_wait):
            yield

    @contextmanager
    def _hold(self, mode: int, on_wait: Callable[[], None]) -> Iterator[None]:
        path = self.root / ".lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        except OSError as error:
            raise disk_error(error, self.root) from error
        with stream:
            try:
                fcntl.flock(stream, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(stream, mode)
            yield

    # -------------------------------------------------------------------------------------------------------- pruning

    def unused(self, gone: Iterable[Path] = ()) -> Mapping[Path, int]:
        """Return every file that no checkpoint uses, with its size on the disk; `gone` are folders about to be removed.

        To be called while pruning: a fetch has blobs that no checkpoint uses yet.
        """
        leaving = set(gone)
        kept = [each for each in self.list_checkpoints() if each.folder not in leaving]
        used = {file.sha256 for each in kept for file in each.checkpoint.files}
        found: dict[Path, int] = {}
        for path in sorted((self.root / "blobs").glob("*/*/*")):
            if path.name not in used:
                found[path] = _size_on_disk(path)
        for path in sorted((self.root / "partial").glob("*")):
            found[path] = _size_on_disk(path)
        for path in sorted((self.root / "versions").glob("*")):
            if self.known_sha256(path.name) not in used:
                found[path] = _size_on_disk(path)
        return found

    def sweep(self) -> None:
        """Delete folders without a record and drafts: what a cut-off process has left. To be called while pruning."""
        records = {each.folder for each in self.list_checkpoints()}
        for path in (self.root / "checkpoints").glob("*"):
            if path.is_dir() and path not in records:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".draft":
                path.unlink(missing_ok=True)


def version_key(where: str, file: SourceFile) -> str:
    """Return the name under which a file is known before its content is: its sha256, or its place and version."""
    if file.sha256 is not None:
        return file.sha256
    identity = json.dumps([where, file.path, file.size_bytes, file.version])
    return "v" + hashlib.sha256(identity.encode()).hexdigest()


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while num := stream.readinto(buffer):
            digest.update(buffer[:num])
            on_bytes(num)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Bring a file that was written to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path) -> LoadError:
    """Return what it means that the cache cannot be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LoadError(
            f"the disk is full: {path} could not be written",
            cure="`modelkit cache prune` deletes what no checkpoint uses; or let MODELKIT_CACHE_DIR name another disk",
        )
    return LoadError(
        f"{path} cannot be written: {error.strerror or error}",
        cure="let MODELKIT_CACHE_DIR name a folder for checkpoints that you may write",
    )


def _is_complete(folder: Path, checkpoint: LockedCheckpoint) -> bool:
    try:
        return all((folder / file.path).stat().st_size == file.size_bytes for file in checkpoint.files)
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Write a small file in one step, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.draft")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _tree_size(folder: Path) -> int:
    """Return what the files of a folder take; a link takes nothing."""
    return sum(_size_on_disk(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size_on_disk(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512)
