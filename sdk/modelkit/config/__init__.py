"""config.yaml: its schema, the loader that finds every problem at once, and the JSON Schema for editors."""

from modelkit.config.bench_record import BENCH_RECORD, BENCH_RUN_MARK
from modelkit.config.folder import find_config
from modelkit.config.json_schema import json_schema
from modelkit.config.loader import check_config, load_config, place_of
from modelkit.config.models import (
    BuildConfig,
    CheckpointConfig,
    CheckpointFileConfig,
    CheckpointSourceConfig,
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
    "BENCH_RECORD",
    "BENCH_RUN_MARK",
    "BuildConfig",
    "CheckpointConfig",
    "CheckpointFileConfig",
    "CheckpointSourceConfig",
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
    "json_schema",
    "load_config",
    "place_of",
]
