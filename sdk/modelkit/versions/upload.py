"""Uploads a version: everything first, then its number, then `latest`.

A number is given once and never moves. Whatever ends an upload, `latest` names a version that is whole; the next upload
sends what is missing. One that changes nothing gets no number and sends nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelkit.errors import UsageError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import CopyResult, Draft, Manifest, Store, copy
from modelkit.versions.signatures import breaking_changes
from modelkit.versions.version import Version, read_version

__all__ = [
    "LATEST",
    "BreakingChangeError",
    "Preflight",
    "UploadResult",
    "check_upload",
    "last_version",
    "upload",
    "version_numbers",
]

LATEST = "latest"

_NUMBERED = re.compile(r"v([1-9][0-9]*)")
_MAX_CLAIMS = 20


class BreakingChangeError(UsageError):
    """The new version would break the callers of the last one; `changes` says how, one sentence each."""

    def __init__(self, last: str, changes: Sequence[str]) -> None:
        self.changes = tuple(changes)
        lines = "".join(f"\n  {change}" for change in changes)
        super().__init__(
            f"this breaks those who call {last}:{lines}",
            cure="keep what they call, or upload with --allow-breaking once they are ready",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadResult:
    """A version that is there now. `is_new` is False where the content was already the last version."""

    tag: str
    digest: str
    is_new: bool
    copied: CopyResult
    breaking: tuple[str, ...] = ()


def version_numbers(store: Store) -> list[int]:
    """Return the numbers of all versions in a store, in order."""
    return sorted(int(match[1]) for tag in store.tags() if (match := _NUMBERED.fullmatch(tag)))


def last_version(store: Store) -> tuple[str, Version] | None:
    """Return the last version of a store with its tag, None where it has none."""
    numbers = version_numbers(store)
    return (f"v{numbers[-1]}", read_version(store, f"v{numbers[-1]}")) if numbers else None


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was looked at before the work: the last version, and what the new one breaks."""

    last_tag: str | None
    last_digest: str | None
    breaking: tuple[str, ...]


def check_upload(store: Store, signatures: Mapping[str, Any], *, allow_breaking: bool = False) -> Preflight:
    """See whether an upload can succeed, before weights are hashed and sent.

    Raises RegistryError where the store cannot be written, BreakingChangeError unless `allow_breaking`.
    """
    store.check_writable()
    last = last_version(store)
    if last is None:
        return Preflight(None, None, ())
    last_tag, version = last
    changes = breaking_changes(version.signatures, signatures)
    if changes and not allow_breaking:
        raise BreakingChangeError(f"{store.name}:{last_tag}", changes)
    return Preflight(last_tag, version.index.digest, tuple(changes))


def upload(
    draft: Draft,
    index: Manifest,
    store: Store,
    preflight: Preflight,
    *,
    tag: str | None = None,
    attach: Callable[[Store, Manifest], None] | None = None,
    progress: TransferProgress = NO_PROGRESS,
) -> UploadResult:
    """Upload a composed version and return its number; `preflight` is what `check_upload` has found.

    `tag` is a number that has to be free, such as "v7", or one more name that moves to this version, such as "prod".
    `attach` adds what refers to the version (an SBOM, a signature); it is called before the version gets its number.
    Raises UsageError where the number is taken, RegistryError.
    """
    copied = copy(draft, store, index.digest, progress=progress)
    if attach is not None:
        attach(store, index)
    wanted = tag if tag is not None and _NUMBERED.fullmatch(tag) else None
    same = preflight.last_tag if preflight.last_digest == index.digest else None
    number = same if same is not None and wanted in {None, same} else _claim(store, index, wanted)
    if tag is not None and tag != number:
        _move(store, index, tag)
    if number == f"v{version_numbers(store)[-1]}":  # another upload may have been faster
        _move(store, index, LATEST)
    return UploadResult(
        tag=number, digest=index.digest, is_new=number != same, copied=copied, breaking=preflight.breaking
    )


def _claim(store: Store, index: Manifest, wanted: str | None) -> str:
    """Give the version its number: the wanted one, or the next that is free. Raises UsageError."""
    if wanted is not None:
        if store.claim_tag(index, wanted):
            return wanted
        raise UsageError(
            f"{store.name}:{wanted} is there already, and a version never changes",
            cure=f"leave the number out: the next one is v{version_numbers(store)[-1] + 1}",
        )
    for _ in range(_MAX_CLAIMS):
        following = f"v{max(version_numbers(store), default=0) + 1}"
        if store.claim_tag(index, following):
            return following
    raise UsageError(
        f"others upload to {store.name} faster than this version gets its number", cure="upload it again"
    )


def _move(store: Store, index: Manifest, tag: str) -> None:
    found = store.find_manifest(tag)
    if found is None or found.digest != index.digest:
        store.put_manifest(index, tag)
