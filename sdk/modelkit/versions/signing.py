"""Signatures of versions, in the format of cosign: `cosign verify --key cosign.pub --insecure-ignore-tlog REF` checks them.

A signature is a small JSON document that names the digest, signed with an ECDSA key, and attached to the version under
the tag that cosign looks for.
Source: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelkit.errors import UsageError
from modelkit.registry import Descriptor, Draft, Manifest, Store, copy
from modelkit.registry.base import MANIFEST
from modelkit.registry.content import verified

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

__all__ = ["find_signer", "load_private_key", "load_public_key", "sign"]

PASSWORD_VARIABLE = "MODELKIT_SIGN_PASSWORD"  # noqa: S105 - the name of a variable

_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_ARTIFACT: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out sign.key; openssl ec -in sign.key -pubout -out sign.pub"


def load_private_key(path: Path) -> "EllipticCurvePrivateKey":
    """Read a private ECDSA key (PEM); MODELKIT_SIGN_PASSWORD opens one that is encrypted. Raises UsageError."""
    data = _read(path)
    if b"ENCRYPTED SIGSTORE" in data or b"ENCRYPTED COSIGN" in data:
        raise UsageError(
            f"{path} is encrypted in cosign's own way, which modelkit does not read",
            cure=f"make a key with: {_NEW_KEY}; `cosign import-key-pair` takes it too",
        )
    password = os.environ.get(PASSWORD_VARIABLE)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password.encode() if password else None)
    except TypeError:
        state = "is encrypted" if not password else "is not encrypted"
        cure = f"set {PASSWORD_VARIABLE}" if not password else f"unset {PASSWORD_VARIABLE}"
        raise UsageError(f"the key {path} {state}", cure=cure) from None
    except ValueError:
        raise UsageError(
            f"{path} is no private key in PEM, or the password is wrong", cure=f"make one with: {_NEW_KEY}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} is no ECDSA key", cure=f"make one with: {_NEW_KEY}")
    return key


def load_public_key(path: Path) -> "EllipticCurvePublicKey":
    """Read a public ECDSA key (PEM). Raises UsageError."""
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except ValueError:
        raise UsageError(f"{path} is no public key in PEM", cure="give the public half of the key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(f"{path} is no ECDSA key", cure="give the public half of the key that signed")
    return key


def _read(path: Path) -> bytes:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UsageError(
            "signatures need the library cryptography", cure="pip install 'modelkit-sdk[sign]'"
        ) from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be read: {error.strerror}", cure="correct its path"
        ) from error


def sign(store: Store, index: Manifest, key: "EllipticCurvePrivateKey") -> None:
    """Sign a version that is in a store; a signature of the same key that is there already is enough."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if find_signer(store, index.digest, [key.public_key()]) is not None:
        return
    payload = _json(
        {
            "critical": {
                "identity": {"docker-reference": store.name},
                "image": {"docker-manifest-digest": index.digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    draft, tag = Draft(), _tag(index.digest)
    layers = [_keep(draft, store, layer) for layer in _layers(store, index.digest)]
    layers.append(draft.add_bytes(payload, _PAYLOAD, **{_SIGNATURE: signature}))
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": _ARTIFACT,
        "config": draft.add_bytes(_json(config), _IMAGE_CONFIG).to_json(),
        "layers": [layer.to_json() for layer in layers],
        "subject": index.descriptor().to_json(),
    }
    copy(draft, store, draft.add_manifest(document).digest, tags=[tag])


def _keep(draft: Draft, store: Store, layer: Descriptor) -> Descriptor:
    return draft.add_from(store, layer)


def find_signer(store: Store, digest: str, keys: Sequence["EllipticCurvePublicKey"]) -> int | None:
    """Return which of the keys has signed a version, None where none has."""
    for layer in _layers(store, digest):
        payload = b"".join(verified(store.read_blob(layer), layer))
        for number, key in enumerate(keys):
            if _has_signed(key, layer, payload, digest):
                return number
    return None


def _has_signed(key: "EllipticCurvePublicKey", layer: Descriptor, payload: bytes, digest: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        signature = base64.b64decode(layer.annotations.get(_SIGNATURE, ""), validate=True)
        key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        named: Any = json.loads(payload)["critical"]["image"]["docker-manifest-digest"]
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return False
    return bool(named == digest)


def _layers(store: Store, digest: str) -> list[Descriptor]:
    """Return the signatures of a version, whoever made them."""
    tag = _tag(digest)
    if store.find_manifest(tag) is None:
        return []
    return [layer for layer in store.get_manifest(tag).blobs if layer.media_type == _PAYLOAD]


def _tag(digest: str) -> str:
    return f"{digest.replace(':', '-')}.sig"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
