"""Which of a checkpoint's files are wanted: the config's patterns, safetensors before older formats, no pickles."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from modelkit.checkpoints.base import SourceFile
from modelkit.checkpoints.pickles import is_pickle, refuse_pickles
from modelkit.config import CheckpointSourceConfig
from modelkit.errors import LoadError, closest

__all__ = ["select"]

# The same weights for other frameworks; with safetensors there is no use for them, and they double the download.
_DUPLICATE_FORMATS = ("original/*", "*.h5", "*.msgpack", "*.ot")
_SAFETENSORS = ".safetensors"


def select(files: Sequence[SourceFile], config: CheckpointSourceConfig, where: str) -> tuple[SourceFile, ...]:
    """Return the files that config.yaml wants, by path.

    Raises LoadError for a pattern that matches nothing, for pickles that are not allowed by name, and where nothing is
    left. Pickles that nobody asked for are left out without a word where safetensors are there.
    """
    paths = [file.path for file in files]
    for key in ("allowed_file_patterns", "ignored_file_patterns", "allow_pickle"):
        _check_patterns(key, getattr(config, key), paths, where)
    chosen = [path for path in paths if _is_wanted(path, config)]
    allowed = set(config.allow_pickle)
    pickles = [path for path in chosen if is_pickle(path) and path not in allowed]
    if not config.allowed_file_patterns and any(path.endswith(_SAFETENSORS) for path in chosen):
        ignored = () if config.ignored_file_patterns else _DUPLICATE_FORMATS
        left_out = {path for path in chosen if path in pickles or _matches(path, ignored)} - allowed
        chosen = [path for path in chosen if path not in left_out]
    else:
        refuse_pickles(pickles, where)
    if not chosen:
        raise LoadError(
            f"nothing of {where} is left: {_what_there_is(paths)}",
            cure="correct checkpoints.allowed_file_patterns or checkpoints.ignored_file_patterns",
        )
    kept = set(chosen)
    return tuple(sorted((file for file in files if file.path in kept), key=lambda file: file.path))


def _is_wanted(path: str, config: CheckpointSourceConfig) -> bool:
    allowed = not config.allowed_file_patterns or _matches(path, config.allowed_file_patterns)
    return (allowed and not _matches(path, config.ignored_file_patterns)) or path in config.allow_pickle


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """Match as the Hub's own client does: `*` also takes slashes, and a folder's name means all that is in it."""
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _check_patterns(key: str, patterns: Sequence[str], paths: Sequence[str], where: str) -> None:
    """Refuse a pattern that matches nothing; one that leaves out what is not there does no harm."""
    if key == "ignored_file_patterns":
        return
    for pattern in patterns:
        is_there = (
            pattern in paths if key == "allow_pickle" else any(_matches(path, [pattern]) for path in paths)
        )
        if not is_there:
            guess = closest(pattern, paths)
            hint = f"did you mean '{guess}'?" if guess else _what_there_is(paths)
            raise LoadError(f"checkpoints.{key} has '{pattern}', which matches nothing in {where}", cure=hint)


def _what_there_is(paths: Sequence[str]) -> str:
    shown = ", ".join(sorted(paths)[:6])
    return f"it has {len(paths)} files: {shown}{', ...' if len(paths) > 6 else ''}"  # noqa: PLR2004 - a line's worth
