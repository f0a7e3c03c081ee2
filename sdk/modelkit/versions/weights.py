"""A checkpoint as an artifact in the format of the CNCF model specification: a layer for each file, raw.

A file of more than 512 MiB is several layers, so that a transfer that breaks loses little. Such a layer says in
`io.modelkit.file` which part of which file it is.
Source: https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelkit.checkpoints.digests import hash_parts, part_ranges
from modelkit.errors import UsageError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import Descriptor, Draft, FilePart, Manifest
from modelkit.registry.base import MANIFEST, TITLE
from modelkit.registry.modelpack import (
    CHECKPOINT,
    FILE,
    MODEL_CODE,
    MODEL_CONFIG,
    MODEL_DOC,
    MODEL_FILEPATH,
    MODEL_MANIFEST,
    MODEL_WEIGHT,
    MODEL_WEIGHT_CONFIG,
)

__all__ = ["PART_BYTES", "Checkpoint", "WeightFile", "weigh_folder"]

PART_BYTES = 512 * 1024 * 1024

_FORMATS = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".bin": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
}
_WEIGHT_ENDINGS = frozenset({*_FORMATS, ".onnx", ".npz", ".ckpt", ".h5", ".tflite", ".engine", ".pkl"})
_DOC_ENDINGS = frozenset({".md", ".txt", ".rst", ".pdf", ".png", ".jpg"})
_DOC_NAMES = ("license", "readme", "notice")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of a checkpoint: its path there, with slashes, where it is on this machine, and its hash."""

    path: str
    source: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a model, by the name that config.yaml gives it."""

    name: str
    files: tuple[WeightFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)

    def draft(self, draft: Draft, progress: TransferProgress = NO_PROGRESS) -> Manifest:
        """Add the artifact to a draft and return its manifest."""
        layers = self._layers(draft, progress)
        config = {
            "descriptor": {"name": self.name},
            "config": self._facts(),
            "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        }
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": MODEL_MANIFEST,
            "config": draft.add_bytes(_json(config), MODEL_CONFIG).to_json(),
            "layers": [layer.to_json() for layer in layers],
            "annotations": {CHECKPOINT: self.name},
        }
        return draft.add_manifest(document)

    def _layers(self, draft: Draft, progress: TransferProgress) -> list[Descriptor]:
        # The whole of a large file is hashed beside its parts: its own hash is pinned, those of the parts are not.
        large = [file for file in self.files if file.size_bytes > PART_BYTES]
        ranges = [part_ranges(file.size_bytes, PART_BYTES) for file in large]
        wanted = [
            (file.source, file.size_bytes, [(0, file.size_bytes), *parts])
            for file, parts in zip(large, ranges, strict=True)
        ]
        hashes = dict(zip((file.path for file in large), hash_parts(wanted, progress), strict=True))
        layers: list[Descriptor] = []
        for file in self.files:
            whole, *parts = hashes.get(file.path, [file.sha256, file.sha256])
            if whole != file.sha256:
                raise UsageError(
                    f"{file.source} is not the file that was pinned",
                    cure="fetch it again, or pin the new one with `modelkit lock --update`",
                )
            sizes = part_ranges(file.size_bytes, PART_BYTES)
            layers += [
                draft.add(
                    _descriptor(file, start, size, sha256, len(sizes)), FilePart(file.source, size, start)
                )
                for (start, size), sha256 in zip(sizes, parts, strict=True)
            ]
        return layers

    def _facts(self) -> dict[str, str]:
        """Return what the specification's config says of a model, as far as its files tell."""
        facts: dict[str, str] = {}
        formats = {_FORMATS[ending] for file in self.files if (ending := _ending(file.path)) in _FORMATS}
        if len(formats) == 1:
            facts["format"] = formats.pop()
        own = next((file for file in self.files if file.path == "config.json"), None)
        if own is None:
            return facts
        try:
            config = json.loads(own.source.read_bytes())
        except (OSError, ValueError):
            return facts
        if not isinstance(config, dict):
            return facts
        architectures = config.get("architectures")
        if isinstance(architectures, list) and architectures:
            facts["architecture"] = str(architectures[0])
        precision = config.get("torch_dtype") or config.get("dtype")
        if precision:
            facts["precision"] = str(precision)
        quantization = config.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method"):
            facts["quantization"] = str(quantization["quant_method"])
        return facts


def weigh_folder(name: str, folder: Path, pins: Mapping[str, tuple[int, str]]) -> Checkpoint:
    """Return a checkpoint that is a folder. `pins` are (size, sha256) by path, as in modelkit.lock.

    Raises UsageError where a pinned file is not there, or has another size.
    """
    return Checkpoint(name, tuple(_pinned(folder, path, *pin) for path, pin in sorted(pins.items())))


def _pinned(folder: Path, path: str, size_bytes: int, sha256: str) -> WeightFile:
    source = folder / path
    if not source.is_file() or source.stat().st_size != size_bytes:
        state = "has another size than was pinned" if source.exists() else "is not there"
        raise UsageError(f"{source} {state}", cure="fetch the checkpoint again, or `modelkit lock --update`")
    return WeightFile(path=path, source=source, size_bytes=size_bytes, sha256=sha256)


def _descriptor(file: WeightFile, start: int, size: int, sha256: str, num_parts: int) -> Descriptor:
    title, whole = file.path, {"path": file.path, "size": file.size_bytes, "sha256": file.sha256}
    if num_parts > 1:
        title = f"{file.path}.part-{start // PART_BYTES + 1:05d}-of-{num_parts:05d}"
        whole["offset"] = start
    annotations = {TITLE: title, MODEL_FILEPATH: title, FILE: json.dumps(whole, sort_keys=True)}
    return Descriptor(_media_type(file.path), f"sha256:{sha256}", size, annotations)


def _media_type(path: str) -> str:
    name, ending = PurePosixPath(path).name.lower(), _ending(path)
    if ending in _WEIGHT_ENDINGS:
        return MODEL_WEIGHT
    if ending == ".py":
        return MODEL_CODE
    if name.startswith(_DOC_NAMES) or (ending in _DOC_ENDINGS and name not in {"merges.txt", "vocab.txt"}):
        return MODEL_DOC
    return MODEL_WEIGHT_CONFIG


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
