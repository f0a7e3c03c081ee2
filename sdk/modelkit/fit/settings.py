"""What of an engine's options decides its memory, in one spelling for all engines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelkit.config import EngineConfig
from modelkit.errors import UsageError

__all__ = ["EngineKind", "Settings", "settings_of"]

# LMDeploy's two back ends divide memory in two ways.
EngineKind = Literal["vllm", "sglang", "turbomind", "pytorch", "tgi", "transformers"]
_KINDS: tuple[EngineKind, ...] = ("vllm", "sglang", "turbomind", "pytorch", "tgi", "transformers")

_EAGER = ("enforce-eager", "disable-cuda-graph", "eager-mode")
_SEQUENCES = ("max-num-seqs", "max-running-requests", "max-batch-size")
_BATCHED = (
    "max-batched-tokens",
    "max-num-batched-tokens",
    "chunked-prefill-size",
    "max-prefill-token-num",
    "max-batch-prefill-tokens",
)
_KV_BYTES = ("kv-cache-memory-bytes", "kv-cache-memory")
_SCALED = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one engine; None means what the engine does by itself.

    `utilization` is the share of memory in the engine's own sense. `max_num_batched_tokens` is the longest piece of
    prompts that is read at once. `kv_cache_bytes` is the size of the KV cache where it is given in bytes.
    """

    engine: EngineKind
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    swa_full_tokens_ratio: float | None = None
    eager: bool = False


def settings_of(config: EngineConfig, num_accelerators: int = 0) -> Settings | None:
    """Return what an engine section says; None for an engine that loads no weights here."""
    kind = _kind(config)
    if kind is None:
        return None
    args = {str(key).lstrip("-").replace("_", "-"): value for key, value in config.args.items()}
    return Settings(
        engine=kind,
        tensor_parallel_size=config.tensor_parallel_size
        or max(1, num_accelerators if kind != "transformers" else 1),
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype or "auto",
        quantization=config.quantization,
        utilization=config.gpu_memory_utilization,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs or _whole(args, _SEQUENCES),
        max_num_batched_tokens=_whole(args, _BATCHED),
        kv_cache_bytes=_whole(args, _KV_BYTES),
        swa_full_tokens_ratio=_ratio(args.get("swa-full-tokens-ratio")),
        eager=any(bool(args.get(name)) for name in _EAGER),
    )


def kind_of(name: str) -> EngineKind:
    """Return the kind that a name on the command line stands for. Raises UsageError where there is none."""
    wanted = {"lmdeploy": "turbomind", "lmdeploy:turbomind": "turbomind", "lmdeploy:pytorch": "pytorch"}.get(
        name, name
    )
    for kind in _KINDS:
        if kind == wanted:
            return kind
    names = ["vllm", "sglang", "lmdeploy", "lmdeploy:pytorch", "tgi", "transformers"]
    raise UsageError(f"'{name}' is no engine that loads weights here", cure=f"use one of: {', '.join(names)}")


def _kind(config: EngineConfig) -> EngineKind | None:
    if config.name == "lmdeploy":
        args = {key.lstrip("-"): value for key, value in config.args.items()}
        return "pytorch" if args.get("backend") == "pytorch" else "turbomind"
    return None if config.name in {"openai", "echo"} else kind_of(config.name)


def _whole(args: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Read a number as engines do: 8192, 8k, 2G."""
    for name in names:
        value = args.get(name)
        if isinstance(value, bool) or value is None:
            continue
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)\s*", str(value))
        if match:
            return int(float(match[1]) * _SCALED.get(match[2], 1))
    return None


def _ratio(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
