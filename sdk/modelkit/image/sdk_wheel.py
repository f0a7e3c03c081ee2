"""How modelkit itself gets into an image: from the package index, or as a wheel of the source tree that it runs from.

A source tree is ahead of every release, and perhaps nothing was released yet: the image would get another modelkit than
the one that checked the folder. The wheel is built once for each state of the tree and kept.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from modelkit import __version__
from modelkit.errors import BuildError
from modelkit.image.cache import cache_dir

__all__ = ["DISTRIBUTION", "sdk_wheel"]

DISTRIBUTION = "modelkit-sdk"

_PACKAGE = Path(__file__).resolve().parents[1]


def sdk_wheel() -> Path | None:
    """Return a wheel of the source tree that modelkit runs from; None where it was installed from an index.

    Raises BuildError where the wheel cannot be built.
    """
    root = _PACKAGE.parents[1]
    if not (root / "pyproject.toml").is_file() or root / "sdk" / "modelkit" != _PACKAGE:
        return None
    folder = cache_dir() / "wheels" / _fingerprint(root)
    kept = next(folder.glob("*.whl"), None)
    if kept is not None:
        return kept
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of two first builds at once the second waits, and finds the wheel of the first.
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next(folder.glob("*.whl"), None) or _build(root, folder)


def _fingerprint(root: Path) -> str:
    """Return a digest of names, sizes and times of all files of the tree that go into the wheel: 300 of them, 5 ms."""
    digest = hashlib.sha256(__version__.encode())
    files = [root / "pyproject.toml"]
    for folder in (root / "sdk", root / "templates"):
        files += [path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file()]
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(root: Path, folder: Path) -> Path:
    """Build the wheel and put it in its place in one step; wheels of earlier states go."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if find_spec("hatchling"):
            command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", scratch]
        else:
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch, str(root)]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - made here
        wheel = next(Path(scratch).glob("*.whl"), None)
        if run.returncode != 0 or wheel is None:
            last = (run.stderr or run.stdout).strip().splitlines()[-8:]
            raise BuildError(
                "modelkit runs from a source tree, and no wheel of it could be built:\n    "
                + "\n    ".join(last),
                cure=f"{sys.executable} -m pip install hatchling",
            )
        for earlier in folder.parent.iterdir():
            if earlier.is_dir() and earlier != Path(scratch):
                shutil.rmtree(earlier, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        return wheel.replace(folder / wheel.name)
