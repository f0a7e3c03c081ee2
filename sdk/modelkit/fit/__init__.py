"""Whether a model fits: weights, KV cache and an engine's overheads against the memory of a device, before any start.

`headers` and `architecture` read a checkpoint, `weights` and `cache` count its bytes, `budget` adds up what an engine
makes of them, `limits` turns the sum round, `measured` has what a benchmark showed. Nothing here imports an engine, torch or transformers.
"""

from modelkit.fit.architecture import Architecture, read_architecture
from modelkit.fit.budget import Estimate, Model, estimate
from modelkit.fit.checkpoint import config_hash, read_model
from modelkit.fit.gate import Finding, check_fit
from modelkit.fit.hardware import Device, device_by_name, device_of_compute, device_of_size, this_machine
from modelkit.fit.headers import (
    CheckpointReader,
    LocalReader,
    SourceReader,
    Tensor,
    read_tensors,
)
from modelkit.fit.limits import Suggestion, largest_concurrency, largest_max_model_len, suggestions
from modelkit.fit.measured import Measured, learn, read_measured, taught
from modelkit.fit.overheads import max_sequences
from modelkit.fit.places import open_checkpoint
from modelkit.fit.report import as_json, engine_title, gib, rows, spelled
from modelkit.fit.settings import EngineKind, Settings, kind_of, settings_of

__all__ = [
    "Architecture",
    "CheckpointReader",
    "Device",
    "EngineKind",
    "Estimate",
    "Finding",
    "LocalReader",
    "Measured",
    "Model",
    "Settings",
    "SourceReader",
    "Suggestion",
    "Tensor",
    "as_json",
    "check_fit",
    "config_hash",
    "device_by_name",
    "device_of_compute",
    "device_of_size",
    "engine_title",
    "estimate",
    "gib",
    "kind_of",
    "largest_concurrency",
    "largest_max_model_len",
    "learn",
    "max_sequences",
    "open_checkpoint",
    "read_architecture",
    "read_measured",
    "read_model",
    "read_tensors",
    "rows",
    "settings_of",
    "spelled",
    "suggestions",
    "taught",
    "this_machine",
]
