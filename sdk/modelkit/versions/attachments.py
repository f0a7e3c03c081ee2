"""What is attached to a version after the fact, and found by its digest: an SBOM, where it came from, how fast it is, signatures."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit.registry import Descriptor, Draft, Manifest, Store, copy
from modelkit.registry.base import EMPTY_CONFIG, MANIFEST
from modelkit.registry.content import verified

__all__ = ["CREATED", "attach", "attached", "newest_attached"]

CREATED = "org.opencontainers.image.created"


def attach(
    store: Store,
    subject: Manifest,
    artifact_type: str,
    data: bytes,
    annotations: Mapping[str, str] | None = None,
) -> str:
    """Attach some data to a manifest and return the digest of the attachment; what is attached already stays."""
    draft = Draft()
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": EMPTY_CONFIG.to_json(),
        "layers": [draft.add_bytes(data, artifact_type).to_json()],
        "subject": subject.descriptor().to_json(),
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return copy(draft, store, draft.add_manifest(document).digest).digest


def attached(store: Store, digest: str, artifact_type: str) -> Sequence[bytes]:
    """Return the data of all attachments of a kind, verified."""
    return [_read(store, each) for each in _found(store, digest, artifact_type)]


def newest_attached(store: Store, digest: str, artifact_type: str) -> bytes | None:
    """Return the data of the last attachment of a kind by the time in its annotations, verified; None without any."""
    found = _found(store, digest, artifact_type)
    return _read(store, max(found, key=lambda each: each.annotations.get(CREATED, ""))) if found else None


def _found(store: Store, digest: str, artifact_type: str) -> list[Descriptor]:
    return [each for each in store.referrers(digest) if each.artifact_type == artifact_type]


def _read(store: Store, attachment: Descriptor) -> bytes:
    blob = store.get_manifest(attachment.digest).blobs[-1]
    return b"".join(verified(store.read_blob(blob), blob))
