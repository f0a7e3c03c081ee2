"""Where a model folder's checkpoint is."""

from pathlib import Path

from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError
from modelkit.fit.headers import CheckpointReader, LocalReader

__all__ = ["checkpoint_on_disk", "open_checkpoint"]


def open_checkpoint(config: CheckpointConfig, model_dir: Path) -> CheckpointReader:
    """Return the files of a checkpoint. Raises LoadError where it is not on this machine."""
    folder = checkpoint_on_disk(config, model_dir)
    if folder is None:
        raise LoadError(
            f"the checkpoint {config.repo_id or config.path} is not on this machine, so its config.json cannot be read",
            cure="fetch it first (`modelkit serve` does), or give the folder of a copy: modelkit fit FOLDER",
        )
    return LocalReader(folder)


def checkpoint_on_disk(config: CheckpointConfig, model_dir: Path) -> Path | None:
    """Return the folder with the checkpoint's config.json, without the network; None where it is not here yet."""
    if config.type == "local":
        folder = model_dir / Path(config.path or "").expanduser()
        return folder if (folder / "config.json").is_file() else None
    if config.type == "huggingface" and config.repo_id:
        return _in_hub_cache(config.repo_id, config.revision)
    return None


def _in_hub_cache(repo_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    except HFValidationError:  # which is another check's to say
        return None
    return Path(found).parent if isinstance(found, str) else None
