"""What the parts of a version are called in manifests; its weights are `registry.modelpack`'s."""

from typing import Final

__all__ = [
    "CONFIG",
    "CYCLONEDX",
    "IN_TOTO",
    "LOCK",
    "NO_PLATFORM",
    "PACKAGE",
    "PACKAGE_BUNDLE",
    "PACKAGE_MANIFEST",
    "RECORD",
    "SIGNATURES",
]

PACKAGE: Final = "application/vnd.modelkit.package.v1+json"
PACKAGE_MANIFEST: Final = "application/vnd.modelkit.package.manifest.v1+json"
PACKAGE_BUNDLE: Final = "application/vnd.modelkit.package.bundle.v1.tar"
CONFIG: Final = "application/vnd.modelkit.config.v1+json"
SIGNATURES: Final = "application/vnd.modelkit.signatures.v1+json"
LOCK: Final = "application/vnd.modelkit.lock.v1+json"
RECORD: Final = "application/vnd.modelkit.benchmark.v1+json"
CYCLONEDX: Final = "application/vnd.cyclonedx+json"
IN_TOTO: Final = "application/vnd.in-toto+json"

# For what is no image: whoever pulls the version as an image passes over it. BuildKit marks attestations so.
NO_PLATFORM: Final = {"architecture": "unknown", "os": "unknown"}
