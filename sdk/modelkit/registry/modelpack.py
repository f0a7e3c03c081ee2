"""A checkpoint as an artifact, in the format of the CNCF model specification (ModelPack): a raw layer for each file.

A large file may be several layers; the annotation `io.modelkit.file` then says which part of which file each is.
Source: https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelkit.errors import RegistryError
from modelkit.registry.base import TITLE, Descriptor, Manifest

__all__ = [
    "CHECKPOINT",
    "FILE",
    "MODEL_CODE",
    "MODEL_CONFIG",
    "MODEL_DOC",
    "MODEL_FILEPATH",
    "MODEL_MANIFEST",
    "MODEL_WEIGHT",
    "MODEL_WEIGHT_CONFIG",
    "PART",
    "SETTINGS",
    "WeightLayer",
    "check_complete",
    "check_path",
    "read_weights",
]

MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
MODEL_WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
MODEL_DOC: Final = "application/vnd.cncf.model.doc.v1.raw"
MODEL_CODE: Final = "application/vnd.cncf.model.code.v1.raw"

# Annotations.
MODEL_FILEPATH: Final = "org.cncf.model.filepath"
PART: Final = "io.modelkit.part"  # of an entry of a version: image, package, weights
CHECKPOINT: Final = "io.modelkit.checkpoint"  # the name of the checkpoint that weights belong to
SETTINGS: Final = "io.modelkit.settings"  # JSON, of a package: what was laid over config.yaml
FILE: Final = "io.modelkit.file"  # JSON: the file that a layer is, or is a part of


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A layer of a weights artifact, and where its bytes belong: `offset` bytes into the file `path`."""

    descriptor: Descriptor
    path: str
    offset: int
    file_size_bytes: int
    file_sha256: str


def read_weights(manifest: Manifest) -> list[WeightLayer]:
    """Return the layers of a weights artifact. Raises RegistryError for a path that leads out of the checkpoint's folder."""
    layers = manifest.blobs[1:] if "config" in manifest.document else manifest.blobs
    return [_read_layer(descriptor) for descriptor in layers]


def _read_layer(descriptor: Descriptor) -> WeightLayer:
    try:
        said: dict[str, Any] = json.loads(descriptor.annotations.get(FILE) or "{}")
        # oras names the files of any artifact by their title.
        path = str(
            said.get("path") or descriptor.annotations.get(MODEL_FILEPATH) or descriptor.annotations[TITLE]
        )
        size, offset = int(said.get("size", descriptor.size_bytes)), int(said.get("offset", 0))
        sha256 = str(said.get("sha256") or descriptor.digest.partition(":")[2])
    except (KeyError, ValueError, AttributeError) as error:
        raise RegistryError(
            f"the layer {descriptor.digest} of the weights does not say which file it is",
            cure="upload it again",
        ) from error
    check_path(path)
    return WeightLayer(descriptor, path, offset, size, sha256)


def check_path(path: str) -> None:
    """Raise RegistryError for a path of a version that would lead out of the folder that it is written to."""
    parts = path.split("/")
    if "\\" in path or not path.isprintable() or any(part in {"", ".", ".."} for part in parts):
        raise RegistryError(
            f"the version has a part called {path!r}, which would be written outside of its folder",
            cure="do not use this version: such a name is no accident",
        )


def check_complete(layers: Sequence[WeightLayer]) -> None:
    """Raise RegistryError where the parts of a file do not make up the whole."""
    files: dict[str, list[WeightLayer]] = {}
    for layer in layers:
        files.setdefault(layer.path, []).append(layer)
    for path, parts in files.items():
        end = 0
        for part in sorted(parts, key=lambda each: each.offset):
            if part.offset != end:
                break
            end += part.descriptor.size_bytes
        if end != parts[0].file_size_bytes:
            raise RegistryError(f"the version lacks a part of {path}", cure="upload it again")
