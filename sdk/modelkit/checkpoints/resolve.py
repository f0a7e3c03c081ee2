"""From config.yaml and modelkit.lock to folders with weights: what serve, fetch and lock do about checkpoints.

With a lock, exactly what it pins is used. Without one, what the sources have now is fetched, and a lock is written, so that
the next start, here or elsewhere, has the same files. Weights that are in place are used without a request.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from modelkit.checkpoints import open_source
from modelkit.checkpoints.base import BrokenTransferError, CheckpointSource, Listing, SourceFile
from modelkit.checkpoints.cache import Cache
from modelkit.checkpoints.digests import hash_parts
from modelkit.checkpoints.fetch import fetch
from modelkit.checkpoints.local import LocalSource
from modelkit.checkpoints.lock import (
    DEFAULT_NAME,
    LOCK_NAME,
    Lock,
    LockedCheckpoint,
    LockedFile,
    named_checkpoints,
)
from modelkit.checkpoints.pickles import scan
from modelkit.checkpoints.selection import select
from modelkit.config import CheckpointSourceConfig, Config
from modelkit.errors import ConfigError, LoadError, Problem
from modelkit.progress import NO_PROGRESS, TransferProgress

__all__ = [
    "Drift",
    "Terms",
    "check_lock",
    "discard_damaged",
    "find_checkpoint",
    "is_offline",
    "make_lock",
    "prepare",
]

_TRUE = frozenset({"1", "ON", "TRUE", "YES"})  # as huggingface_hub reads its own variables
_SHORT_COMMIT = 12
_LIST_WAITS_S = (0.5, 1.5)
_LONGEST_LIST_WAIT_S = 30.0

_AnyFile = TypeVar("_AnyFile", SourceFile, LockedFile)


def is_offline() -> bool:
    """Tell whether the environment forbids the network, in the Hub's own way: HF_HUB_OFFLINE=1."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How checkpoints are prepared: where they are kept, whether the network may be used, who hears of it.

    `writes_lock` is off where config.yaml is not what is served (`--set`): its lock must not say what it does not.
    """

    cache: Cache = field(default_factory=Cache)
    offline: bool = field(default_factory=is_offline)
    progress: TransferProgress = NO_PROGRESS
    on_note: Callable[[str], None] = lambda _: None
    on_warning: Callable[[str], None] = lambda _: None
    writes_lock: bool = True


@dataclass(frozen=True, slots=True)
class Drift:
    """How a folder and its lock differ: `differences` have to be mended, `moved` is only told."""

    differences: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


def prepare(config: Config, model_dir: Path, terms: Terms | None = None) -> dict[str, Path]:
    """Return the folder of every checkpoint by its name, fetching what is not there. This may take minutes.

    Raises ConfigError where modelkit.lock was made for another config.yaml, LoadError where a checkpoint cannot be had.
    """
    terms = terms or Terms()
    wanted = named_checkpoints(config.checkpoints)
    if not wanted:
        return {}
    lock = Lock.read(model_dir)
    _refuse_differences(lock, config, model_dir)
    pins = dict(lock.checkpoints) if lock is not None else {}
    folders, resolved = dict[str, Path](), dict[str, LockedCheckpoint]()
    for name, checkpoint in wanted.items():
        if checkpoint.type == "local":
            folders[name] = _use_local(checkpoint, model_dir, pins.get(name), terms)
        elif name in pins:
            _tell_moves(checkpoint, model_dir, pins[name], terms)
            folders[name] = _use_pinned(checkpoint, model_dir, pins[name], terms)
        else:
            resolved[name] = _resolve_unpinned(checkpoint, model_dir, terms)
            folders[name] = _use_pinned(checkpoint, model_dir, resolved[name], terms)
    if resolved:
        locked = _with_local(pins | resolved, wanted, model_dir, terms)
        _write_lock(Lock.of(config, locked), resolved, model_dir, terms)
    return folders


def _with_local(
    pins: Mapping[str, LockedCheckpoint],
    wanted: Mapping[str, CheckpointSourceConfig],
    model_dir: Path,
    terms: Terms,
) -> dict[str, LockedCheckpoint]:
    """Add the folders of this machine to a lock that is about to be written, for a lock without them says too little."""
    if not terms.writes_lock:
        return dict(pins)
    local = {
        name: _hash_local(checkpoint, model_dir, terms)
        for name, checkpoint in wanted.items()
        if checkpoint.type == "local" and name not in pins
    }
    return {**pins, **local}


def find_checkpoint(config: Config, model_dir: Path, name: str = DEFAULT_NAME) -> Path | None:
    """Return the folder of a checkpoint that is in place, None where it would have to be fetched. Asks no network."""
    checkpoint = named_checkpoints(config.checkpoints).get(name)
    if checkpoint is None:
        return None
    if checkpoint.type == "local":
        return LocalSource(checkpoint, model_dir).folder
    lock, cache = Lock.read(model_dir), Cache()
    pinned = lock.checkpoints.get(name) if lock is not None else _find_resolved(checkpoint, cache)
    return None if pinned is None else cache.find_checkpoint(pinned)


def discard_damaged(model_dir: Path, terms: Terms) -> None:
    """Read every file in the cache that the folder's lock pins, and delete what is not what it was."""
    lock = Lock.read(model_dir)
    pins = lock.checkpoints.values() if lock is not None else ()
    blobs = {file.sha256: file for pinned in pins if pinned.type != "local" for file in pinned.files}
    there = {
        file: blob for file in blobs.values() if (blob := terms.cache.find_blob(file.sha256, file.size_bytes))
    }
    with _fetching(terms):
        for sha256, (file, blob) in zip(_hash_all(there, terms), there.items(), strict=True):
            if sha256 != file.sha256:
                blob.unlink(missing_ok=True)
                then = "it is deleted; fetch again without --offline" if terms.offline else "fetching it anew"
                terms.on_warning(f"{file.path} is damaged on this disk: {then}")


def make_lock(config: Config, model_dir: Path, terms: Terms | None = None, *, update: bool = False) -> Lock:
    """Return the lock of a folder, not written yet: what is pinned stays, unless config.yaml asks for something else.

    With `update` everything is resolved anew. Folders on this machine always are: they are the author's own.
    """
    terms = terms or Terms()
    old = None if update else Lock.read(model_dir)
    pins = old.checkpoints if old is not None else {}
    made: dict[str, LockedCheckpoint] = {}
    for name, checkpoint in named_checkpoints(config.checkpoints).items():
        pinned = pins.get(name)
        if checkpoint.type != "local" and pinned is not None and not list(pinned.differences(checkpoint)):
            made[name] = pinned
        elif checkpoint.type == "local":
            made[name] = _hash_local(checkpoint, model_dir, terms)
        else:
            made[name] = _resolve(checkpoint, model_dir, terms)
    return Lock.of(config, made)


def check_lock(config: Config, model_dir: Path, terms: Terms | None = None) -> Drift:
    """Compare a folder with its lock: config.yaml, folders on this machine and, unless offline, where branches are now."""
    terms = terms or Terms()
    lock = Lock.read(model_dir)
    if lock is None:
        return Drift((f"there is no {LOCK_NAME} in {model_dir}",))
    differences, moved = lock.check(config), []
    for name, checkpoint in named_checkpoints(config.checkpoints).items():
        pinned = lock.checkpoints.get(name)
        if pinned is None or list(pinned.differences(checkpoint)):
            continue
        if checkpoint.type == "local":
            differences += _compare(pinned, _hash_local(checkpoint, model_dir, terms))
        elif not terms.offline:
            moved += _what_moved(checkpoint, model_dir, pinned, terms)
    return Drift(tuple(differences), tuple(moved))


# -------------------------------------------------------------------------------------------------------- one checkpoint


def _use_local(
    config: CheckpointSourceConfig, model_dir: Path, pinned: LockedCheckpoint | None, terms: Terms
) -> Path:
    """Return a folder of this machine as it is: looked at, never read through."""
    source = LocalSource(config, model_dir)
    chosen = select(source.list_files().files, config, source.where)
    _scan(config, {file.path: source.folder / file.path for file in chosen}, terms)
    if pinned is not None:
        sizes = {file.path: file.size_bytes for file in chosen}
        then = {file.path: file.size_bytes for file in pinned.files}
        if sizes != then:
            changed = sorted(path for path in sizes.keys() | then.keys() if sizes.get(path) != then.get(path))
            terms.on_warning(
                f"{config.path} is not what {LOCK_NAME} pins: {_listed(changed)} changed; `modelkit lock` takes it over"
            )
    return source.folder


def _use_pinned(
    config: CheckpointSourceConfig, model_dir: Path, pinned: LockedCheckpoint, terms: Terms
) -> Path:
    """Return the folder of exactly these files, fetching what is missing."""
    folder = terms.cache.find_checkpoint(pinned)
    if folder is not None:
        return folder
    with _fetching(terms), open_source(config, model_dir, pinned.commit) as source:
        files = [file.as_source_file() for file in pinned.files]
        missing = [
            file for file in files if terms.cache.find_blob(file.sha256 or "", file.size_bytes) is None
        ]
        if missing:
            _need_network(config, terms)
            fetch(source, missing, terms.cache, terms.progress, terms.on_note)
        _scan(config, {file.path: terms.cache.blob(file.sha256) for file in pinned.files}, terms)
        return terms.cache.add_checkpoint(pinned)


def _resolve_unpinned(config: CheckpointSourceConfig, model_dir: Path, terms: Terms) -> LockedCheckpoint:
    """Return what a checkpoint comes to that no lock pins: what was fetched before where nothing better can be had."""
    if terms.offline or not terms.writes_lock or not os.access(model_dir, os.W_OK):
        known = _find_resolved(config, terms.cache)
        if known is not None:
            return known
    return _resolve(config, model_dir, terms)


def _find_resolved(config: CheckpointSourceConfig, cache: Cache) -> LockedCheckpoint | None:
    return cache.find_resolved(lambda checkpoint: not list(checkpoint.differences(config)))


def _resolve(config: CheckpointSourceConfig, model_dir: Path, terms: Terms) -> LockedCheckpoint:
    """Ask the source what there is now. Files whose sha256 it does not know are fetched for it, into the cache."""
    _need_network(config, terms)
    with _fetching(terms), open_source(config, model_dir) as source:
        terms.on_note(f"asking {source.where} for its files")
        listing, chosen = _list(source, config, terms)
        unknown = [file for file in chosen if file.sha256 is None]
        sha256s = fetch(source, unknown, terms.cache, terms.progress, terms.on_note)
    return _lock_files(config, listing, chosen, sha256s)


def _list(
    source: CheckpointSource, config: CheckpointSourceConfig, terms: Terms
) -> tuple[Listing, tuple[SourceFile, ...]]:
    """Return what there is, and what of it is wanted. A server that stumbles is asked again."""
    for usual_wait_s in _LIST_WAITS_S:
        wait_s = usual_wait_s
        try:
            listing = source.list_files()
            break
        except BrokenTransferError as error:
            if error.retry_after_s is not None:
                wait_s = error.retry_after_s
            if wait_s > _LONGEST_LIST_WAIT_S:
                raise  # the person decides
            terms.on_note(f"{error.message}; trying again in {wait_s:g} s")
            time.sleep(wait_s)
    else:
        listing = source.list_files()
    return listing, select(listing.files, config, source.where)


def _fetching(terms: Terms) -> AbstractContextManager[None]:
    return terms.cache.fetching(lambda: terms.on_note("waiting for `modelkit cache prune` to end"))


def _lock_files(
    config: CheckpointSourceConfig,
    listing: Listing,
    chosen: tuple[SourceFile, ...],
    sha256s: Mapping[str, str],
) -> LockedCheckpoint:
    files = tuple(
        LockedFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256 or sha256s[file.path])
        for file in chosen
    )
    return LockedCheckpoint.of(config, listing.revision, files)


def _hash_local(config: CheckpointSourceConfig, model_dir: Path, terms: Terms) -> LockedCheckpoint:
    """Return the pins of a folder on this machine, which takes reading all of it."""
    source = LocalSource(config, model_dir)
    listing, chosen = _list(source, config, terms)
    folder = source.folder
    wanted = [(folder / file.path, file.size_bytes, [(0, file.size_bytes)]) for file in chosen]
    sha256s = [sha256 for (sha256,) in hash_parts(wanted, terms.progress)]
    by_path = {file.path: sha256 for file, sha256 in zip(chosen, sha256s, strict=True)}
    return _lock_files(config, listing, chosen, by_path)


def _hash_all(places: Mapping[_AnyFile, Path], terms: Terms) -> list[str]:
    """Return the sha256 of each file, in order; read anew, whatever is remembered."""
    wanted = [(path, file.size_bytes, [(0, file.size_bytes)]) for file, path in places.items()]
    return [sha256 for (sha256,) in hash_parts(wanted, terms.progress, anew=True)]


def _scan(config: CheckpointSourceConfig, places: Mapping[str, Path], terms: Terms) -> None:
    """Scan the pickles that are allowed; loading one is still the author's risk, so what it imports is told."""
    for path in config.allow_pickle:
        doubtful = scan(places[path], path, config.repo_id or config.path or config.type)
        if doubtful:
            terms.on_warning(f"the pickle {path} imports what the scanner does not know: {_listed(doubtful)}")


# ------------------------------------------------------------------------------------------------------------ differences


def _refuse_differences(lock: Lock | None, config: Config, model_dir: Path) -> None:
    if lock is None:
        return
    # A folder on this machine is used as it is, wherever it lies: in an image, in a version that was pulled.
    found = lock.check_checkpoints(config, is_needed=lambda checkpoint: checkpoint.type != "local")
    if found:
        cure = "`modelkit lock` pins what config.yaml says now"
        raise ConfigError([Problem(text, cure, path=model_dir / LOCK_NAME) for text in found])


def _compare(then: LockedCheckpoint, now: LockedCheckpoint) -> list[str]:
    """Return what became of a checkpoint's files, a line each."""
    before, after = ({file.path: file for file in each.files} for each in (then, now))
    verbs = {
        path: "is new" if path not in before else "is gone" if path not in after else "has changed"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }
    return [f"{then.where}: {path} {verb}" for path, verb in verbs.items()]


def _tell_moves(
    config: CheckpointSourceConfig, model_dir: Path, pinned: LockedCheckpoint, terms: Terms
) -> None:
    """Warn of a branch that moved, where the source is about to be asked for files anyway."""
    if not terms.offline and terms.cache.find_checkpoint(pinned) is None:
        for moved in _what_moved(config, model_dir, pinned, terms):
            terms.on_warning(f"{moved}; `modelkit lock --update` follows it")


def _what_moved(
    config: CheckpointSourceConfig, model_dir: Path, pinned: LockedCheckpoint, terms: Terms
) -> list[str]:
    """Return what a source has now that differs from the pins; a source that cannot be reached is no difference."""
    if config.type == "http":  # each file has its sha256 in config.yaml: nothing can move
        return []
    try:
        with open_source(config, model_dir) as source:
            listing, chosen = _list(source, config, terms)
    except LoadError as error:
        cure = f". {error.cure[0].upper()}{error.cure[1:]}; or give --offline" if error.cure else ""
        terms.on_warning(f"{pinned.where} could not be asked whether it moved: {error.message}{cure}")
        return []
    if listing.revision is not None:
        if listing.revision == pinned.commit:
            return []
        commits = f"{listing.revision[:_SHORT_COMMIT]}, and {(pinned.commit or '')[:_SHORT_COMMIT]} is locked"
        return [f"{pinned.where}: {pinned.revision} is at {commits}"]
    sizes = {file.path: file.size_bytes for file in chosen}
    if sizes == {file.path: file.size_bytes for file in pinned.files}:
        return []
    return [f"{pinned.where} has other files now than are locked"]


# ------------------------------------------------------------------------------------------------------------------ words


def _need_network(config: CheckpointSourceConfig, terms: Terms) -> None:
    if terms.offline:
        where = config.repo_id or config.path or config.type
        raise LoadError(
            f"{where} is not complete in the cache {terms.cache.root}, and the network may not be used",
            cure="`modelkit fetch` it where there is a network, without --offline and HF_HUB_OFFLINE; or use type: local",
        )


def _write_lock(lock: Lock, resolved: Mapping[str, LockedCheckpoint], model_dir: Path, terms: Terms) -> None:
    what = ", ".join(
        f"{each.where} at {each.commit[:_SHORT_COMMIT]}" if each.commit else each.where
        for each in resolved.values()
    )
    if not terms.writes_lock:
        terms.on_warning(f"{what} is not pinned: `modelkit lock` with the same options does it")
        return
    try:
        lock.write(model_dir)
    except LoadError as error:
        terms.on_warning(f"{what} is not pinned: {error.message}")
    else:
        terms.on_note(f"wrote {LOCK_NAME}: {what}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - what fits into a line
    return ", ".join(names[:3]) + more
