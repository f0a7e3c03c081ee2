"""How fast a GPU could decode at best: what a step has to read from memory, over the memory's bandwidth.

A step of c callers reads the weights once (all but the embedding table, of which it needs c rows) and the keys and values
of every token in each caller's context, which is on average the prompt and half of the answer:

    step_s     = (weight bytes + c * (input + output / 2) * KV bytes per token) / bandwidth
    prefill_s  = (2 * matrix parameters * input + 2 * input^2 * heads * head_dim * layers) / matrix rate
    decode     = c / step_s                                 tokens/s, prefill apart
    with prefill: c * output / (output * step_s + c * prefill_s)

The matrix parameters are the layers' alone: the head computes one row of a prompt. The attention's term is the causal half
of 4 * input^2 * heads * head_dim per layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Architecture", "Gpu", "Roofline", "find_gpu", "read_architecture", "roofline"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU's memory and matrix units give. Measured with a large copy and a large bf16 product where it says so."""

    bandwidth_bytes_s: float
    matrix_flops: float
    is_measured: bool = False


# By what nvidia-smi calls them, the more particular name first. Sources: NVIDIA's data sheets (dense bf16, peak).
_GPUS: Final[Mapping[str, Gpu]] = {
    "H200": Gpu(4.3e12, 790e12, is_measured=True),
    "H100 PCIe": Gpu(2.0e12, 756e12),
    "H100 NVL": Gpu(3.9e12, 835e12),
    "H100": Gpu(3.35e12, 989e12),
    "B200": Gpu(8.0e12, 2250e12),
    "A100-PCIE-40GB": Gpu(1.555e12, 312e12),
    "A100-SXM4-40GB": Gpu(1.555e12, 312e12),
    "A100 80GB PCIe": Gpu(1.935e12, 312e12),
    "A100": Gpu(2.039e12, 312e12),
    "L40S": Gpu(0.864e12, 362e12),
    "L40": Gpu(0.864e12, 181e12),
    "L4": Gpu(0.3e12, 121e12),
    "A10G": Gpu(0.6e12, 70e12),
    "A10": Gpu(0.6e12, 125e12),
    "RTX 4090": Gpu(1.008e12, 165e12),
    "T4": Gpu(0.32e12, 65e12),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What of a model the formula needs."""

    weight_bytes: float  # read by every step
    kv_bytes_per_token: float
    matrix_parameters: float
    attention_width: float  # heads * head_dim * layers


@dataclass(frozen=True, slots=True)
class Roofline:
    """The best there could be at one load."""

    step_s: float
    prefill_s: float
    decode_tok_s: float
    with_prefill_tok_s: float


def find_gpu(name: str) -> Gpu | None:
    """Return what is known of a GPU by nvidia-smi's name for it."""
    return next((gpu for known, gpu in _GPUS.items() if known.lower() in name.lower()), None)


def read_architecture(config: Mapping[str, Any], *, bytes_per_weight: float = 2.0) -> Architecture | None:
    """Read a config.json of Llama's family (Llama, Mistral, Qwen2, Qwen3, ...); None where it is something else."""
    config = config.get("text_config") or config
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
        intermediate = int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError):
        return None
    if any("expert" in key for key in config):
        return None  # a step reads the experts that its tokens choose
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    matrices = layers * (attention + 3 * hidden * intermediate)
    return Architecture(
        weight_bytes=(matrices + vocabulary * hidden) * bytes_per_weight,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * 2,
        matrix_parameters=matrices,
        attention_width=heads * head_dim * layers,
    )


def roofline(
    model: Architecture,
    gpu: Gpu,
    *,
    concurrency: int,
    input_tokens: float,
    output_tokens: float,
    num_gpus: int = 1,
) -> Roofline:
    """Return the best there could be; several GPUs share the weights and the work without loss."""
    context = input_tokens + output_tokens / 2
    read_bytes = model.weight_bytes + concurrency * context * model.kv_bytes_per_token
    step_s = read_bytes / (gpu.bandwidth_bytes_s * num_gpus)
    flops = 2 * model.matrix_parameters * input_tokens + 2 * input_tokens**2 * model.attention_width
    prefill_s = flops / (gpu.matrix_flops * num_gpus)
    return Roofline(
        step_s=step_s,
        prefill_s=prefill_s,
        decode_tok_s=concurrency / step_s,
        with_prefill_tok_s=concurrency * output_tokens / (output_tokens * step_s + concurrency * prefill_s),
    )
