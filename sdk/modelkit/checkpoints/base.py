"""The one shape every source of checkpoints has."""

from pathlib import Path
from typing import Protocol

from modelkit.config import CheckpointConfig

__all__ = ["CheckpointSource"]


class CheckpointSource(Protocol):
    """A function that makes sure a checkpoint is on this machine.

    What is there already is not fetched again, and then nothing touches the network. Safe to call from several
    processes at once. Raises LoadError, ending with the cure.
    """

    def __call__(self, config: CheckpointConfig, model_dir: Path) -> Path:
        """Return the folder with the checkpoint's files, an absolute path."""
        ...
