"""Where weights come from: one source per file, named by `checkpoints.type` in config.yaml.

Importing this package loads no source; a source's library is loaded when something has to be fetched.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from modelkit.checkpoints.base import CheckpointSource
from modelkit.config import CheckpointConfig
from modelkit.errors import UsageError

__all__ = ["SOURCES", "CheckpointSource", "resolve"]

# Type -> "module:function", loaded when chosen.
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "huggingface": "modelkit.checkpoints.huggingface:resolve",
        "local": "modelkit.checkpoints.local:resolve",
    }
)


def resolve(config: CheckpointConfig, model_dir: Path) -> Path:
    """Return the folder with a model's checkpoint, fetching what is not there yet. This may take minutes.

    `model_dir` is the model folder, which paths in config.yaml are relative to. Raises LoadError where the checkpoint
    cannot be had, UsageError where this release has no such source.
    """
    target = SOURCES.get(config.type)
    if target is None:
        raise UsageError(
            f"this release of modelkit cannot fetch checkpoints of type '{config.type}'",
            cure=f"set checkpoints.type in config.yaml to one of: {', '.join(SOURCES)}",
        )
    module_name, _, function_name = target.partition(":")
    source: Callable[[CheckpointConfig, Path], Path] = getattr(import_module(module_name), function_name)
    return source(config, model_dir)
