"""The files of a model folder that make up the model, each with its hash; the package's digest is made of those."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modelkit.config import BENCH_RECORD, BENCH_RUN_MARK
from modelkit.errors import ConfigError, Problem
from modelkit.package.ignore import is_never_wanted, looks_secret, read_rules
from modelkit.package.secrets import find_secrets

__all__ = ["Package", "PackagedFile", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFile:
    """One file: its path in the package, with slashes, and where its content is."""

    path: str
    source: Path
    size_bytes: int
    sha256: str
    is_executable: bool = False


@dataclass(frozen=True)
class Package:
    """A collected model folder. `warnings` say what was left out that an author might miss."""

    files: tuple[PackagedFile, ...]
    warnings: tuple[Problem, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def digest(self) -> str:
        """The same for the same files, whoever collects them, wherever and whenever."""
        sha256 = hashlib.sha256()
        for file in self.files:
            sha256.update(f"{file.sha256} {int(file.is_executable)} {file.path}\n".encode())
        return f"sha256:{sha256.hexdigest()}"

    def manifest(self) -> dict[str, Any]:
        """Return the table of contents."""
        return {
            "digest": self.digest,
            "files": [
                {"path": file.path, "size": file.size_bytes, "sha256": file.sha256}
                | ({"executable": True} if file.is_executable else {})
                for file in self.files
            ],
        }


def collect(
    model_dir: Path, *, without: Sequence[Path] = (), secret_values: Mapping[str, str] | None = None
) -> Package:
    """Collect a model folder. `without` are folders with checkpoints, which travel as weights.

    Files that usually hold secrets are left out with a warning. Raises ConfigError where a secret is inside one that
    would not be: a token of a known format, or one of `secret_values` (variable -> value).
    """
    rules = read_rules(model_dir)
    warnings: list[Problem] = []
    # What was measured of a model is no part of it: measuring would change its digest, and a run has this machine's paths.
    left_out = {path.resolve() for path in (*without, model_dir / BENCH_RECORD.parent)}
    found = sorted(_walk(model_dir, left_out, warnings), key=lambda item: item[0])
    kept = [(name, path) for name, path in found if rules is None or not rules.match_file(name)]
    secrets = find_secrets(kept, secret_values or {})
    if secrets:
        raise ConfigError(secrets)
    # What an author ignores on purpose needs no warning.
    told = [each for each in warnings if rules is None or not rules.match_file(_name(each.path, model_dir))]
    return Package(tuple(_describe(name, path) for name, path in kept), tuple(told))


def _name(path: Path | None, model_dir: Path) -> str:
    assert path is not None
    return path.relative_to(model_dir).as_posix()


def _walk(model_dir: Path, without: set[Path], warnings: list[Problem]) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(model_dir):
        here = Path(folder)
        for name in list(folders):
            reason = _refusal(here / name, without)
            if reason is not None:
                folders.remove(name)
                warnings += reason
        for name in names:
            path = here / name
            reason = _refusal(path, without)
            if reason is not None:
                warnings += reason
            elif path.is_file():
                yield _name(path, model_dir), path


def _refusal(path: Path, without: set[Path]) -> list[Problem] | None:
    """Return why a path is left out, as warnings (none where nobody would miss it); None where it is not."""
    if is_never_wanted(path.name) or path.resolve() in without or (path / BENCH_RUN_MARK).is_file():
        return []
    if looks_secret(path.name):
        cure = "say that it is meant to be: list it in .modelkitignore"
        return [Problem("left out: it looks like a secret", cure, path, severity="warning")]
    if path.is_symlink() and path.is_dir():
        cure = "copy the folder here, or list it in .modelkitignore"
        return [Problem("left out: it is a link to a folder", cure, path, severity="warning")]
    return None


def _describe(name: str, path: Path) -> PackagedFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
    return PackagedFile(
        path=name,
        source=path,
        size_bytes=status.st_size,
        sha256=sha256,
        is_executable=bool(status.st_mode & 0o100),
    )
