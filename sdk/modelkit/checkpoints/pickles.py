"""Pickle files, which run code as they are loaded: recognised by name, and scanned where they are allowed.

A scanner reads which functions a pickle would call. It finds what is known to be dangerous; that it finds nothing proves
nothing, which is why every such file has to be allowed by its name.
"""

import logging
from pathlib import Path, PurePosixPath

from modelkit.errors import LoadError

__all__ = ["is_pickle", "refuse_pickles", "scan"]

_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_MAX_LISTED = 8


def is_pickle(path: str) -> bool:
    """Tell by its name whether a file of a checkpoint is, or may hold, a pickle."""
    return PurePosixPath(path).suffix.lower() in _SUFFIXES


def refuse_pickles(paths: list[str], where: str) -> None:
    """Raise LoadError for pickles that config.yaml does not name, where there are any."""
    if not paths:
        return
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    listed = ", ".join(paths[:_MAX_LISTED]) + more
    raise LoadError(
        f"{where} has weights as pickle, which can run any code when they are loaded: {listed}",
        cure="take a revision or a repository with safetensors, or leave these files out with "
        "checkpoints.ignored_file_patterns; for an author you trust, name them in checkpoints.allow_pickle",
    )


def scan(file: Path, path: str, where: str) -> list[str]:
    """Scan a pickle that is allowed. Returns its imports that are neither known to be harmless nor to be dangerous.

    Raises LoadError where it would call something dangerous, or cannot be read to its end.
    """
    from picklescan.scanner import SafetyLevel, scan_bytes

    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # what it finds is said here
    try:
        with file.open("rb") as stream:
            result = scan_bytes(stream, path, PurePosixPath(path).suffix.lower())
    except Exception as error:
        raise _refusal(path, where, f"cannot be scanned ({str(error) or type(error).__name__})") from error
    found = {
        level: [f"{g.module}.{g.name}" for g in result.globals if g.safety is level] for level in SafetyLevel
    }
    dangerous = sorted(set(found[SafetyLevel.Dangerous]))
    if dangerous:
        raise _refusal(path, where, f"would call {', '.join(dangerous)} when it is loaded")
    if result.scan_err:
        raise _refusal(path, where, "is damaged, or made so that it cannot be scanned")
    return sorted(set(found[SafetyLevel.Suspicious]))


def _refusal(path: str, where: str, reason: str) -> LoadError:
    return LoadError(
        f"the pickle {path} of {where} {reason}",
        cure="do not use it: take safetensors, and tell the checkpoint's author",
    )
