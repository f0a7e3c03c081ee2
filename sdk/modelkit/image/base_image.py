"""The base image as the `oci` builder sees it: its manifest, its config, and where its Python is.

Nothing of it can be run, so its Python is looked for among the names in its layers, once for each image.
"""

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelkit.errors import BuildError
from modelkit.image.cache import cache_dir
from modelkit.image.layers import GZIP_LAYER, RAW_LAYER
from modelkit.registry import Descriptor, Manifest, Store
from modelkit.registry.content import PieceReader

__all__ = ["BaseImage", "BasePython", "read_base"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON = re.compile(r"python3(?:\.(?P<minor>\d+))?")
_WHITEOUT = ".wh."
_MAX_LINKS = 16


@dataclass(frozen=True, slots=True)
class BasePython:
    """An interpreter of the base image: its absolute path there, and its version such as "3.12"."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class BaseImage:
    """One platform's image: the store that has it, its layers, and its config."""

    name: str
    store: Store
    manifest: Manifest
    config: Mapping[str, Any]

    @property
    def layers(self) -> Sequence[Descriptor]:
        """Its layers, from below, by OCI's names: Docker's layers are the same bytes under other names."""
        return [replace(layer, media_type=_oci_type(layer.media_type)) for layer in self.manifest.blobs[1:]]

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        pairs = (text.partition("=") for text in self.config.get("config", {}).get("Env") or ())
        return {name: value for name, _, value in pairs}

    def find_python(self) -> BasePython:
        """Return the `python3` that its PATH finds. Raises BuildError where there is none.

        Reads the names in all layers the first time, and remembers the answer.
        """
        note = cache_dir() / "bases" / f"{self.manifest.digest.removeprefix('sha256:')}.json"
        try:
            return BasePython(**json.loads(note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found = self._search()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"path": found.path, "version": found.version}), encoding="utf-8")
        return found

    def _search(self) -> BasePython:
        pythons: dict[str, str] = {}
        for layer in self.layers:
            _read_names(self.store, layer, pythons)
        for folder in self.environment.get("PATH", _DEFAULT_PATH).split(":"):
            path = posixpath.join(folder, "python3")
            minor = _minor(pythons, path)
            if minor:
                return BasePython(path, f"3.{minor}")
        raise BuildError(
            f"the base image {self.name} has no python3 on its PATH",
            cure="name one that has, with build.image",
        )


def read_base(store: Store, name: str, reference: str, platform: str) -> BaseImage:
    """Return the image that a tag or digest names for a platform. Raises RegistryError, BuildError."""
    manifest = store.get_manifest(reference)
    if manifest.is_index:
        manifest = store.get_manifest(_for_platform(manifest, name, platform).digest)
    config = json.loads(b"".join(store.read_blob(manifest.blobs[0])))
    found = f"{config.get('os')}/{config.get('architecture')}"
    if not platform.startswith(found):
        raise BuildError(
            f"the base image {name} is for {found}, and {platform} is asked for",
            cure=f"name another with build.image, or `--platform {found}`",
        )
    return BaseImage(name, store, manifest, config)


def _oci_type(media_type: str) -> str:
    if media_type.endswith(("zstd", "foreign.diff.tar.gzip")) or "nondistributable" in media_type:
        raise BuildError(
            f"the base image has layers of the type {media_type}, which this builder does not read",
            cure="use `--builder docker`",
        )
    return GZIP_LAYER if media_type.endswith("gzip") else RAW_LAYER


def _for_platform(index: Manifest, name: str, platform: str) -> Descriptor:
    offered = {}
    for child in index.children:
        parts = [str((child.platform or {}).get(key) or "") for key in ("os", "architecture", "variant")]
        offered["/".join(filter(None, parts))] = child
    for spelled, child in offered.items():
        if spelled == platform or spelled.rpartition("/")[0] == platform:
            return child
    there = ", ".join(spelled for spelled in offered if not spelled.startswith("unknown"))
    raise BuildError(f"the base image {name} is not there for {platform}", cure=f"it is there for: {there}")


def _read_names(store: Store, layer: Descriptor, pythons: dict[str, str]) -> None:
    """Add the interpreters of a layer, by path: the target of a link, "" for a file; and take away what it deletes."""
    pieces = io.BufferedReader(PieceReader(store.read_blob(layer)))
    with pieces, tarfile.open(fileobj=pieces, mode="r|*") as archive:
        for member in archive:
            folder, _, name = posixpath.normpath("/" + member.name.removeprefix("./")).rpartition("/")
            if name.startswith(_WHITEOUT):
                pythons.pop(f"{folder}/{name.removeprefix(_WHITEOUT)}", None)
            elif _PYTHON.fullmatch(name) and not member.isdir():
                pythons[f"{folder}/{name}"] = member.linkname if member.issym() else ""


def _minor(pythons: Mapping[str, str], path: str) -> str:
    """Follow links from `path` to a name with a version in it; return that version's last part, "" where there is none."""
    for _ in range(_MAX_LINKS):
        if path not in pythons:
            return ""
        match = _PYTHON.fullmatch(posixpath.basename(path))
        if match and match["minor"]:
            return match["minor"]
        target = pythons[path]
        if not target:
            return ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return ""
