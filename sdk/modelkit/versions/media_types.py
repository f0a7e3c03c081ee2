"""What the parts of a version are called in manifests.

The weights follow the CNCF model specification, so that other tools know them for what they are.
Source: https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

from typing import Final

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "CYCLONEDX",
    "FILE",
    "IN_TOTO",
    "LOCK",
    "MODEL_CODE",
    "MODEL_CONFIG",
    "MODEL_DOC",
    "MODEL_FILEPATH",
    "MODEL_MANIFEST",
    "MODEL_WEIGHT",
    "MODEL_WEIGHT_CONFIG",
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

MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
MODEL_WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
MODEL_DOC: Final = "application/vnd.cncf.model.doc.v1.raw"
MODEL_CODE: Final = "application/vnd.cncf.model.code.v1.raw"

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
IN_TOTO: Final = "application/vnd.in-toto+json"

# Annotations.
MODEL_FILEPATH: Final = "org.cncf.model.filepath"
PART: Final = "io.modelkit.part"  # image, package, weights
CHECKPOINT: Final = "io.modelkit.checkpoint"  # the name of the checkpoint that weights belong to
FILE: Final = "io.modelkit.file"  # JSON: the file that a layer is, or is a part of

# For what is no image: whoever pulls the version as an image passes over it. BuildKit marks attestations so.
NO_PLATFORM: Final = {"architecture": "unknown", "os": "unknown"}
