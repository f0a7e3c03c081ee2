"""The one shape that every store of images and artifacts has, and the values that go in and out of it.

Source: https://github.com/opencontainers/image-spec, https://github.com/opencontainers/distribution-spec
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, Self

from modelkit.errors import RegistryError

__all__ = [
    "DOCKER_INDEX",
    "DOCKER_MANIFEST",
    "EMPTY_CONFIG",
    "INDEX",
    "MANIFEST",
    "MANIFEST_TYPES",
    "MAX_MANIFEST_BYTES",
    "REF_NAME",
    "TITLE",
    "Content",
    "Descriptor",
    "Manifest",
    "Source",
    "Store",
    "sha256_digest",
]

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES = (INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

# What registries are required to take, and what the common ones do not exceed.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"

# Opens some content anew and yields it in pieces. A transfer that has to begin again calls it again.
Content = Callable[[], Iterator[bytes]]


def sha256_digest(data: bytes) -> str:
    """Return the digest of some bytes, such as "sha256:e3b0...": the only algorithm that every registry knows."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names some content: what it is, its digest, and how long it is."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    artifact_type: str = ""
    platform: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read a descriptor of a manifest. Raises RegistryError where it is none."""
        try:
            return cls(
                media_type=str(value["mediaType"]),
                digest=check_digest(str(value["digest"])),
                size_bytes=int(value["size"]),
                annotations=dict(value.get("annotations") or {}),
                artifact_type=str(value.get("artifactType") or ""),
                platform=value.get("platform"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RegistryError(
                f"a manifest holds no valid descriptor: {json.dumps(value)[:200]}",
                cure="push it again: it is damaged",
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as manifests hold it."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        # In the order of Go's tools: what they write anew then has the same digest.
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            value["platform"] = dict(self.platform)
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value

    @property
    def name(self) -> str:
        """What to call it before people: its title, or the beginning of its digest."""
        return self.annotations.get(TITLE) or self.digest[:19]


def check_digest(digest: str) -> str:
    """Return a digest that is well-formed; it becomes part of paths and addresses. Raises ValueError."""
    algorithm, _, encoded = digest.partition(":")
    if algorithm != "sha256" or len(encoded) != 64 or not set(encoded) <= set("0123456789abcdef"):  # noqa: PLR2004 - 256 bits
        raise ValueError(digest)
    return digest


EMPTY_CONFIG = Descriptor("application/vnd.oci.empty.v1+json", sha256_digest(b"{}"), 2)


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index: its bytes exactly as they are stored, because its digest is made of them."""

    content: bytes
    media_type: str

    @classmethod
    def build(cls, document: Mapping[str, Any]) -> Self:
        """Make a manifest of a JSON document, whose keys stay in their order."""
        content = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return cls(content, str(document["mediaType"]))

    @classmethod
    def parse(cls, content: bytes, media_type: str = "") -> Self:
        """Read a manifest as it came. Raises RegistryError where it is not one that this project knows."""
        try:
            document = json.loads(content)
            said = str(document.get("mediaType") or "") or media_type or _guess_media_type(document)
        except (ValueError, AttributeError) as error:
            raise RegistryError("a manifest is not JSON", cure="push it again: it is damaged") from error
        if said not in MANIFEST_TYPES:
            raise RegistryError(
                f"a manifest has the media type '{said or 'unknown'}', which modelkit does not read",
                cure="convert it to an OCI image, for example with `skopeo copy --format oci`",
            )
        return cls(content, said)

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The manifest as JSON values."""
        return MappingProxyType(json.loads(self.content))

    @cached_property
    def digest(self) -> str:
        """The digest of its bytes."""
        return sha256_digest(self.content)

    @property
    def is_index(self) -> bool:
        """Whether it lists other manifests, rather than blobs."""
        return self.media_type in {INDEX, DOCKER_INDEX}

    @property
    def artifact_type(self) -> str:
        """What kind of artifact it says to be; the media type of the config where it says nothing else."""
        config = self.document.get("config") or {}
        return str(self.document.get("artifactType") or config.get("mediaType") or "")

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return dict(self.document.get("annotations") or {})

    @property
    def children(self) -> list[Descriptor]:
        """The manifests that an index lists."""
        return [Descriptor.from_json(value) for value in self.document.get("manifests") or ()]

    @property
    def blobs(self) -> list[Descriptor]:
        """The config and the layers."""
        config = self.document.get("config")
        values = [*([config] if config else []), *(self.document.get("layers") or ())]
        return [Descriptor.from_json(value) for value in values]

    @property
    def subject(self) -> Descriptor | None:
        """The manifest that this one is attached to, as a signature is to an image."""
        value = self.document.get("subject")
        return None if value is None else Descriptor.from_json(value)

    def descriptor(
        self,
        *,
        annotations: Mapping[str, str] | None = None,
        artifact_type: str = "",
        platform: Mapping[str, Any] | None = None,
    ) -> Descriptor:
        """Return what names it in an index or as a subject."""
        return Descriptor(
            self.media_type, self.digest, len(self.content), annotations or {}, artifact_type, platform
        )


def _guess_media_type(document: Mapping[str, Any]) -> str:
    """Tell what an OCI manifest without `mediaType` is, as old ones are: the specification left the field optional."""
    if "manifests" in document:
        return INDEX
    return MANIFEST if "config" in document or "layers" in document else ""


class Source(Protocol):
    """Where a copy reads: blobs and manifests by digest. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """What to call it before people, such as "localhost:5000/chat"."""
        ...

    def read_blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield a blob in pieces, from a byte on, unverified. Raises RegistryError where it is not there."""
        ...

    def get_manifest(self, reference: str) -> Manifest:
        """Return a manifest by tag or digest; by digest it is verified. Raises UnknownReferenceError."""
        ...

    def home(self, descriptor: Descriptor) -> "Store | None":
        """Return the store that has this blob, which another one beside it may take it from without a transfer."""
        ...


class Store(Source, Protocol):
    """One repository. A tag is the only thing in it that ever changes. Safe to use from several threads."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob is there, complete."""
        ...

    def write_blob(self, descriptor: Descriptor, content: Content) -> None:
        """Store a blob, whose content must have the digest and the size of its descriptor. Raises RegistryError."""
        ...

    def mount_blob(self, descriptor: Descriptor, home: "Store") -> bool:
        """Take a blob from a store beside this one, without a transfer. False where that cannot be."""
        ...

    def find_manifest(self, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest by tag or digest, None where it is not there."""
        ...

    def put_manifest(self, manifest: Manifest, tag: str | None = None) -> None:
        """Store a manifest, all of whose parts are there, and let `tag` name it. Raises RegistryError."""
        ...

    def check_writable(self) -> None:
        """Raise RegistryError where this store cannot be written: asked before hours of work, rather than after."""
        ...

    def claim_tag(self, manifest: Manifest, tag: str) -> bool:
        """Let a tag name a manifest that is there, unless it names another one already: then return False.

        In a layout no other process can come between. A registry has no such request: there it is looked at before and
        after, which leaves a moment's doubt between two uploads at the same time.
        """
        ...

    def tags(self) -> list[str]:
        """Return all tags, sorted; none where the repository does not exist yet."""
        ...

    def referrers(self, digest: str) -> Sequence[Descriptor]:
        """Return the manifests whose subject is `digest`, such as its signatures."""
        ...

    def close(self) -> None:
        """Let go of connections; leaving a `with` block does it too."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
