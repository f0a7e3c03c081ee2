"""What the parts of a version are called in manifests; its weights are `registry.modelpack`'s."""

from typing import Final

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "CYCLONEDX",
    "IN_TOTO",
    "LOCK",
    "NO_PLATFORM",
    "PACKAGE",
    "PACKAGE_BUNDLE",
    "PACKAGE_MANIFEST",
    "PART",
    "SIGNATURES",
]

PACKAGE: Final = "application/vnd.modelkit.package.v1+json"
PACKAGE_MANIFEST: Final = "application/vnd.modelkit.package.manifest.v1+json"
PACKAGE_BUNDLE: Final = "application/vnd.modelkit.package.bundle.v1.tar"
CONFIG: Final = "application/vnd.modelkit.config.v1+json"
SIGNATURES: Final = "application/vnd.modelkit.signatures.v1+json"
LOCK: Final = "application/vnd.modelkit.lock.v1+json"


CYCLONEDX: Final = "application/vnd.cyclonedx+json"
IN_TOTO: Final = "application/vnd.in-toto+json"

# Annotations.
PART: Final = "io.modelkit.part"  # image, package, weights
CHECKPOINT: Final = "io.modelkit.checkpoint"  # the name of the checkpoint that weights belong to

# For what is no image: whoever pulls the version as an image passes over it. BuildKit marks attestations so.
NO_PLATFORM: Final = {"architecture": "unknown", "os": "unknown"}
