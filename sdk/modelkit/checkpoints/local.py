"""A checkpoint that is a folder on this machine."""

from pathlib import Path

from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError

__all__ = ["resolve"]


def resolve(config: CheckpointConfig, model_dir: Path) -> Path:
    """Return the folder `checkpoints.path`, relative to the model folder. Raises LoadError where it is not there."""
    if config.path is None:
        raise LoadError(
            "a local checkpoint needs 'checkpoints.path'",
            cure="name the folder with the weights in config.yaml, such as path: checkpoint",
        )
    folder = (model_dir / Path(config.path).expanduser()).resolve()
    if not folder.exists():
        raise LoadError(f"there is no checkpoint folder {folder}", cure=_cure(model_dir))
    if not folder.is_dir():
        raise LoadError(
            f"the checkpoint {folder} is not a folder", cure="name the folder that holds the file"
        )
    if not any(folder.iterdir()):
        raise LoadError(f"the checkpoint folder {folder} is empty", cure=_cure(model_dir))
    return folder


def _cure(model_dir: Path) -> str:
    script = model_dir / "train.py"
    if script.is_file():
        return f"make it with: python {script}"
    return "put the weights there, or correct 'checkpoints.path' in config.yaml"
