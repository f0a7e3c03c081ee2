"""A repository as a folder on this machine: an OCI image layout, which skopeo (`oci:DIR:TAG`) and oras read too.

A blob is written beside its place and moved there when its digest is verified; index.json is replaced in one step under
a lock. So whatever ends a process, there is never a blob in place that is not whole, nor a tag of something incomplete.
Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from modelkit.errors import RegistryError
from modelkit.registry.base import INDEX, REF_NAME, Content, Descriptor, Manifest, Store, check_digest
from modelkit.registry.content import FilePart, verified
from modelkit.registry.failures import UnknownReferenceError
from modelkit.registry.reference import LayoutReference

__all__ = ["Layout"]

_MARKER = "oci-layout"
_VERSION = {"imageLayoutVersion": "1.0.0"}
_UPLOADS = ".uploads"
_LOCK = ".lock"
_YOUNG_S = 60.0


class Layout:
    """An OCI image layout; see `base.Store`. The folder is made by the first write. Safe for several processes."""

    def __init__(self, reference: LayoutReference) -> None:
        self.reference = reference.at()
        self.folder = reference.folder
        self._is_ready = False
        # What each manifest refers to, by digest: a digest's content never changes, and `referrers` asks for all each time.
        self._referring: dict[str, tuple[str, Descriptor] | None] = {}

    @property
    def name(self) -> str:
        """The folder, short where it is in the usual place."""
        return self.reference.name

    def close(self) -> None:
        """Let go of nothing: files are closed after each use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------------- blobs

    def blob_path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        algorithm, _, encoded = check_digest(digest).partition(":")
        return self.folder / "blobs" / algorithm / encoded

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob is there, complete."""
        try:
            return self.blob_path(descriptor.digest).stat().st_size == descriptor.size_bytes
        except FileNotFoundError:
            return False

    def read_blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield a blob in pieces, unverified."""
        path = self.blob_path(descriptor.digest)
        try:
            yield from FilePart(path, descriptor.size_bytes - start, start)()
        except FileNotFoundError:
            raise RegistryError(
                f"{self.name} has lost {descriptor.name} ({descriptor.digest})", cure="upload it again"
            ) from None

    def home(self, descriptor: Descriptor) -> Store:  # noqa: ARG002 - the shape of every source
        """Return this layout: another one on the same disk may link its blobs."""
        return self

    def mount_blob(self, descriptor: Descriptor, home: Store) -> bool:
        """Take a blob from another layout on the same disk. False where it is on another one."""
        if not isinstance(home, Layout) or home.folder == self.folder:
            return False
        if not home.has_blob(descriptor):
            return False
        path = self.blob_path(descriptor.digest)
        with self._writing():
            try:
                path.hardlink_to(home.blob_path(descriptor.digest))
            except OSError:  # another disk; or it is there: whole, or damaged, which writing it anew mends
                return self.has_blob(descriptor)
        return True

    def write_blob(self, descriptor: Descriptor, content: Content) -> None:
        """Store a blob. Raises RegistryError where the content is not what the descriptor says, or the disk is full."""
        with self._writing():
            self._write(descriptor, content)

    def _write(self, descriptor: Descriptor, content: Content) -> None:
        with self._unfinished() as (file, path):
            for piece in verified(content(), descriptor):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            path.chmod(0o644)  # others may read, as with any tool that writes a layout
            path.replace(self.blob_path(descriptor.digest))

    # ---------------------------------------------------------------------------------------------------- manifests

    def find_manifest(self, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest by tag or digest, None where it is not there."""
        digest = reference if ":" in reference else self._tagged().get(reference)
        if digest is None or not self.blob_path(digest).exists():
            return None
        return self._read_manifest(digest).descriptor()

    def get_manifest(self, reference: str) -> Manifest:
        """Return a manifest by tag or digest, verified. Raises UnknownReferenceError."""
        digest = reference if ":" in reference else self._tagged().get(reference)
        if digest is None or not self.blob_path(digest).exists():
            raise UnknownReferenceError(f"{self.name}{'@' if ':' in reference else ':'}{reference}")
        return self._read_manifest(digest)

    def _read_manifest(self, digest: str) -> Manifest:
        manifest = Manifest.parse(self.blob_path(digest).read_bytes())
        if manifest.digest != digest:
            raise RegistryError(f"{self.name}@{digest} is damaged on the disk", cure="upload it again")
        return manifest

    def put_manifest(self, manifest: Manifest, tag: str | None = None) -> None:
        """Store a manifest, all of whose parts are there, and let `tag` name it."""
        with self._writing():
            self._write(manifest.descriptor(), lambda: iter([manifest.content]))
            # One that is neither tagged nor attached to another is found by those that list it.
            if tag is not None or manifest.subject is not None:
                with self._locked():
                    self._list(manifest, tag)

    def check_writable(self) -> None:
        """Raise RegistryError where the folder cannot be written. It is made where it is not there."""
        with self._writing(), self._unfinished():
            pass

    def claim_tag(self, manifest: Manifest, tag: str) -> bool:
        """Let a tag name a manifest, unless it names another one already."""
        with self._writing(), self._locked():
            taken = self._tagged().get(tag)
            if taken is None:
                self._list(manifest, tag)
        return taken in {None, manifest.digest}

    def _list(self, manifest: Manifest, tag: str | None) -> None:
        listed = [value for value in self._listed() if tag is None or _tag_of(value) != tag]
        new = manifest.descriptor(annotations={REF_NAME: tag} if tag else {}).to_json()
        if manifest.subject is not None and manifest.artifact_type:
            new["artifactType"] = manifest.artifact_type
        if new not in listed:
            listed.append(new)
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        self._replace("index.json", json.dumps(index, indent=2).encode())

    def tags(self) -> list[str]:
        """Return all tags, sorted; none where the folder does not exist yet."""
        return sorted(self._tagged())

    def referrers(self, digest: str) -> Sequence[Descriptor]:
        """Return the manifests whose subject is `digest`."""
        listed = dict.fromkeys(str(value["digest"]) for value in self._listed())
        found = [self._refers(each) for each in listed]
        return [each for subject, each in filter(None, found) if subject == digest]

    def _refers(self, digest: str) -> tuple[str, Descriptor] | None:
        """Return the subject of a manifest, and the descriptor that tells of the manifest; None where it has none."""
        if digest not in self._referring:
            manifest = self._read_manifest(digest)
            told = manifest.descriptor(annotations=manifest.annotations, artifact_type=manifest.artifact_type)
            self._referring[digest] = (
                (manifest.subject.digest, told) if manifest.subject is not None else None
            )
        return self._referring[digest]

    # ---------------------------------------------------------------------------------------------------- the folder

    def _listed(self) -> list[dict[str, Any]]:
        path = self.folder / "index.json"
        try:
            return list(json.loads(path.read_bytes())["manifests"])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(
                f"{path} cannot be read: {error.strerror}", cure="name a folder, and see to its permissions"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{path} is not the index of an OCI image layout", cure="restore it, or name another folder"
            ) from error

    def _tagged(self) -> dict[str, str]:
        return {tag: str(value["digest"]) for value in self._listed() if (tag := _tag_of(value)) is not None}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the folder where it is not there, and say in words what the disk refuses."""
        try:
            if not self._is_ready:
                self._prepare()
            yield
        except OSError as error:
            raise RegistryError(
                f"cannot write {self.folder}: {error.strerror or error}",
                cure="make room or see to its permissions, or set MODELKIT_REGISTRY_DIR to another folder",
            ) from error

    def _prepare(self) -> None:
        if self.folder.exists() and not (self.folder / _MARKER).exists() and self._has_foreign_files():
            raise RegistryError(
                f"{self.folder} is not an OCI image layout, and it is not empty", cure="name another folder"
            )
        (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / _UPLOADS).mkdir(exist_ok=True)
        with self._locked():
            self._sweep()
            if not (self.folder / "index.json").exists():
                index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
                self._replace("index.json", json.dumps(index, indent=2).encode())
            if not (self.folder / _MARKER).exists():
                self._replace(_MARKER, json.dumps(_VERSION).encode())
        self._is_ready = True

    def _has_foreign_files(self) -> bool:
        ours = {"blobs", "index.json", _MARKER, _UPLOADS, _LOCK}  # the marker may appear at this moment
        return any(path.name not in ours for path in self.folder.iterdir())

    def _replace(self, name: str, data: bytes) -> None:
        with self._unfinished() as (file, path):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            path.chmod(0o644)
            path.replace(self.folder / name)

    @contextmanager
    def _unfinished(self) -> Iterator[tuple[Any, Path]]:
        """Open a file that is moved to its place when it is whole. Its lock tells `_sweep` that somebody writes it."""
        with tempfile.NamedTemporaryFile(dir=self.folder / _UPLOADS, delete=False) as file:
            path = Path(file.name)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file, path
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()

    def _sweep(self) -> None:
        """Delete what processes that were killed have left unfinished. A new file may not have its lock yet."""
        for path in (self.folder / _UPLOADS).iterdir():
            with suppress(OSError), path.open("rb") as file:
                if time.time() - path.stat().st_mtime < _YOUNG_S:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / _LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _tag_of(value: dict[str, Any]) -> str | None:
    tag = (value.get("annotations") or {}).get(REF_NAME)
    return None if tag is None else str(tag)
