"""How many bytes of KV cache a sequence takes, as each engine lays it out.

`layout_of` returns a Layout: bytes for a sequence of a length, and how many tokens or sequences a pool holds. All are for
one device; a tensor-parallel group has as many pools of that size.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from modelkit.fit.architecture import Architecture, LayerCache
from modelkit.fit.settings import EngineKind, Settings

__all__ = ["Layout", "bytes_per_token", "kv_element_bytes", "layout_of"]

# vLLM's CacheConfig.block_size; LMDeploy's cache_block_seq_len and block_size (lmdeploy/messages.py). SGLang's pages are
# of one token with its default attention back ends, TGI's blocks of one token with flashinfer.
BLOCK_TOKENS: dict[EngineKind, int] = {
    "vllm": 16,
    "sglang": 1,
    "turbomind": 64,
    "pytorch": 64,
    "tgi": 1,
    "transformers": 1,
}

# vllm/platforms/cpu.py.
_VLLM_CPU_BLOCK = 128
# In-flight batches for which vLLM keeps blocks that a window has left: two with asynchronous scheduling, its default
# on GPUs (vllm/config/vllm.py: max_in_flight_tokens).
_VLLM_BATCHES_IN_FLIGHT = 2
# sglang/srt/server_args.py: swa_full_tokens_ratio.
_SGLANG_SWA_RATIO = 0.8
# sglang/srt/configs/model_config.py: is_hybrid_swa_model. Other models with windows get memory as if they had none.
_SGLANG_HYBRID = ("GptOss", "Llama4", "Gemma4", "MiMoV2", "Step3p", "Laguna", "Mellum")

# modelkit/engines/_batch.py: COLUMN_STEP, which cannot be imported without torch.
_BATCH_COLUMN_STEP = 64

_KV_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "int8": 1.0,
    "8": 1.0,
    "int4": 0.5,
    "4": 0.5,
    "nvfp4": 0.5625,
}
# LMDeploy keeps a scale and a zero point, two bytes each, for every head of a token (its docs: quantization/kv_quant).
_LMDEPLOY_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """How a pool of KV cache is used up.

    `units` tells how many units of `unit_bytes` a sequence of a length takes; memory is handed out in whole units.
    `rows` tells for how many sequences room is made where there are so many.
    """

    unit_bytes: int
    units: Callable[[int], int]
    rows: Callable[[int], int] = lambda num: num

    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes that a sequence of that length takes."""
        return self.units(num_tokens) * self.unit_bytes

    def num_sequences(self, pool_bytes: int, num_tokens: int) -> int:
        """Return how many sequences of that length a pool holds at the same time."""
        needed = self.units(num_tokens)
        fit = max(0, pool_bytes // self.unit_bytes) // needed if needed else 0
        return fit if self.rows(fit) <= fit else self.rows(fit) // 2

    def num_tokens(self, pool_bytes: int, num_tokens: int) -> int:
        """Return how many tokens a pool holds, in sequences of that length: what engines report as their capacity."""
        needed = self.units(num_tokens)
        return int(max(0, pool_bytes // self.unit_bytes) / needed * num_tokens) if needed else 0


def kv_element_bytes(settings: Settings, dtype: str) -> float:
    """Return the bytes of one number in the KV cache."""
    name = settings.kv_cache_dtype.lower()
    return _KV_BYTES.get(dtype if name == "auto" else name, _KV_BYTES[dtype])


def bytes_per_token(architecture: Architecture, settings: Settings, dtype: str) -> int:
    """Return what one more token takes in every layer that keeps all of them, and in every window not yet full."""
    element_bytes = kv_element_bytes(settings, dtype)
    return sum(_layer_bytes(layer, settings, element_bytes) for layer in architecture.layers)


def layout_of(
    architecture: Architecture,
    settings: Settings,
    dtype: str,
    max_batched_tokens: int,
    *,
    on_cpu: bool = False,
) -> Layout:
    """Return how an engine lays out the cache of a model. `max_batched_tokens` is what it reads of prompts at once."""
    element_bytes = kv_element_bytes(settings, dtype)
    paged = [layer for layer in architecture.layers if layer.kind != "state"]
    has_states = any(layer.state_elements for layer in architecture.layers)
    kinds = {layer.kind for layer in paged}
    if not paged or has_states:
        return _by_bytes(architecture, settings, element_bytes)
    if settings.engine == "vllm" and "sliding" in kinds:
        in_flight = (1 if on_cpu else _VLLM_BATCHES_IN_FLIGHT) * max_batched_tokens
        block = _VLLM_CPU_BLOCK if on_cpu else BLOCK_TOKENS["vllm"]
        return _vllm_groups(paged, settings, element_bytes, block, in_flight)
    if (
        settings.engine == "sglang"
        and kinds == {"full", "sliding"}
        and architecture.name.startswith(_SGLANG_HYBRID)
    ):
        return _sglang_pools(paged, settings, element_bytes)
    if settings.engine == "transformers":
        return _growing(paged, settings, element_bytes)
    is_larger = on_cpu and settings.engine == "vllm" and "latent" not in kinds
    block = _VLLM_CPU_BLOCK if is_larger else BLOCK_TOKENS[settings.engine]
    token_bytes = sum(_layer_bytes(layer, settings, element_bytes) for layer in paged)
    return Layout(token_bytes * block, lambda length: -(-length // block))


def _layer_bytes(layer: LayerCache, settings: Settings, element_bytes: float) -> int:
    """Return the bytes of a token in a layer, on one device."""
    elements = layer.elements_per_token(settings.tensor_parallel_size)
    # transformers' classes cache the keys and values that they have expanded.
    if layer.kind == "latent" and settings.engine == "transformers":
        elements = layer.expanded_elements
    size = elements * element_bytes
    if settings.engine in {"turbomind", "pytorch"} and settings.kv_cache_dtype.startswith("int"):
        heads = max(1, -(-layer.num_heads // settings.tensor_parallel_size))
        size += 2 * heads * _LMDEPLOY_SCALE_BYTES
    return int(size)


def _vllm_groups(
    layers: list[LayerCache], settings: Settings, element_bytes: float, block: int, in_flight: int
) -> Layout:
    """Lay out vLLM's hybrid KV cache: layers of one type form groups of equal size, which share one pool of blocks.

    vllm/v1/core/kv_cache_utils.py: _get_kv_cache_groups_uniform_page_size, and max_memory_usage_bytes of the specs in
    vllm/v1/kv_cache_interface.py.
    """
    counts = Counter(
        (layer.kind, layer.window, _layer_bytes(layer, settings, element_bytes)) for layer in layers
    )
    least, most = min(counts.values()), max(counts.values())
    group_size = most if most < least * 1.5 else least
    page_bytes = max(size for _, _, size in counts) * block
    groups = [(kind, window, -(-count // group_size)) for (kind, window, _), count in counts.items()]

    def units(length: int) -> int:
        total = 0
        for kind, window, num_groups in groups:
            if kind == "sliding":
                held = min(window - 1 + in_flight, length)
                total += num_groups * (-(-held // block) + 1)
            else:
                total += num_groups * -(-length // block)
        return total

    return Layout(page_bytes * group_size, units)


def _sglang_pools(layers: list[LayerCache], settings: Settings, element_bytes: float) -> Layout:
    """SGLang's two pools: the windows' is a fixed share of the other, in tokens (HybridSWAPoolConfigurator)."""
    ratio = settings.swa_full_tokens_ratio or _SGLANG_SWA_RATIO
    sizes = Counter[str]()
    for layer in layers:
        sizes[layer.kind] += _layer_bytes(layer, settings, element_bytes)
    return Layout(int(sizes["full"] + ratio * sizes["sliding"]), lambda length: length)


def _growing(layers: list[LayerCache], settings: Settings, element_bytes: float) -> Layout:
    """Lay out modelkit's own batch (engines/_batch.py).

    Rows of equal length get room for half as much again when they are laid out anew, and there are as many rows as the
    next power of two. What a window has left behind is kept.
    """
    step = _BATCH_COLUMN_STEP
    column_bytes = sum(_layer_bytes(layer, settings, element_bytes) for layer in layers)

    def units(length: int) -> int:
        return -(-(length + max(step, length // 2)) // step)

    return Layout(column_bytes * step, units, lambda num: 1 << (num - 1).bit_length() if num else 0)


def _by_bytes(architecture: Architecture, settings: Settings, element_bytes: float) -> Layout:
    """Count to the byte: models with layers that keep a state instead of tokens."""

    def size(length: int) -> int:
        total = 0
        for layer in architecture.layers:
            held = min(length, layer.window) if layer.kind == "sliding" else length
            total += held * _layer_bytes(layer, settings, element_bytes)
            total += int(layer.state_elements * element_bytes / settings.tensor_parallel_size)
        return total

    return Layout(1, size)
