"""What is attached to a version after the fact, and found by its digest: an SBOM, where it came from, signatures."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelkit.registry import Draft, Manifest, Store, copy
from modelkit.registry.base import EMPTY_CONFIG, MANIFEST
from modelkit.registry.content import verified

__all__ = ["attach", "attached"]


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
    found = [each for each in store.referrers(digest) if each.artifact_type == artifact_type]
    manifests = [store.get_manifest(each.digest) for each in found]
    blobs = [manifest.blobs[-1] for manifest in manifests]
    return [b"".join(verified(store.read_blob(blob), blob)) for blob in blobs]
