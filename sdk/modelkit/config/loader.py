"""From a model folder to a checked Config, or to the list of everything that is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from modelkit.config.models import Config
from modelkit.config.quantities import FROM_FILE
from modelkit.errors import ConfigError, Problem


def find_config(path: Path) -> Path:
    """Return the config.yaml of a model folder, or `path` itself where it is a file."""
    return path / "config.yaml" if path.is_dir() else path


def load_config(path: Path, *, environment: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a model folder (or of the file given). Raises ConfigError with all problems."""
    config, problems = check_config(path, environment=environment, overrides=overrides)
    if config is None:
        raise ConfigError(problems)
    return config


def check_config(
    path: Path, *, environment: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Config | None, list[Problem]]:
    """Return the config, where it has no errors, and every problem found, warnings included."""
    file = find_config(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Config.model_validate(data, by_name=False, by_alias=True, context=FROM_FILE), []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return None, [Problem(str(error), path=file)]
    except ValidationError as error:
        return None, [Problem(f"{e['loc']}: {e['msg']}", path=file) for e in error.errors()]
