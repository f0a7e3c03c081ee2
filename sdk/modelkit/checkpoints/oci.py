"""A checkpoint in a registry: the weights of a version that `modelkit upload` made, or any artifact of the CNCF model format.

`checkpoints.repo_id` names the repository (or an OCI layout on this machine) and `checkpoints.revision` a tag or a digest.
A file of several layers is read as one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.checkpoints.base import (
    BrokenTransferError,
    CheckpointSource,
    Listing,
    SourceFile,
    checked_path,
)
from modelkit.checkpoints.once import once
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError, RegistryError, UsageError

if TYPE_CHECKING:
    from modelkit.registry import LayoutReference, Manifest, Reference, Store
    from modelkit.registry.modelpack import WeightLayer

__all__ = ["OciSource"]

_LATEST = "latest"


class OciSource(CheckpointSource):
    """The weights of one version. `revision` is the digest of their manifest, where config.yaml's is pinned."""

    def __init__(self, config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None) -> None:
        if config.repo_id is None:
            raise LoadError(
                "a checkpoint in a registry needs 'checkpoints.repo_id'",
                cure="name the repository in config.yaml, such as repo_id: registry.example.com/models/chat",
            )
        self.where = config.repo_id
        self._model_dir = model_dir
        self._revision = revision or config.revision

    def list_files(self) -> Listing:
        """Return the files of the weights, and the digest of their manifest."""
        with _translating(self.where):
            manifest = self._manifest
            files = (_file(path, layers) for path, layers in self._layers.items())
            return Listing(manifest.digest, tuple(sorted(files, key=lambda file: file.path)))

    @contextmanager
    def open(self, file: SourceFile, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
        """Return a range of a file, from whichever layers it lies in."""
        with _translating(self.where):
            layers = self._layers[file.path]
            end = file.size_bytes if stop is None else min(stop, file.size_bytes)
            yield self._read(layers, start, end)

    def _read(self, layers: "Sequence[WeightLayer]", start: int, stop: int) -> Iterator[bytes]:
        with _translating(self.where):
            for layer in layers:
                first = max(start - layer.offset, 0)
                left = min(stop - layer.offset, layer.descriptor.size_bytes) - first
                if left <= 0:
                    continue
                for piece in self._store.read_blob(layer.descriptor, first):
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        break

    def copy_on_disk(self, file: SourceFile) -> Path | None:
        """Return the blob of a layout on this machine, where the file is one."""
        from modelkit.registry.layout import Layout

        with _translating(self.where):
            layers = self._layers[file.path]
            store = self._store
        if len(layers) > 1 or not isinstance(store, Layout):
            return None
        blob = store.blob_path(layers[0].descriptor.digest)
        return blob if blob.is_file() and blob.stat().st_size == file.size_bytes else None

    def close(self) -> None:
        """Close the connections, where there are any."""
        if "_store" in self.__dict__:
            self._store.close()

    @once
    def _reference(self) -> "Reference | LayoutReference":
        from modelkit.registry import parse_reference

        text = self.where
        if text.startswith(("oci:", "./", "../")):  # a path in config.yaml begins at the model folder
            text = f"oci:{self._model_dir / Path(text.removeprefix('oci:')).expanduser()}"
        try:
            return parse_reference(text)
        except UsageError as error:
            raise LoadError(f"checkpoints.repo_id: {error.message}", cure=error.cure) from error

    @once
    def _store(self) -> "Store":
        from modelkit.registry import open_store

        return open_store(self._reference)

    @once
    def _manifest(self) -> "Manifest":
        """The manifest of the weights; of those of a version, which is an index, the model's own."""
        named = self._revision or self._reference.digest or self._reference.tag or _LATEST
        manifest = self._store.get_manifest(named)
        return self._store.get_manifest(self._choose(manifest)) if manifest.is_index else manifest

    def _choose(self, index: "Manifest") -> str:
        from modelkit.registry.modelpack import CHECKPOINT, PART

        weights = {
            child.annotations.get(CHECKPOINT, ""): child.digest
            for child in index.children
            if child.annotations.get(PART) == "weights"
        }
        if not weights:
            raise LoadError(
                f"{self.where} has no weights: that version was uploaded without them",
                cure="upload it with --weights, or name another version with checkpoints.revision",
            )
        return weights.get("default") or min(weights.items())[1]

    @once
    def _layers(self) -> "dict[str, list[WeightLayer]]":
        from modelkit.registry.modelpack import check_complete, read_weights

        found: dict[str, list[WeightLayer]] = {}
        layers = sorted(read_weights(self._manifest), key=lambda layer: layer.offset)
        check_complete(layers)
        for layer in layers:
            found.setdefault(checked_path(layer.path, self.where), []).append(layer)
        return found


def _file(path: str, layers: "Sequence[WeightLayer]") -> SourceFile:
    first = layers[0]
    return SourceFile(path=path, size_bytes=first.file_size_bytes, sha256=first.file_sha256)


@contextmanager
def _translating(where: str) -> Iterator[None]:
    """Put what a registry says into the words of a fetch."""
    from modelkit.registry.failures import TransientError

    try:
        yield
    except TransientError as error:
        raise BrokenTransferError(error.message, cure=error.cure, retry_after_s=error.after_s) from error
    except RegistryError as error:
        cure = error.cure or "correct checkpoints.repo_id and checkpoints.revision in config.yaml"
        raise LoadError(f"cannot fetch from {where}: {error.message}", cure=cure) from error
