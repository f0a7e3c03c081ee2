"""From a checkpoint's files to a Model: config.json and the safetensors headers, wherever they are."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from modelkit.errors import LoadError
from modelkit.fit.architecture import read_architecture
from modelkit.fit.budget import Model
from modelkit.fit.headers import CheckpointReader, Tensor, pickle_bytes, read_json, read_tensors
from modelkit.fit.weights import Weights, expected_tensors, weights_per_device

__all__ = ["config_hash", "read_model"]

CONFIG = "config.json"


def read_model(reader: CheckpointReader) -> Model:
    """Return what a checkpoint says of memory. Raises LoadError where it has no config.json that can be read.

    Where the safetensors files are not there, not whole or not readable, the weights are told from the architecture:
    somebody may be fetching them. `Weights.is_estimate` says so.
    """
    config = read_json(reader, CONFIG)
    if config is None:
        raise LoadError("the checkpoint has no config.json", cure="use a checkpoint in transformers' format")
    architecture = read_architecture(config)
    try:
        tensors = read_tensors(reader)
    except LoadError as error:
        tensors = ()
        if any(path.endswith(".safetensors") for path in reader.paths()):
            architecture = replace(architecture, notes=(*architecture.notes, error.message))
    pickled = 0 if tensors else pickle_bytes(reader)
    known: tuple[Tensor, ...] = tensors or expected_tensors(architecture)

    @cache
    def weights(dtype: str, quantization: str | None, tensor_parallel_size: int) -> Weights:
        found = weights_per_device(
            known,
            architecture,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            quantization=quantization,
        )
        if tensors:
            return found
        if pickled:
            return replace(
                found, bytes_per_device=pickled // tensor_parallel_size, file_bytes=pickled, is_estimate=True
            )
        return replace(found, is_estimate=True)

    return Model(architecture, weights, config_hash(config))


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a short name of a config.json by its content: what was measured of one model says nothing of another."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
