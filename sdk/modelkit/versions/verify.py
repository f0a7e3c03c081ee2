"""Checks a version: everything is there, nothing is damaged, it is what its lock pinned, and a key has signed it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.errors import RegistryError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import Descriptor, Manifest
from modelkit.registry.content import verified
from modelkit.registry.modelpack import check_complete
from modelkit.registry.transfer import in_parallel
from modelkit.versions.attachments import attached
from modelkit.versions.media_types import CYCLONEDX, IN_TOTO
from modelkit.versions.record import attached_record, measured_at
from modelkit.versions.signing import find_signer, load_public_key
from modelkit.versions.version import Version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["Check", "verify"]

_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `is_fine` is None where there was nothing to look at."""

    name: str
    is_fine: bool | None
    detail: str


def verify(
    version: Version,
    *,
    key: Path | None = None,
    shallow: bool = False,
    progress: TransferProgress = NO_PROGRESS,
) -> list[Check]:
    """Check a version. With `shallow`, blobs are only looked for; otherwise each is read and hashed.

    Raises UsageError where the key cannot be read, before anything else is.
    """
    public_key = None if key is None else load_public_key(key)
    checks: list[tuple[str, Callable[[], tuple[bool | None, str]]]] = [
        ("content", lambda: _check_blobs(version, progress, shallow=shallow)),
        ("weights", lambda: _check_weights(version)),
        ("lock", lambda: _check_lock(version)),
        ("sbom", lambda: _check_attached(version, CYCLONEDX)),
        ("provenance", lambda: _check_provenance(version)),
        ("record", lambda: _check_record(version)),
        ("signature", lambda: _check_signature(version, key, public_key)),
    ]
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        return Check(name, *check())
    except RegistryError as error:
        return Check(name, is_fine=False, detail=error.message)
    except (AttributeError, KeyError, TypeError, ValueError):  # who may push may attach anything
        return Check(name, is_fine=False, detail="it is not written as it should be")


def _manifests(version: Version) -> Iterator[Manifest]:
    yield version.package
    yield from version.weights.values()
    for image in version.images:
        yield version.store.get_manifest(image.digest)


def _check_blobs(version: Version, progress: TransferProgress, *, shallow: bool) -> tuple[bool, str]:
    blobs = list({blob.digest: blob for each in _manifests(version) for blob in each.blobs}.values())
    size = sum(blob.size_bytes for blob in blobs)
    if not shallow:
        progress.begin(len(blobs), size)

    def check(blob: Descriptor) -> str:
        if shallow:
            return "" if version.store.has_blob(blob) else blob.name
        progress.started(blob.name, blob.size_bytes)
        for piece in verified(version.store.read_blob(blob), blob):
            progress.advanced(blob.name, len(piece))
        progress.finished(blob.name)
        return ""

    missing = [name for name in in_parallel(check, blobs, _WORKERS) if name]
    if missing:
        return False, f"{len(missing)} of {len(blobs)} blobs are missing, {missing[0]} the first"
    return True, f"{len(blobs)} blobs, {size:,} bytes, {'there' if shallow else 'each with its digest'}"


def _check_weights(version: Version) -> tuple[bool | None, str]:
    if not version.weights:
        return None, "the version has no weights of its own"
    for name in version.weights:
        check_complete(version.weight_layers(name))
    num = sum(len({layer.path for layer in version.weight_layers(name)}) for name in version.weights)
    return True, f"{num} files, whole"


def _check_lock(version: Version) -> tuple[bool | None, str]:
    if version.lock is None:
        return None, "the version has no modelkit.lock"
    if not version.weights:
        return None, "there are no weights to compare with it"
    pinned = json.loads(version.lock).get("checkpoints") or {}
    for name in version.weights:
        wanted = {file["path"]: file["sha256"] for file in (pinned.get(name) or {}).get("files", ())}
        there = {layer.path: layer.file_sha256 for layer in version.weight_layers(name)}
        if wanted and wanted != there:
            different = next(
                path for path in sorted({*wanted, *there}) if wanted.get(path) != there.get(path)
            )
            return False, f"{name}/{different} is not the file that modelkit.lock pins"
    return True, "the weights are those that it pins"


def _check_attached(version: Version, kind: str) -> tuple[bool | None, str]:
    found = attached(version.store, version.index.digest, kind)
    if not found:
        return None, "none is attached"
    return True, f"sha256:{hashlib.sha256(found[-1]).hexdigest()[:12]}"


def _check_provenance(version: Version) -> tuple[bool | None, str]:
    found = attached(version.store, version.index.digest, IN_TOTO)
    if not found:
        return None, "none is attached"
    statement = json.loads(found[-1])
    named = {f"sha256:{subject['digest'].get('sha256')}" for subject in statement["subject"]}
    if version.index.digest not in named:
        return False, "it is about another version"
    return True, f"made {statement['predicate']['runDetails']['metadata']['finishedOn']}"


def _check_record(version: Version) -> tuple[bool | None, str]:
    record = attached_record(version.store, version.index.digest)
    return (None, "none is attached") if record is None else (True, f"measured {measured_at(record)}")


def _check_signature(
    version: Version, key: Path | None, public_key: "EllipticCurvePublicKey | None"
) -> tuple[bool | None, str]:
    if public_key is None:
        return None, "not looked at: give the public key with --key"
    signer = find_signer(version.store, version.index.digest, [public_key])
    return (
        signer is not None,
        f"signed by {key}" if signer is not None else f"the key {key} has not signed it",
    )
