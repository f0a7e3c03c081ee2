"""OCI distribution: references, credentials, and stores of blobs, manifests and tags.

A store is a repository of a registry (`client`) or a folder on this machine (`layout`); both have the shape in `base`,
and `transfer` copies between any two. Importing this package loads no HTTP library.
"""

from modelkit.registry.base import Content, Descriptor, Manifest, Source, Store
from modelkit.registry.content import Bytes, FilePart
from modelkit.registry.draft import Draft
from modelkit.registry.reference import LayoutReference, Reference, parse_image, parse_reference
from modelkit.registry.stores import open_store
from modelkit.registry.transfer import CopyResult, copy

__all__ = [
    "Bytes",
    "Content",
    "CopyResult",
    "Descriptor",
    "Draft",
    "FilePart",
    "LayoutReference",
    "Manifest",
    "Reference",
    "Source",
    "Store",
    "copy",
    "open_store",
    "parse_image",
    "parse_reference",
]
