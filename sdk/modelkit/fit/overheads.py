"""What engines take beside weights and KV cache, as data: each number with where it comes from.

Numbers marked (measured) come from benchmarks/fit_accuracy.py, whose results lie in benchmarks/results; where nothing is
said of a number it is an estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelkit.fit.architecture import Architecture
from modelkit.fit.hardware import Device
from modelkit.fit.settings import EngineKind, Settings

__all__ = ["OVERHEADS", "Overheads", "activation_bytes", "max_batched_tokens", "max_sequences"]

_MIB = 1024**2
_GIB = 1024**3

# A100s and cards of less than 70 GiB get the smaller defaults (vllm/engine/arg_utils.py: get_batch_defaults).
_VLLM_LARGE_CARD_BYTES = 70 * _GIB
# sglang/srt/server_args.py, _handle_gpu_memory_settings: MiB of the card, chunked_prefill_size, CUDA graph batch sizes
# with less than four devices and with more.
SGLANG_BY_MEMORY = (
    (20 * 1024, 2048, 8, 8),
    (35 * 1024, 2048, 24, 80),
    (60 * 1024, 4096, 32, 160),
    (160 * 1024, 8192, 256, 512),
)
SGLANG_LARGEST = (16384, 512, 512)
# lmdeploy/utils.py: get_max_batch_size.
_LMDEPLOY_BATCH = {"a100": 384, "a800": 384, "h100": 1024, "h800": 1024, "h200": 1024}


# 528.8 MiB of an H100 and of an H200 are in use once torch 2.11 with CUDA 13 has made its context (measured).
_CONTEXT = 529 * _MIB
# NCCL's channels and the engines' custom all-reduce buffers, 8 MiB a peer and direction and a signal pool. An estimate:
# nobody has measured it with more than one device.
_LINKS = 400 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """One engine's overheads on a GPU, and its default share of memory.

    context_bytes: the CUDA context and libraries, before anything is allocated.
    runtime_bytes: what is allocated outside PyTorch's pool while the engine warms up: workspaces, kernels.
    graph_bytes_per_layer: CUDA graphs, for each layer of the model.
    hidden, intermediate: how many copies of the hidden state and of the feed-forward layer are alive at the peak.
    logits_bytes: bytes for each entry of the logits at the peak of sampling.
    link_bytes: buffers of NCCL and of the engine's own all-reduce, with more than one device.
    """

    utilization: float
    context_bytes: int = _CONTEXT
    runtime_bytes: int
    graph_bytes_per_layer: int
    hidden: float = 4
    # gate_up_proj's output is twice the width of the layer, the activation's another.
    intermediate: float = 3
    logits_bytes: float
    link_bytes: int = _LINKS


OVERHEADS: Mapping[EngineKind, Overheads] = MappingProxyType(
    {
        "vllm": Overheads(
            # vllm/config/cache.py: gpu_memory_utilization, 0.9 before vLLM 0.20.
            utilization=0.92,
            runtime_bytes=225 * _MIB,  # 0.22 GiB for each of five models (measured)
            # 0.98 GiB for 32 layers, 0.89 for 28 and 0.54 for 26 (measured).
            graph_bytes_per_layer=27 * _MIB,
            # bfloat16 logits and their float32 copy, of which not all is there at once: 1.17 GiB for 1,024 rows of
            # 256,000 entries (measured).
            logits_bytes=5,
        ),
        "sglang": Overheads(
            utilization=0.0,  # derived, see budget.py
            runtime_bytes=195
            * _MIB,  # 0.19 GiB before the weights are loaded, for each of four models (measured)
            # 1.52 to 1.84 GiB for 28 and 32 layers, those of prefills included (measured).
            graph_bytes_per_layer=56 * _MIB,
            logits_bytes=14,
        ),
        "turbomind": Overheads(
            utilization=0.8,  # lmdeploy/messages.py: cache_max_entry_count, of what is free after the weights
            runtime_bytes=450
            * _MIB,  # 0.41 and 0.43 GiB with a 7B and an 8B model, 0.68 with a 0.5B one (measured)
            graph_bytes_per_layer=0,
            logits_bytes=10,
        ),
        "pytorch": Overheads(
            utilization=0.8,
            runtime_bytes=225 * _MIB,  # 0.15 to 0.25 GiB with four models (measured)
            graph_bytes_per_layer=20 * _MIB,
            logits_bytes=10,
        ),
        "tgi": Overheads(
            # TGI's launcher: --cuda-memory-fraction, of which a margin is kept (budget.py).
            utilization=1.0,
            runtime_bytes=250 * _MIB,
            graph_bytes_per_layer=20 * _MIB,
            logits_bytes=10,
        ),
        "transformers": Overheads(
            utilization=1.0,
            runtime_bytes=100 * _MIB,
            graph_bytes_per_layer=0,
            hidden=6,
            logits_bytes=10,
            link_bytes=0,
        ),
    }
)

# A Python process with torch and the engine imported, on a CPU.
CPU_PROCESS_BYTES = _GIB


def max_sequences(settings: Settings, device: Device) -> int:
    """Return how many requests an engine answers at the same time."""
    if settings.max_num_seqs is not None:
        return settings.max_num_seqs
    if settings.engine == "vllm":
        return 1024 if _is_large(device) else 256
    if settings.engine in {"turbomind", "pytorch"}:
        name = device.name.lower()
        return next((size for part, size in _LMDEPLOY_BATCH.items() if part in name), 128)
    if settings.engine == "sglang":
        return 2048  # kv_cache_configurator.py: resolve_max_num_reqs, at least
    return 64 if settings.engine == "transformers" else 128  # engines/transformers.py: TransformersArgs


def max_batched_tokens(settings: Settings, device: Device, max_model_len: int) -> int:
    """Return how many prompt tokens an engine reads in one step."""
    if settings.engine == "transformers":  # a long prompt is read in one piece
        return max(settings.max_num_batched_tokens or 2048, max_model_len)
    if settings.max_num_batched_tokens is not None and settings.max_num_batched_tokens > 0:
        return settings.max_num_batched_tokens
    if settings.engine == "vllm":
        default = 8192 if _is_large(device) else 2048
        return min(default, max_sequences(settings, device) * max_model_len)
    if settings.engine == "sglang":
        return sglang_defaults(device, settings.tensor_parallel_size)[0]
    if settings.engine == "tgi":
        return 4096
    return 8192  # lmdeploy/messages.py: max_prefill_token_num


def sglang_defaults(device: Device, tensor_parallel_size: int) -> tuple[int, int]:
    """Return SGLang's chunked_prefill_size and largest CUDA graph batch for a card."""
    mib = device.memory_bytes // _MIB
    for limit, chunk, few, many in SGLANG_BY_MEMORY:
        if mib < limit:
            return chunk, few if tensor_parallel_size < 4 else many  # noqa: PLR2004 - SGLang's own bound
    chunk, few, many = SGLANG_LARGEST
    return chunk, few if tensor_parallel_size < 4 else many  # noqa: PLR2004


def activation_bytes(
    architecture: Architecture, settings: Settings, device: Device, dtype_bytes: int, max_model_len: int
) -> int:
    """Return the peak beside weights and cache: the widest layer at the longest step, or sampling, whichever is more."""
    overheads = OVERHEADS[settings.engine]
    tokens = max_batched_tokens(settings, device, max_model_len)
    width = architecture.intermediate_size
    if architecture.num_experts > 1:
        expert = int(architecture.text_config.get("moe_intermediate_size") or architecture.intermediate_size)
        width = max(width, expert * architecture.experts_per_token)
    per_token = (
        overheads.hidden * architecture.hidden_size
        + overheads.intermediate * width / settings.tensor_parallel_size
    )
    layer = tokens * per_token * dtype_bytes
    rows = min(max_sequences(settings, device), tokens) if settings.engine == "vllm" else min(256, tokens)
    sampling = rows * architecture.vocab_size * overheads.logits_bytes
    return int(max(layer, sampling))


def _is_large(device: Device) -> bool:
    return device.usable_bytes >= _VLLM_LARGE_CARD_BYTES and "A100" not in device.name
