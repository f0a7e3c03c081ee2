"""Which files the config of a model folder is in: config.yaml and the overlays of its environments."""

import os
import re
from pathlib import Path

from modelkit.config.source import Source, read_source
from modelkit.errors import Problem, closest

__all__ = ["CONFIG_NAME", "find_config", "read_config", "read_overlay"]

CONFIG_NAME = "config.yaml"

_ENVIRONMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def find_config(path: Path) -> Path:
    """Return the config.yaml of a model folder, or `path` itself where it is no folder."""
    # Unlike Path.is_dir, this is False, and no error, for a path that the system refuses.
    return path / CONFIG_NAME if os.path.isdir(path) else path  # noqa: PTH112


def read_config(path: Path) -> Source | Problem:
    """Read the config of a model folder (or the file given); where there is none, say how to get one."""
    try:
        file = find_config(path)
        if file.suffix == ".py" and file.is_file():
            return Problem(
                f"{path} is Python, and no {CONFIG_NAME}", f"give the folder: {path.parent}", path=path
            )
        if file.is_symlink() or file.exists():
            return read_source(file)
    except (OSError, ValueError) as error:  # a path that the system refuses
        return Problem(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", path=path)
    if not path.is_dir():
        return Problem(f"there is no {path}", f"`modelkit init {path}` makes a new model folder", path=path)
    other = next((path / name for name in ("config.yml", "Config.yaml") if (path / name).is_file()), None)
    cure = f"`modelkit init {path}` writes one; an old model folder needs one too"
    if other is not None:
        cure = f"rename it: `mv {other} {file}`"
        return Problem(f"there is no {CONFIG_NAME}, but there is a {other.name}", cure, path=file)
    return Problem(f"there is no {CONFIG_NAME} in {path}", cure, path=file)


def read_overlay(file: Path, environment: str) -> Source | Problem:
    """Read the overlay of an environment, `config.prod.yaml` for `prod`, beside the config."""
    existing = _environments(file)
    if environment in existing:
        return read_source(_overlay(file, environment))
    guess = closest(environment, existing)
    if guess is not None:
        cure = f"did you mean '{guess}'?"
    elif existing:
        cure = f"the environments here are: {', '.join(existing)}"
    elif _ENVIRONMENT.fullmatch(environment):
        cure = f"write {_overlay(file, environment).name} with the keys that differ, or leave --env out"
    else:
        cure = "an environment's name has letters, digits, '-' and '_'"
    return Problem(f"there is no environment '{environment}'", cure, path=file)


def _overlay(file: Path, environment: str) -> Path:
    return file.with_name(f"{file.stem}.{environment}{file.suffix}")


def _environments(file: Path) -> list[str]:
    try:
        names = [path.name for path in file.parent.iterdir()]
    except OSError:
        return []
    start, end = f"{file.stem}.", file.suffix
    middles = (
        name[len(start) : -len(end) or None]
        for name in names
        if name.startswith(start) and name.endswith(end)
    )
    return sorted(middle for middle in middles if _ENVIRONMENT.fullmatch(middle))
