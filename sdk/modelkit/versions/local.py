"""A version as a folder that can be served: pulled once and kept; later a registry is asked only which one is meant."""

import re
from pathlib import Path

from modelkit.checkpoints.cache import Cache
from modelkit.errors import LoadError, UsageError
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.registry import LayoutReference
from modelkit.versions.names import open_version, version_reference
from modelkit.versions.pull import PulledModel, pull, pulled_model

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
    text: str,
    *,
    plain_http: bool = False,
    offline: bool = False,
    progress: TransferProgress = NO_PROGRESS,
) -> PulledModel:
    """Return a version as a model folder, pulled into the cache the first time. Raises RegistryError, UsageError, LoadError.

    The folder belongs to the digest of the version: a tag that moves means another folder. Nobody prunes it while this
    process lives. Raises LoadError for a version in a registry where the network may not be used.
    """
    reference = version_reference(text)
    if offline and not isinstance(reference, LayoutReference):
        raise LoadError(
            f"{reference} is in a registry, and the network may not be used",
            cure=f"`modelkit pull {reference}` where there is a network, and serve the folder; or leave --offline out",
        )
    with open_version(reference, plain_http=plain_http) as version:
        cache = Cache()
        folder = cache.pulled(version.index.digest)
        if not folder.exists():
            try:
                pull(version, folder, progress=progress)
            except UsageError:
                if not folder.exists():  # otherwise another process was faster
                    raise
        cache.hold_pulled(folder)
        return pulled_model(version, folder)
