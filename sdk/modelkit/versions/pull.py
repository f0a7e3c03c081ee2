"""Makes a model folder of a version again: the package, modelkit.lock, the weights, each file verified; and the record.

The folder is made aside and moved when it is whole. Weights that have arrived stay in the folder beside it when a pull
is cut off, and the next one goes on with the others.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from modelkit.checkpoints.cache import Cache, sync_file
from modelkit.checkpoints.lock import DEFAULT_NAME, LOCK_NAME, Lock, LockedCheckpoint
from modelkit.errors import LoadError, RegistryError, UsageError
from modelkit.package import unpack
from modelkit.progress import NO_PROGRESS, TransferProgress, size_text
from modelkit.registry.content import PIECE_BYTES, verified
from modelkit.registry.modelpack import WeightLayer, check_complete, check_path
from modelkit.registry.transfer import in_parallel
from modelkit.versions.record import attached_record, write_record
from modelkit.versions.version import Version

__all__ = ["PulledModel", "pull", "pulled_model"]

_WORKERS = 4
_DONE = ".done"
_LOCK = ".lock"
WEIGHTS_DIR = "checkpoints"


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model folder that was pulled, and where each checkpoint of the version is.

    `environment` and `settings` (--env, --set) were laid over its config.yaml as it was uploaded; `overrides` are all
    settings, with those that make it use the weights in it, where config.yaml looks for them elsewhere. `notes` say what
    of the version is not in the folder, which is whole without it.
    """

    folder: Path
    checkpoints: Mapping[str, Path]
    environment: str | None = None
    settings: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def pull(version: Version, folder: Path, *, progress: TransferProgress = NO_PROGRESS) -> PulledModel:
    """Write a version into a folder that is not there yet, or is empty.

    Raises UsageError where it holds anything, LoadError where it cannot be written, RegistryError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there already, and pull overwrites nothing",
            cure="name another folder with --to, or remove that one",
        )
    places = {name: _place(version, name) for name in version.weights}
    try:
        with (
            _draft_folder(folder, version.index.digest) as draft,
            tempfile.TemporaryFile(dir=draft) as package,
        ):
            files = _files(version, places)
            # First and whole: a damaged one is called that, and not after an hour of weights.
            package.writelines(verified(version.store.read_blob(version.bundle), version.bundle))
            _fetch_weights(version, places, draft, progress)
            package.seek(0)
            unpack(iter(partial(package.read, PIECE_BYTES), b""), draft, files)
            _check_files(files, draft)
            _write_lock(version, draft)
            _keep_weights(version, places, draft)
            notes = _put_record(version, draft)
            _finish(draft, folder)
    except OSError as error:
        raise LoadError(
            f"cannot write {folder}: {error.strerror or error}",
            cure="make room or name another folder with --to",
        ) from error
    return replace(pulled_model(version, folder), notes=notes)


def _write_lock(version: Version, draft: Path) -> None:
    """Put the lock of the settings in the place of the package's, where some were laid over its config.yaml."""
    if version.lock is not None and version.settings != (None, ()):
        (draft / LOCK_NAME).write_bytes(version.lock)


def _put_record(version: Version, draft: Path) -> tuple[str, ...]:
    """Put the record of the last benchmark where `modelkit bench` would; return a note where it cannot be had."""
    try:
        record = attached_record(version.store, version.index.digest)
    except RegistryError as error:
        return (f"the folder has no record of a benchmark: {error.message}",)
    if record is not None:
        write_record(draft, record)
    return ()


def pulled_model(version: Version, folder: Path) -> PulledModel:
    """Return what is in a folder that a version was pulled into."""
    environment, settings = version.settings
    places = _place_of_checkpoints(version, folder)
    overrides = (*settings, *_overrides(version, folder, places))
    return PulledModel(folder, places, environment, settings, overrides)


def _place_of_checkpoints(version: Version, folder: Path) -> dict[str, Path]:
    """Return where each checkpoint of a pulled version is: in its folder, or in the cache where its lock looks for it."""
    kept = {name: Cache().find_checkpoint(pinned) for name, pinned in _cached(version).items()}
    return {name: kept.get(name) or folder / _place(version, name) for name in version.weights}


def _cached(version: Version) -> dict[str, LockedCheckpoint]:
    """Return the checkpoints that serving looks for in the cache: those that the lock pins, but folders."""
    lock = None if version.lock is None else Lock.model_validate_json(version.lock)
    pins = {} if lock is None else lock.checkpoints
    return {name: pins[name] for name in version.weights if name in pins and pins[name].type != "local"}


def _keep_weights(version: Version, places: Mapping[str, str], draft: Path) -> None:
    """Move weights into the cache of checkpoints, where whoever serves the folder finds them without the network."""
    cache = Cache()
    for name, pinned in _cached(version).items():
        there = {layer.path: layer.file_sha256 for layer in version.weight_layers(name)}
        if there != {file.path: file.sha256 for file in pinned.files}:
            raise RegistryError(
                "the weights are not those that modelkit.lock pins", cure="upload the version again"
            )
        with cache.fetching():
            for file in pinned.files:
                if cache.find_blob(file.sha256, file.size_bytes) is None:
                    moved = cache.partial(f"{file.sha256}.pulled")
                    moved.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(draft / places[name] / file.path, moved)
                    sync_file(moved)
                    cache.add_blob(moved, file.sha256)
            cache.add_checkpoint(pinned)
        shutil.rmtree(draft / places[name])


def _overrides(version: Version, folder: Path, places: Mapping[str, Path]) -> Iterator[str]:
    for name, place in places.items():
        section = _section(version, name)
        if not place.is_relative_to(folder):
            continue
        path, key = place.relative_to(folder).as_posix(), _key(name)
        if section.get("type") != "local":
            yield f"{key}.type=local"
        if section.get("path") != path:
            yield f"{key}.path={path}"


def _key(name: str) -> str:
    """Return the path of a checkpoint's section for --set, where a name with dots stands in quotes."""
    if name == DEFAULT_NAME:
        return "checkpoints"
    return f'checkpoints.additional."{name}"' if "." in name else f"checkpoints.additional.{name}"


def _section(version: Version, name: str) -> Mapping[str, Any]:
    """Return what config.yaml says of a checkpoint."""
    section = version.config.get("checkpoints") or {}
    return section if name == DEFAULT_NAME else (section.get("additional") or {}).get(name) or {}


def _place(version: Version, name: str) -> str:
    """Return where in the folder a checkpoint goes: where config.yaml looks for it, if that is inside."""
    section = _section(version, name)
    path = str(section.get("path") or "")
    inside = path and not path.startswith(("/", "~")) and ".." not in path.split("/")
    return path if section.get("type") == "local" and inside else f"{WEIGHTS_DIR}/{name}"


@contextmanager
def _draft_folder(folder: Path, digest: str) -> Iterator[Path]:
    """Give the folder that is moved to its place when it is whole; one process at a time works on it."""
    encoded = digest.partition(":")[2][:12]
    draft = folder.absolute().with_name(f".{folder.absolute().name}.{encoded}.pull")
    draft.mkdir(parents=True, exist_ok=True)
    with (draft / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is pulling into {folder}", cure="wait for it") from None
        try:
            yield draft
        except BaseException:
            if not any((draft / _DONE).glob("*")):  # nothing that the next pull could go on with
                shutil.rmtree(draft, ignore_errors=True)
            raise


def _fetch_weights(
    version: Version, places: Mapping[str, str], draft: Path, progress: TransferProgress
) -> None:
    layers = {name: version.weight_layers(name) for name in places}
    for each in layers.values():
        check_complete(each)
    done = draft / _DONE
    done.mkdir(exist_ok=True)
    todo = [
        (draft / places[name] / layer.path, layer)
        for name, found in layers.items()
        for layer in found
        if not _note(done, name, layer).exists() or not (draft / places[name] / layer.path).exists()
    ]
    if todo:
        todo_bytes = sum(layer.descriptor.size_bytes for _, layer in todo)
        _check_disk(draft, todo_bytes)
        progress.begin(len(todo), todo_bytes)
    names = {id(layer): name for name, found in layers.items() for layer in found}

    def fetch(item: tuple[Path, WeightLayer]) -> None:
        path, layer = item
        _fetch_layer(version, layer, path, progress)
        _note(done, names[id(layer)], layer).touch()

    in_parallel(fetch, todo, _WORKERS)
    for name, found in layers.items():
        _check_wholes(found, draft / places[name])


def _check_disk(draft: Path, todo_bytes: int) -> None:
    free_bytes = shutil.disk_usage(draft).free
    if todo_bytes > free_bytes:
        raise LoadError(
            f"{size_text(todo_bytes)} have to be pulled, and {draft.parent} has {size_text(free_bytes)} free",
            cure="make room or name another folder with --to",
        )


def _check_wholes(layers: Sequence[WeightLayer], folder: Path) -> None:
    """Compare each file with its own hash: that of a single layer is the same, that of parts has to be computed."""
    num_parts = Counter(layer.path for layer in layers)

    def check(layer: WeightLayer) -> None:
        sha256 = layer.descriptor.digest.partition(":")[2]
        if num_parts[layer.path] > 1:
            with (folder / layer.path).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != layer.file_sha256:
            raise RegistryError(
                f"{layer.path} is not what the version says it is",
                cure="do not use it; upload the version again",
            )

    in_parallel(check, [layer for layer in layers if layer.offset == 0], _WORKERS)


def _note(done: Path, checkpoint: str, layer: WeightLayer) -> Path:
    """Return the note that says that a layer has arrived; it names the content and the place."""
    what = f"{checkpoint} {layer.path} {layer.offset} {layer.descriptor.digest}"
    return done / hashlib.sha256(what.encode()).hexdigest()


def _fetch_layer(version: Version, layer: WeightLayer, path: Path, progress: TransferProgress) -> None:
    name, told = layer.descriptor.name, 0
    progress.started(name, layer.descriptor.size_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        if os.fstat(descriptor).st_size != layer.file_size_bytes:
            file.truncate(layer.file_size_bytes)
        file.seek(layer.offset)
        for piece in verified(version.store.read_blob(layer.descriptor), layer.descriptor):
            file.write(piece)
            told += len(piece)
            progress.advanced(name, len(piece))
        os.fsync(descriptor)
    progress.finished(name)


def _files(version: Version, places: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the package's table of contents.

    Raises RegistryError where it names a file of the weights: it would take the place of what was verified, and go into
    the cache under that one's hash. Nor may it name what says which weights have arrived.
    """
    files = version.files
    taken = {
        f"{place}/{layer.path}" for name, place in places.items() for layer in version.weight_layers(name)
    }
    for path in files:
        check_path(path)
        if path in taken or path.partition("/")[0] in {_DONE, _LOCK}:
            raise RegistryError(
                f"the package holds {path}, which belongs to the weights or to the pull itself",
                cure="do not use this version: modelkit does not write such packages",
            )
    return files


def _check_files(files: Mapping[str, Mapping[str, Any]], draft: Path) -> None:
    """Compare what was unpacked with the package's table of contents."""
    for path, said in files.items():
        try:
            with (draft / path).open("rb") as file:
                is_same = hashlib.file_digest(file, "sha256").hexdigest() == said["sha256"]
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise RegistryError(f"{path} is not what the version says it is", cure="upload the version again")


def _finish(draft: Path, folder: Path) -> None:
    shutil.rmtree(draft / _DONE)
    if folder.is_dir():
        folder.rmdir()
    (draft / _LOCK).unlink()
    draft.rename(folder)
