"""Where a model folder's checkpoint is, as far as it is on this machine: nothing here touches the network."""

from pathlib import Path

from modelkit.config import CheckpointConfig

__all__ = ["checkpoint_on_disk"]


def checkpoint_on_disk(config: CheckpointConfig, model_dir: Path) -> Path | None:
    """Return the folder with the checkpoint's config.json; None where it is not on this machine yet."""
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
