"""What is to be pushed, before any store has it: manifests in memory, blobs as content that is read when it is sent."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from modelkit.errors import RegistryError
from modelkit.registry.base import EMPTY_CONFIG, Content, Descriptor, Manifest, Source, Store
from modelkit.registry.content import Bytes, Pieces, describe

__all__ = ["Draft"]


class Draft:
    """Collects a graph of manifests and blobs; `transfer.copy` sends it. Nothing is copied here, not even into memory."""

    name = "the draft"

    def __init__(self) -> None:
        self._contents: dict[str, Content] = {}
        self._homes: dict[str, Store] = {}
        self._manifests: dict[str, Manifest] = {}
        self.add(EMPTY_CONFIG, Bytes(b"{}"))

    def add(self, descriptor: Descriptor, content: Content) -> Descriptor:
        """Take a blob whose digest is known already, and return its descriptor."""
        self._contents[descriptor.digest] = content
        return descriptor

    def add_bytes(self, data: bytes, media_type: str, **annotations: str) -> Descriptor:
        """Take a small blob."""
        return self.add(describe(Bytes(data), media_type, **annotations), Bytes(data))

    def add_from(self, store: Store, descriptor: Descriptor) -> Descriptor:
        """Take a blob that is in a store already, as the layers of a base image are; it is mounted where possible."""
        self._homes[descriptor.digest] = store
        return descriptor

    def add_manifest(self, document: Mapping[str, Any]) -> Manifest:
        """Take a manifest or an index."""
        manifest = Manifest.build(document)
        self._manifests[manifest.digest] = manifest
        return manifest

    def take(self, source: Source, manifest: Manifest) -> None:
        """Take a manifest of blobs as it is in another source, an image that was built for instance; nothing is read yet."""
        self._manifests[manifest.digest] = manifest
        for blob in manifest.blobs:
            self._contents[blob.digest] = partial(source.read_blob, blob)
            home = source.home(blob)
            if home is not None:
                self._homes[blob.digest] = home

    def read_blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield a blob in pieces."""
        home = self._homes.get(descriptor.digest)
        if home is not None:
            return home.read_blob(descriptor, start)
        content = self._contents.get(descriptor.digest)
        if content is None:
            raise RegistryError(f"{descriptor.name} is in no part of what is pushed", cure="build it again")
        pieces = Pieces(content())
        for _ in pieces.take(start):
            pass
        return pieces.take(descriptor.size_bytes - start)

    def get_manifest(self, reference: str) -> Manifest:
        """Return a manifest by digest."""
        return self._manifests[reference]

    def home(self, descriptor: Descriptor) -> Store | None:
        """Return the store that has this blob already, if one has."""
        return self._homes.get(descriptor.digest)
