"""From a model folder to the content of a version: checked, with its methods, its package and its weights."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelkit.checkpoints.lock import Lock, LockedCheckpoint, named_checkpoints
from modelkit.config import Config, find_config, load_config
from modelkit.errors import ConfigError, Problem
from modelkit.model import import_checked_class, read_signatures
from modelkit.package import Package, collect
from modelkit.versions.signatures import signatures_document
from modelkit.versions.version import ImagePart, VersionContent
from modelkit.versions.weights import weigh_folder

__all__ = [
    "Folder",
    "add_image",
    "add_weights",
    "collect_folder",
    "read_folder",
    "secret_values",
    "wants_weights",
]

_MIN_CHARACTERS = 8  # of a secret: a shorter one would be found by chance


@dataclass(frozen=True, slots=True)
class Folder:
    """A model folder that has been read. `warnings` are what its package leaves out."""

    path: Path
    config: Config
    content: VersionContent
    warnings: tuple[Problem, ...]


def read_folder(
    path: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
) -> Folder:
    """Read a model folder, without its weights and its image.

    Raises ConfigError with everything that is wrong with the folder, a secret inside of it too.
    """
    config = load_config(path, environment=environment, overrides=overrides)
    model_dir = find_config(path).parent
    document = config.model_dump(mode="json")
    _refuse_secrets(document, secret_values(config), find_config(path))
    signatures = signatures_document(read_signatures(import_checked_class(model_dir)))
    package = collect_folder(config, model_dir)
    content = VersionContent(
        model_id=config.model.id,
        config=document,
        signatures=signatures,
        package=package,
        environment=environment or os.environ.get("MODELKIT_ENV"),
        overrides=tuple(overrides),
    )
    return Folder(model_dir, config, content, package.warnings)


def collect_folder(config: Config, model_dir: Path) -> Package:
    """Return the package of a model folder. Raises ConfigError where a secret is inside of it."""
    without = _checkpoint_dirs(config, model_dir)
    return collect(model_dir, without=without, secret_values=secret_values(config))


def add_weights(folder: Folder, lock: Lock, places: Mapping[str, Path]) -> Folder:
    """Return the folder with its lock, and with the checkpoints that are in `places` by their names.

    Raises UsageError where a file that the lock pins is not there, or has another size.
    """
    checkpoints = tuple(
        weigh_folder(name, place, _pins(lock.checkpoints[name])) for name, place in places.items()
    )
    content = replace(folder.content, lock=lock.to_text().encode(), checkpoints=checkpoints)
    return replace(folder, content=content)


def add_image(folder: Folder, image: ImagePart | None) -> Folder:
    """Return the folder with an image that was built of it."""
    return replace(folder, content=replace(folder.content, image=image))


def _pins(checkpoint: LockedCheckpoint) -> dict[str, tuple[int, str]]:
    return {file.path: (file.size_bytes, file.sha256) for file in checkpoint.files}


def wants_weights(config: Config) -> bool:
    """Tell whether weights belong into a version: where config.yaml says so, and where only this machine has them."""
    named = named_checkpoints(config.checkpoints)
    is_wanted = config.checkpoints is not None and config.checkpoints.when == "upload"
    return is_wanted or any(each.type == "local" for each in named.values())


def secret_values(config: Config) -> dict[str, str]:
    """Return the values of all secrets that the config names and this environment has, by variable."""
    names = [secret.env_var for secret in config.secrets]
    names += [each.token_env or "" for each in named_checkpoints(config.checkpoints).values()]
    names += [config.engine.api_key_env or ""] if config.engine is not None else []
    names += ["MODELKIT_REGISTRY_PASSWORD", "HF_TOKEN", "OPENAI_API_KEY"]
    return {name: value for name in names if name and (value := os.environ.get(name))}


def _refuse_secrets(document: Mapping[str, Any], secrets: Mapping[str, str], file: Path) -> None:
    """Refuse a secret that came into the config by --set, say; those in files are found with the files."""
    text = json.dumps(document, ensure_ascii=False)
    found = [name for name, value in secrets.items() if len(value) >= _MIN_CHARACTERS and value in text]
    if found:
        cure = "let the model read the variable itself, and name it under 'secrets'"
        raise ConfigError([Problem(f"the config holds the value of {name}", cure, file) for name in found])


def _checkpoint_dirs(config: Config, model_dir: Path) -> list[Path]:
    """Return the checkpoints' folders that are inside of the model folder: they travel as weights."""
    paths = [each.path for each in named_checkpoints(config.checkpoints).values() if each.type == "local"]
    folders = [(model_dir / Path(path).expanduser()).resolve() for path in paths if path]
    own = model_dir.resolve()
    return [folder for folder in folders if folder.is_relative_to(own) and folder != own]
