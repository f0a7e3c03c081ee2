"""Engines run language models; `create` makes the one that config.yaml names.

Importing this package loads no engine and no heavy library: `catalog` names each engine's class by an import string.
"""

from modelkit.engines.base import Chunk, Engine, FinishReason, GenerationRequest, Sampling, SamplingParams
from modelkit.engines.catalog import ENGINES, EngineInfo, create

__all__ = [
    "ENGINES",
    "Chunk",
    "Engine",
    "EngineInfo",
    "FinishReason",
    "GenerationRequest",
    "Sampling",
    "SamplingParams",
    "create",
]
