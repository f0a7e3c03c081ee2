"""From a model folder to the content of a version: checked, with its methods, its package and its weights."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelkit.config import Config, find_config, load_config
from modelkit.errors import ConfigError, Problem
from modelkit.model import import_checked_class, read_signatures
from modelkit.package import collect
from modelkit.progress import NO_PROGRESS, TransferProgress
from modelkit.versions.signatures import signatures_document
from modelkit.versions.version import ImagePart, VersionContent
from modelkit.versions.weights import weigh_folder

__all__ = ["Folder", "add_weights", "read_folder", "secret_values", "wants_weights"]

LOCK_NAME = "modelkit.lock"
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
    image: ImagePart | None = None,
) -> Folder:
    """Read a model folder, without its weights.

    Raises ConfigError with everything that is wrong with the folder, a secret inside of it too.
    """
    config = load_config(path, environment=environment, overrides=overrides)
    model_dir = find_config(path).parent
    secrets = secret_values(config)
    document = config.model_dump(mode="json")
    _refuse_secrets(document, secrets, find_config(path))
    signatures = signatures_document(read_signatures(import_checked_class(model_dir)))
    package = collect(model_dir, without=_checkpoint_dirs(config, model_dir), secret_values=secrets)
    lock = model_dir / LOCK_NAME
    content = VersionContent(
        model_id=config.model.id,
        config=document,
        signatures=signatures,
        package=package,
        lock=lock.read_bytes() if lock.is_file() else None,
        image=image,
    )
    return Folder(model_dir, config, content, package.warnings)


def add_weights(
    folder: Folder, places: Mapping[str, Path], progress: TransferProgress = NO_PROGRESS
) -> Folder:
    """Return the folder with its checkpoints, whose files are in `places` by the name of each.

    What modelkit.lock does not pin is hashed. Raises UsageError where a pinned file is not there, or another one.
    """
    checkpoints = tuple(
        weigh_folder(name, place, _pins(folder.path, name), progress) for name, place in places.items()
    )
    return replace(folder, content=replace(folder.content, checkpoints=checkpoints))


def wants_weights(config: Config) -> bool:
    """Tell whether weights belong into a version: where config.yaml says so, and where only this machine has them."""
    return config.checkpoints is not None and (
        config.checkpoints.when == "upload" or config.checkpoints.type == "local"
    )


def secret_values(config: Config) -> dict[str, str]:
    """Return the values of all secrets that the config names and this environment has, by variable."""
    names = [secret.env_var for secret in config.secrets]
    names += [config.checkpoints.token_env or ""] if config.checkpoints is not None else []
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


def _pins(model_dir: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """Return size and sha256 of each file as modelkit.lock has them, None where it does not pin this checkpoint."""
    file = model_dir / LOCK_NAME
    try:
        files = json.loads(file.read_bytes())["checkpoints"][name]["files"]
        return {each["path"]: (int(each["size_bytes"]), str(each["sha256"])) for each in files}
    except (FileNotFoundError, KeyError):
        return None
    except (ValueError, TypeError) as error:
        cure = "make it anew with `modelkit lock --update`; it is not meant to be edited"
        raise ConfigError([Problem(f"{LOCK_NAME} cannot be read: {error}", cure, file)]) from error


def _checkpoint_dirs(config: Config, model_dir: Path) -> list[Path]:
    """Return the checkpoint's folder where it is inside of the model folder: it travels as weights."""
    if config.checkpoints is None or config.checkpoints.type != "local" or not config.checkpoints.path:
        return []
    folder = (model_dir / Path(config.checkpoints.path).expanduser()).resolve()
    return [folder] if folder.is_relative_to(model_dir.resolve()) and folder != model_dir.resolve() else []
