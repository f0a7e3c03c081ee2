"""Where weights come from: one source per file, named by `checkpoints.type` in config.yaml.

Importing this package loads no source; a source's library is loaded when something has to be fetched.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from modelkit.checkpoints.base import CheckpointSource, Listing, SourceFile
from modelkit.config import CheckpointSourceConfig

__all__ = ["SOURCES", "CheckpointSource", "Listing", "SourceFile", "open_source"]

# Type -> "module:class", loaded when chosen.
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "huggingface": "modelkit.checkpoints.huggingface:HuggingFaceSource",
        "s3": "modelkit.checkpoints.s3:S3Source",
        "http": "modelkit.checkpoints.http:HttpSource",
        "oci": "modelkit.checkpoints.oci:OciSource",
        "local": "modelkit.checkpoints.local:LocalSource",
    }
)


def open_source(
    config: CheckpointSourceConfig, model_dir: Path, revision: str | None = None
) -> CheckpointSource:
    """Return the source of a checkpoint; close it after use. Nothing is asked of it yet.

    `model_dir` is the model folder, which paths in config.yaml are relative to; `revision` is the pinned commit, where
    there is one. Raises LoadError where config.yaml does not say enough.
    """
    module_name, _, class_name = SOURCES[config.type].partition(":")
    source: CheckpointSource = getattr(import_module(module_name), class_name)(config, model_dir, revision)
    return source
