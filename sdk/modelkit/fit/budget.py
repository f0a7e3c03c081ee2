"""The sum: what a model, an engine and a device come to, and how much is left for the KV cache.

Each engine divides memory in its own way; `_ROOMS` has one function for each, written after the engine's source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from modelkit.fit.architecture import Architecture
from modelkit.fit.cache import Layout, layout_of
from modelkit.fit.hardware import Device
from modelkit.fit.overheads import (
    CPU_PROCESS_BYTES,
    OVERHEADS,
    activation_bytes,
    max_batched_tokens,
    max_sequences,
    sglang_defaults,
)
from modelkit.fit.settings import EngineKind, Settings
from modelkit.fit.weights import DTYPE_BYTES, Weights

__all__ = ["Estimate", "Model", "estimate", "resolved_dtype"]

_MIB = 1024**2
_GIB = 1024**3
# server/text_generation_server/models/globals.py: TGI_WIGGLE_ROOM.
_TGI_MARGIN = 0.9
# lmdeploy/turbomind/supported_models.py: SUPPORTED_ARCHS.
_TURBOMIND_RUNS = frozenset(
    {
        "Glm4MoeLiteForCausalLM",
        "GptOssForCausalLM",
        "InternLM2ForCausalLM",
        "InternLM3ForCausalLM",
        "InternS1ForConditionalGeneration",
        "InternS2MobiusForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration",
        "InternVLChatModel",
        "InternVLForConditionalGeneration",
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    }
)
# modelkit.engines.vllm gives vLLM on a CPU a KV cache of this size, where nothing else is said.
_VLLM_CPU_KV_BYTES = 2 * _GIB


@dataclass(frozen=True, slots=True)
class Model:
    """What is to fit: a checkpoint's architecture, and its weights by dtype, quantization and number of devices.

    `config_hash` names the config.json that it was read of, `beyond` how many bytes more than the sum each engine was seen
    to have in use (measured.py).
    """

    architecture: Architecture
    weights: Callable[[str, str | None, int], Weights]
    config_hash: str = ""
    beyond: Mapping[EngineKind, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What comes to lie on each device, in bytes.

    `kv_room_bytes` is what the engine has for the KV cache, `kv_bytes` what `concurrency` sequences of `max_model_len`
    tokens take of it. `overhead_bytes` are the context, libraries and links; `beyond_bytes` what bench saw beside all that.
    It comes up while the engine works, when the cache is laid out long since: it makes the cache no smaller.
    """

    device: Device
    settings: Settings
    dtype: str
    max_model_len: int
    concurrency: int
    weights: Weights
    activation_bytes: int
    graph_bytes: int
    overhead_bytes: int
    beyond_bytes: int
    kv_room_bytes: int
    kv_bytes: int
    sequence_bytes: int
    kv_capacity_tokens: int
    most_sequences: int

    @property
    def fits(self) -> bool:
        """Whether all that was asked for fits at the same time."""
        return self.most_sequences >= self.concurrency and not self.spilling_bytes

    @property
    def missing_bytes(self) -> int:
        """How much more each device would have to have; 0 where it fits."""
        return 0 if self.fits else max(1, self.kv_bytes - self.kv_room_bytes, self.spilling_bytes)

    @property
    def spilling_bytes(self) -> int:
        """How much of what bench saw finds no room beside what the engine reserves."""
        return max(0, self.beyond_bytes - max(0, self.left_alone_bytes))

    @property
    def left_alone_bytes(self) -> int:
        """What the engine leaves to others; less than nothing where its graphs and context are more than that."""
        return self.device.usable_bytes - self.reserved_bytes

    @property
    def used_bytes(self) -> int:
        """Return the sum on each device."""
        return (
            self.weights.bytes_per_device
            + self.kv_bytes
            + self.activation_bytes
            + self.graph_bytes
            + self.overhead_bytes
            + self.beyond_bytes
        )

    @property
    def reserved_bytes(self) -> int:
        """Return the sum on each device of an engine that lays out all its KV cache at the start."""
        return self.used_bytes - self.beyond_bytes - self.kv_bytes + self.kv_room_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What an engine's division of memory is made of, in bytes on each device."""

    architecture: Architecture
    settings: Settings
    device: Device
    max_model_len: int
    weights: int
    activation: int = 0
    graphs: int = 0
    context: int = 0
    runtime: int = 0

    @property
    def share(self) -> float:
        """The share of memory that was asked for, or the engine's default."""
        given = self.settings.utilization
        return OVERHEADS[self.settings.engine].utilization if given is None else given

    @property
    def free_after_weights(self) -> int:
        """What is left once the model is loaded."""
        return self.device.usable_bytes - self.context - self.weights - self.runtime


def estimate(
    model: Model,
    settings: Settings,
    device: Device,
    *,
    max_model_len: int | None = None,
    concurrency: int = 1,
    with_overheads: bool = True,
) -> Estimate:
    """Return the sum for `concurrency` sequences of `max_model_len` tokens; by default the longest that is configured.

    Without overheads, what does not fit is certain not to: only weights and KV cache are counted.
    """
    architecture = model.architecture
    settings = _as_it_runs(settings, architecture)
    length = max_model_len or settings.max_model_len or architecture.max_model_len
    dtype = resolved_dtype(architecture, settings, device)
    weights = model.weights(dtype, settings.quantization, settings.tensor_parallel_size)
    overheads = _overheads(architecture, settings, device, dtype, length) if with_overheads else {}
    parts = _Parts(
        architecture=architecture,
        settings=settings,
        device=device,
        max_model_len=length,
        weights=weights.bytes_per_device,
        **overheads,
    )
    room = _room(parts)
    tokens = max_batched_tokens(settings, device, length)
    layout = layout_of(architecture, settings, dtype, tokens, on_cpu=device.is_cpu)
    sequence_bytes = layout.sequence_bytes(length)
    return Estimate(
        device=device,
        settings=settings,
        dtype=dtype,
        max_model_len=length,
        concurrency=concurrency,
        weights=weights,
        activation_bytes=parts.activation,
        graph_bytes=parts.graphs,
        overhead_bytes=parts.context + parts.runtime,
        beyond_bytes=model.beyond.get(settings.engine, 0) if with_overheads else 0,
        kv_room_bytes=room,
        kv_bytes=sequence_bytes * layout.rows(concurrency),
        sequence_bytes=sequence_bytes,
        kv_capacity_tokens=layout.num_tokens(room, length),
        most_sequences=_most_sequences(layout, room, length, max_sequences(settings, device)),
    )


def _as_it_runs(settings: Settings, architecture: Architecture) -> Settings:
    """Return the settings with the back end that LMDeploy takes: PyTorch for what TurboMind cannot run."""
    if settings.engine == "turbomind" and architecture.name not in _TURBOMIND_RUNS:
        return replace(settings, engine="pytorch")
    return settings


def resolved_dtype(architecture: Architecture, settings: Settings, device: Device) -> str:
    """Return the dtype that an engine runs in: what is asked for, else the checkpoint's, made fit for the engine.

    float32 checkpoints run in 16 bits on a GPU: vLLM and SGLang take bfloat16 or float16 (config/model.py:
    _resolve_auto_dtype), LMDeploy float16. On a CPU modelkit asks vLLM for float32.
    """
    if settings.dtype in DTYPE_BYTES:
        return settings.dtype
    if device.is_cpu and settings.engine == "vllm":
        return "float32"
    written = architecture.dtype if architecture.dtype in DTYPE_BYTES else "bfloat16"
    if written == "float32" and settings.engine != "transformers":
        return "bfloat16" if settings.engine == "vllm" else "float16"
    return written


def _most_sequences(layout: Layout, room: int, length: int, limit: int) -> int:
    if room < 0:
        return 0
    if layout.units(length) == 0:  # a model without a cache
        return limit
    return layout.num_sequences(room, length)


def _overheads(
    architecture: Architecture, settings: Settings, device: Device, dtype: str, max_model_len: int
) -> dict[str, int]:
    """Return what the engine takes beside weights and cache."""
    activation = activation_bytes(architecture, settings, device, DTYPE_BYTES[dtype], max_model_len)
    if device.is_cpu:
        return {"activation": activation, "context": CPU_PROCESS_BYTES}
    overheads = OVERHEADS[settings.engine]
    links = overheads.link_bytes if settings.tensor_parallel_size > 1 else 0
    return {
        "activation": activation,
        "graphs": 0 if settings.eager else overheads.graph_bytes_per_layer * architecture.num_layers,
        "context": overheads.context_bytes + links,
        "runtime": overheads.runtime_bytes,
    }


def _room(parts: _Parts) -> int:
    """Return what is left for the KV cache on each device; less than nothing where the rest does not fit."""
    if parts.device.is_cpu:
        return _cpu_room(parts)
    if parts.settings.kv_cache_bytes is not None:
        left = parts.free_after_weights - parts.activation - parts.graphs
        return min(parts.settings.kv_cache_bytes, left)
    return _ROOMS[parts.settings.engine](parts)


def _vllm_room(parts: _Parts) -> int:
    """gpu_worker.py, determine_available_memory: the share of all memory, less weights, peak and what is not torch's.

    The context and NCCL's buffers are there before the measurement begins, so they lie outside the share, and have to
    find room there. So do CUDA graphs: the model runner that dense models get does not count them
    (gpu/model_runner.py: profile_cudagraph_memory).
    """
    usable = parts.device.usable_bytes
    asked = min(int(usable * parts.share), usable - parts.context)
    return asked - parts.weights - parts.activation - parts.runtime


def _sglang_room(parts: _Parts) -> int:
    """kv_cache_configurator.py, _profile_available_bytes: mem_fraction_static of what was free before loading."""
    before = parts.device.usable_bytes - parts.context
    fraction = parts.settings.utilization or _sglang_fraction(parts)
    return int(before * fraction) - parts.weights - parts.runtime


def _sglang_fraction(parts: _Parts) -> float:
    """server_args.py, _handle_gpu_memory_settings: what is kept for activations and graphs, in MiB."""
    settings, device = parts.settings, parts.device
    total = device.memory_bytes / _MIB
    chunk, max_batch = sglang_defaults(device, settings.tensor_parallel_size)
    chunk = settings.max_num_batched_tokens or chunk
    reserved = 512 + max(chunk, 2048) * 1.5 + settings.tensor_parallel_size / 8 * 1024
    if not settings.eager:
        # Graphs of prefills go without latent attention ("incompatible with MLA attention; disabling prefill CUDA graph").
        is_latent = any(layer.kind == "latent" for layer in parts.architecture.layers)
        longest = min(chunk, settings.max_model_len or chunk)
        reserved += max_batch * 2 + (0 if is_latent else _num_prefill_graphs(longest) * 8)
    if total > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((total - reserved) / total, 3)


def _num_prefill_graphs(longest: int) -> int:
    """server_args.py, _generate_prefill_cuda_graph_batch_sizes."""
    sizes = [
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, longest + 1, 512),
    ]
    return sum(size <= longest for size in sizes)


def _turbomind_room(parts: _Parts) -> int:
    """cache_max_entry_count of what is free after the weights ("Object cache budget: ... from free ... and ratio")."""
    return int(parts.free_after_weights * parts.share)


def _pytorch_room(parts: _Parts) -> int:
    """executor/base.py, _get_runtime_size: the longest prefill's logits are taken off before the share is applied."""
    settings = parts.settings
    free = parts.free_after_weights
    tokens = max_batched_tokens(settings, parts.device, parts.max_model_len)
    while tokens > 0:
        logits = (tokens + 2 * max_sequences(settings, parts.device)) * parts.architecture.vocab_size * 2
        if free - logits > 0 or tokens == 1:
            return int((free - logits) * parts.share)
        tokens //= 2
    return -1


def _tgi_room(parts: _Parts) -> int:
    """flash_causal_lm.py, warmup: what a warm-up of the longest prefill leaves of the share, less a margin."""
    share = int(parts.device.usable_bytes * parts.share) - parts.context
    return int((share - parts.weights - parts.activation - parts.runtime) * _TGI_MARGIN)


def _growing_room(parts: _Parts) -> int:
    """transformers: nothing is set aside; the cache grows into what is left."""
    return int((parts.free_after_weights - parts.activation) * parts.share)


def _cpu_room(parts: _Parts) -> int:
    """Main memory: vLLM is given an amount, the others grow into what is left."""
    left = parts.device.usable_bytes - parts.context - parts.weights - parts.activation
    if parts.settings.engine != "vllm":
        return left
    if parts.settings.kv_cache_bytes is not None:
        return min(left, parts.settings.kv_cache_bytes)
    if parts.settings.utilization is not None:
        return int(parts.device.usable_bytes * parts.settings.utilization) - (
            parts.device.usable_bytes - left
        )
    return min(left, _VLLM_CPU_KV_BYTES)


_ROOMS: Mapping[EngineKind, Callable[[_Parts], int]] = MappingProxyType(
    {
        "vllm": _vllm_room,
        "sglang": _sglang_room,
        "turbomind": _turbomind_room,
        "pytorch": _pytorch_room,
        "tgi": _tgi_room,
        "transformers": _growing_room,
    }
)
