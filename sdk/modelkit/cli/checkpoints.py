"""What the verbs that need weights have in common: the folder's config, and its checkpoints made ready in view."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelkit.cli import console
from modelkit.config import Config, check_config
from modelkit.errors import ConfigError

if TYPE_CHECKING:
    from modelkit.checkpoints.resolve import Terms

__all__ = ["is_own_config", "load_folder", "prepare_checkpoints", "promise_offline", "terms_in_view"]


def load_folder(path: Path, environment: str | None, overrides: Sequence[str]) -> Config:
    """Return the config of a folder, and show what is doubtful in it. Raises ConfigError with every mistake."""
    config, problems = check_config(path, environment=environment, overrides=overrides)
    if config is None:
        raise ConfigError(problems)
    if not console.is_quiet():
        console.problems(problems)
    return config


def is_own_config(environment: str | None, overrides: Sequence[str] | None) -> bool:
    """Tell whether config.yaml holds as it is: only then may modelkit.lock be written of what it comes to."""
    return not (environment or os.environ.get("MODELKIT_ENV") or overrides)


def promise_offline(offline: bool) -> bool:
    """Return whether the network may not be used, which an engine and what model.py imports hear of too."""
    from modelkit.checkpoints.resolve import is_offline

    offline = offline or is_offline()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return offline


@contextmanager
def terms_in_view(
    title: str = "fetching", *, offline: bool = False, writes_lock: bool = True
) -> "Iterator[Terms]":
    """Return terms whose progress and notes are shown."""
    from modelkit.checkpoints.resolve import Terms

    offline = promise_offline(offline)
    with console.transfer(title) as progress:
        yield Terms(
            offline=offline,
            progress=progress,
            on_note=console.info,
            on_warning=console.warning,
            writes_lock=writes_lock,
        )


def prepare_checkpoints(
    config: Config, model_dir: Path, *, offline: bool = False, writes_lock: bool = True, hold: bool = False
) -> dict[str, Path]:
    """Return the folder of every checkpoint by its name, fetching in view what is not there.

    With `hold` nobody can prune them from the cache while this process lives.
    """
    if config.checkpoints is None:
        return {}
    from modelkit.checkpoints.resolve import prepare

    with terms_in_view(offline=offline, writes_lock=writes_lock) as terms:
        folders = prepare(config, model_dir, terms)
    for folder in folders.values() if hold else ():
        terms.cache.hold(folder)
    return folders
