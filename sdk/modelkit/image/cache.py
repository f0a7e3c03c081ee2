"""Where builds keep what the next one can use again. All of it may be deleted at any time."""

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Return the folder of kept wheels, layers and build contexts: modelkit/image in the user's cache folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "modelkit" / "image"
