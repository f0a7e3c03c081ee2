"""One version of a model: an index that ties an image, a package and weights together, and how to read one.

The index holds nothing but what the content decides, neither a time nor a number: the same model is the same index, and
an upload of it sends nothing. A tool that knows images sees in it a multi-platform image, and takes the one it can run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelkit.errors import RegistryError
from modelkit.package import Package, bundle
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import Descriptor, Draft, Manifest, Source, Store
from modelkit.registry.base import EMPTY_CONFIG, INDEX, MANIFEST, TITLE
from modelkit.registry.content import describe, verified
from modelkit.registry.modelpack import (
    CHECKPOINT,
    PART,
    SETTINGS,
    WeightLayer,
    check_path,
    read_weights,
)
from modelkit.versions.media_types import (
    CONFIG,
    LOCK,
    NO_PLATFORM,
    PACKAGE,
    PACKAGE_BUNDLE,
    PACKAGE_MANIFEST,
    SIGNATURES,
)
from modelkit.versions.weights import Checkpoint

__all__ = ["ImagePart", "Version", "VersionContent", "compose", "read_version"]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image that goes into a version: where it is, and which; an index stands for one image per platform."""

    source: Source
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionContent:
    """What a version is made of. `config` is the checked config.yaml, `signatures` the document of the methods.

    `environment` and `overrides` (--env, --set) were laid over the config.yaml that is in the package.
    """

    model_id: str
    config: Mapping[str, Any]
    signatures: Mapping[str, Any]
    package: Package
    environment: str | None = None
    overrides: Sequence[str] = ()
    lock: bytes | None = None
    checkpoints: Sequence[Checkpoint] = ()
    image: ImagePart | None = None


def compose(content: VersionContent, progress: TransferProgress = NO_PROGRESS) -> tuple[Draft, Manifest]:
    """Return a draft of all that a version is made of, and its index. Large files are hashed the first time."""
    draft = Draft()
    entries = [] if content.image is None else _image_entries(draft, content.image)
    package = _draft_package(draft, content)
    entries.append(_entry(package, {PART: "package", TITLE: f"{content.model_id} (package)"}))
    for checkpoint in content.checkpoints:
        weights = checkpoint.draft(draft, progress)
        title = f"{content.model_id} (weights)"
        entries.append(_entry(weights, {PART: "weights", CHECKPOINT: checkpoint.name, TITLE: title}))
    # Without artifactType, here and in the entries: older tools drop what they do not know, and the digest would change
    # on the way from one registry to another. The annotations say what each entry is.
    document = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": entries,
        "annotations": {TITLE: content.model_id},
    }
    return draft, draft.add_manifest(document)


def _entry(manifest: Manifest, annotations: Mapping[str, str]) -> dict[str, Any]:
    return manifest.descriptor(annotations=annotations, platform=NO_PLATFORM).to_json()


def _draft_package(draft: Draft, content: VersionContent) -> Manifest:
    tar = bundle(content.package)
    layers = [
        draft.add_bytes(_json(content.package.manifest()), PACKAGE_MANIFEST, **{TITLE: "package.json"}),
        draft.add_bytes(_json(content.config), CONFIG, **{TITLE: "config.json"}),
        draft.add_bytes(_json(content.signatures), SIGNATURES, **{TITLE: "signatures.json"}),
        draft.add(describe(tar, PACKAGE_BUNDLE, **{TITLE: "package.tar"}), tar),
    ]
    if content.lock is not None:
        layers.append(draft.add_bytes(content.lock, LOCK, **{TITLE: "modelkit.lock"}))
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": PACKAGE,
        "config": EMPTY_CONFIG.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if content.environment or content.overrides:
        settings = {"env": content.environment, "set": list(content.overrides)}
        document["annotations"] = {SETTINGS: _json(settings).decode()}
    return draft.add_manifest(document)


def _image_entries(draft: Draft, image: ImagePart) -> list[dict[str, Any]]:
    """Return an entry for each platform of the image."""
    manifest = image.source.get_manifest(image.digest)
    children = manifest.children if manifest.is_index else [manifest.descriptor()]
    entries = []
    for child in children:
        if (child.platform or {}).get("os") == "unknown":
            continue  # an attestation of BuildKit's, about an index that this one replaces
        found = image.source.get_manifest(child.digest)
        draft.take(image.source, found)
        platform = child.platform or _platform(image.source, found)
        entries.append(found.descriptor(annotations={PART: "image"}, platform=platform).to_json())
    return entries


def _platform(source: Source, manifest: Manifest) -> dict[str, str]:
    config = json.loads(b"".join(source.read_blob(manifest.blobs[0])))
    return {key: str(config[key]) for key in ("architecture", "os", "variant") if config.get(key)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# --------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version in a store, its parts by what they are; their blobs are read when they are asked for."""

    store: Store
    index: Manifest
    package: Manifest
    weights: Mapping[str, Manifest] = field(default_factory=dict)
    images: Sequence[Descriptor] = ()

    @property
    def model_id(self) -> str:
        """The model's id."""
        return self.index.annotations.get(TITLE, "")

    @property
    def config(self) -> dict[str, Any]:
        """The checked config.yaml."""
        return self._read_json(CONFIG) or {}

    @property
    def settings(self) -> tuple[str | None, tuple[str, ...]]:
        """The environment and the overrides that were laid over the package's config.yaml."""
        said = json.loads(self.package.annotations.get(SETTINGS) or "{}")
        return said.get("env"), tuple(said.get("set") or ())

    @property
    def signatures(self) -> dict[str, Any]:
        """The document of the methods."""
        return self._read_json(SIGNATURES) or {"methods": {}}

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The files of the package, by path."""
        contents = self._read_json(PACKAGE_MANIFEST) or {"files": []}
        return {file["path"]: file for file in contents["files"]}

    @property
    def lock(self) -> bytes | None:
        """The bytes of modelkit.lock."""
        layer = self._layer(LOCK)
        return None if layer is None else self._read(layer)

    @property
    def bundle(self) -> Descriptor:
        """The package's tar. Raises RegistryError where there is none."""
        layer = self._layer(PACKAGE_BUNDLE)
        if layer is None:
            raise RegistryError(f"the version in {self.store.name} has no package", cure="upload it again")
        return layer

    def weight_layers(self, name: str) -> list[WeightLayer]:
        """Return the layers of a checkpoint."""
        return read_weights(self.weights[name])

    @property
    def weights_bytes(self) -> int:
        """The size of all weights."""
        return sum(blob.size_bytes for manifest in self.weights.values() for blob in manifest.blobs[1:])

    def _layer(self, media_type: str) -> Descriptor | None:
        return next((blob for blob in self.package.blobs if blob.media_type == media_type), None)

    def _read(self, layer: Descriptor) -> bytes:
        return b"".join(verified(self.store.read_blob(layer), layer))

    def _read_json(self, media_type: str) -> dict[str, Any] | None:
        layer = self._layer(media_type)
        return None if layer is None else json.loads(self._read(layer))


def read_version(store: Store, reference: str) -> Version:
    """Return a version by tag or digest. Raises UnknownReferenceError, RegistryError where it is no version of a model."""
    index = store.get_manifest(reference)
    parts: dict[str, list[Descriptor]] = {}
    for child in index.children:
        parts.setdefault(child.annotations.get(PART, ""), []).append(child)
    if not parts.get("package"):
        raise RegistryError(
            f"{store.name}:{reference} is no version of a model",
            cure="name one that `modelkit upload` has made; `modelkit versions` lists them",
        )
    return Version(
        store=store,
        index=index,
        package=store.get_manifest(parts["package"][0].digest),
        weights={
            _checkpoint_name(child): store.get_manifest(child.digest) for child in parts.get("weights", ())
        },
        images=parts.get("image", ()),
    )


def _checkpoint_name(weights: Descriptor) -> str:
    """Return the checkpoint that weights belong to. Its name becomes a folder: RegistryError for one that leads elsewhere."""
    name = weights.annotations.get(CHECKPOINT, "default")
    check_path(name)
    return name
