"""A version as a folder that can be served: pulled once, kept, and used again without the network."""

import re
from pathlib import Path

from modelkit.checkpoints.cache import cache_dir
from modelkit.errors import UsageError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.versions.names import open_version, version_reference
from modelkit.versions.pull import PulledModel, pull

__all__ = ["looks_like_reference", "materialize"]

_HOST = re.compile(r"((?:[\w-]+\.)+[a-z]{2,}|[\w.-]+:\d+|localhost)/", re.IGNORECASE)
_REFERENCE = re.compile(r"^oci:|:[A-Za-z0-9_][\w.-]*$|@sha256:[0-9a-f]{64}$")


def looks_like_reference(text: str) -> bool:
    """Tell whether an argument that may be a folder or a version is a version.

    It names a tag, a digest, a registry or a layout (`oci:`), and there is no such folder.
    """
    if Path(text).exists():
        return False
    host = _HOST.match(text)
    return _REFERENCE.search(text) is not None or (host is not None and not Path(host[1]).exists())


def materialize(
    text: str, *, plain_http: bool = False, progress: TransferProgress = NO_PROGRESS
) -> PulledModel:
    """Return a version as a model folder, pulled into the cache the first time. Raises RegistryError, UsageError, LoadError.

    The folder belongs to the digest of the version: a tag that moves means another folder.
    """
    with open_version(version_reference(text), plain_http=plain_http) as version:
        folder = (cache_dir() / "versions") / version.index.digest.partition(":")[2]
        if not folder.exists():
            try:
                return pull(version, folder, progress=progress)
            except UsageError:
                if not folder.exists():  # otherwise another process was faster
                    raise
        return PulledModel.of(version, folder)
