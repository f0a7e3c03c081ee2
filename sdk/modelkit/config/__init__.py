"""config.yaml: its schema, the loader that finds every problem at once, and the JSON Schema for editors."""

from modelkit.config.folder import find_config, find_model_file
from modelkit.config.loader import check_config, load_config
from modelkit.config.models import (
    BuildConfig,
    CheckpointConfig,
    ComputeConfig,
    ConceptConfig,
    Config,
    DeploymentConfig,
    EngineConfig,
    EngineName,
    ModelConfig,
    SecretConfig,
    ServerConfig,
)

__all__ = [
    "BuildConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "ConceptConfig",
    "Config",
    "DeploymentConfig",
    "EngineConfig",
    "EngineName",
    "ModelConfig",
    "SecretConfig",
    "ServerConfig",
    "check_config",
    "find_config",
    "find_model_file",
    "load_config",
]
