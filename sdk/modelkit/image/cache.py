"""Where builds keep what the next one can use again. All of it may be deleted at any time."""

import os
import shutil
import time
from pathlib import Path

__all__ = ["cache_dir", "forget_unused", "mark_used"]

# A layer of dependencies may have gigabytes.
_UNUSED_S = 30 * 86_400.0


def cache_dir() -> Path:
    """Return the folder of kept wheels, layers and build contexts: modelkit/image in the user's cache folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "modelkit" / "image"


def mark_used(folder: Path) -> None:
    """Note that a kept folder was of use now."""
    os.utime(folder)


def forget_unused(folder: Path) -> None:
    """Delete the folders in `folder` that have been of no use for a month."""
    oldest = time.time() - _UNUSED_S
    for kept in folder.iterdir():
        if kept.is_dir() and kept.stat().st_mtime < oldest:
            shutil.rmtree(kept, ignore_errors=True)
