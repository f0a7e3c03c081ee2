"""The other way round: the longest sequence and the most of them that fit, and the single changes that make it fit.

Every answer is checked by the sum itself: memory only grows with length and number, so the largest that fits is found
by halving, and a suggestion is made only where the sum with it fits.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from modelkit.config.accelerators import accelerators
from modelkit.fit.budget import Estimate, Model, estimate
from modelkit.fit.hardware import Device, device_by_name
from modelkit.fit.overheads import OVERHEADS, max_sequences
from modelkit.fit.settings import Settings
from modelkit.fit.weights import Weights

__all__ = ["Suggestion", "largest_concurrency", "largest_max_model_len", "suggestions"]

# A shorter context than this is no cure.
_LEAST_USEFUL_LENGTH = 1024
# Bytes a weight in a checkpoint of four bits, with its scales, and the share of weights that stay in 16 bits.
_FOUR_BIT_BYTES = 0.53
_HIGH_UTILIZATION = 0.95
# Ada and later: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities
_FP8_CAPABILITY = (8, 9)
# What each engine calls a KV cache of eight bits.
_EIGHT_BIT_WORDS = {"vllm": "fp8", "sglang": "fp8_e5m2", "turbomind": "int8", "pytorch": "fp8"}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One change that makes it fit: what to do, the keys that do it (none where no key does), and the sum with it."""

    text: str
    options: tuple[str, ...]
    estimate: Estimate


def largest_max_model_len(model: Model, settings: Settings, device: Device, concurrency: int) -> int:
    """Return the most tokens a sequence may have so that `concurrency` of them fit; 0 where not even one token does.

    Never more than the checkpoint was made for.
    """

    def fits(length: int) -> bool:
        return estimate(model, settings, device, max_model_len=length, concurrency=concurrency).fits

    return _largest(fits, model.architecture.max_model_len)


def largest_concurrency(
    model: Model, settings: Settings, device: Device, max_model_len: int | None = None
) -> int:
    """Return how many sequences of full length fit at the same time, as many as the engine answers at most."""
    most = estimate(model, settings, device, max_model_len=max_model_len).most_sequences
    return min(most, max_sequences(settings, device))


def suggestions(
    model: Model,
    settings: Settings,
    device: Device,
    *,
    max_model_len: int | None = None,
    concurrency: int = 1,
) -> list[Suggestion]:
    """Return the single changes after which it fits, the cheapest first; none where it fits or nothing alone helps."""
    asked = estimate(model, settings, device, max_model_len=max_model_len, concurrency=concurrency)
    if asked.fits:
        return []
    changes = _changes(model, settings, device, asked)
    return [change for change in changes if change.estimate.fits]


def _changes(model: Model, settings: Settings, device: Device, asked: Estimate) -> Iterator[Suggestion]:
    length, concurrency = asked.max_model_len, asked.concurrency

    def suggest(
        text: str,
        *options: str,
        changed: Model = model,
        of: Settings = settings,
        on: Device = device,
        max_model_len: int = length,
        num: int = concurrency,
    ) -> Suggestion:
        return Suggestion(
            text, options, estimate(changed, of, on, max_model_len=max_model_len, concurrency=num)
        )

    shorter = largest_max_model_len(model, settings, device, concurrency)
    if _LEAST_USEFUL_LENGTH <= shorter < length:
        yield suggest(
            f"lower max_model_len to {shorter}", f"engine.max_model_len={shorter}", max_model_len=shorter
        )
    fewer = min(asked.most_sequences, max_sequences(settings, device))
    if 1 <= fewer < concurrency:
        yield suggest(f"answer {fewer} at the same time instead of {concurrency}", num=fewer)
    word = _EIGHT_BIT_WORDS.get(settings.engine)
    if word is not None and settings.kv_cache_dtype == "auto" and _has_eight_bits(device, word):
        of = replace(settings, kv_cache_dtype=word)
        yield suggest(f"keep the KV cache in 8 bits ({word})", f"engine.kv_cache_dtype={word}", of=of)
    if settings.engine == "vllm" and _has_room_for_more(asked):
        of = replace(settings, utilization=_HIGH_UTILIZATION)
        yield suggest(
            f"let the engine take {_HIGH_UTILIZATION:.0%} of the memory",
            f"engine.gpu_memory_utilization={_HIGH_UTILIZATION}",
            of=of,
        )
    if settings.engine == "vllm" and asked.spilling_bytes:
        share = settings.utilization or OVERHEADS["vllm"].utilization
        less = math.floor((share - asked.spilling_bytes / device.usable_bytes) * 100) / 100
        of = replace(settings, utilization=less)
        yield suggest(
            f"leave the engine {less:.0%} of the memory", f"engine.gpu_memory_utilization={less}", of=of
        )
    if model.architecture.quantization is None and settings.quantization is None:
        yield suggest("use a 4-bit (AWQ or GPTQ) checkpoint of the model", changed=_in_four_bits(model))
    yield from _more_devices(suggest, model, settings, device)
    yield from _larger_cards(suggest, device)


def _has_eight_bits(device: Device, word: str) -> bool:
    """Tell whether a card computes with fp8; int8 all do."""
    card = device.accelerator
    return not device.is_cpu and (
        word == "int8" or card is None or card.compute_capability >= _FP8_CAPABILITY
    )


def _has_room_for_more(asked: Estimate) -> bool:
    """Tell whether vLLM may take more of the memory: what lies outside its share has to fit beside it."""
    device, share = asked.device, asked.settings.utilization or OVERHEADS["vllm"].utilization
    outside = asked.overhead_bytes + asked.graph_bytes + asked.beyond_bytes
    return (
        not device.is_cpu
        and share < _HIGH_UTILIZATION
        and device.usable_bytes * _HIGH_UTILIZATION + outside <= device.usable_bytes
    )


def _more_devices(
    suggest: Callable[..., Suggestion], model: Model, settings: Settings, device: Device
) -> Iterator[Suggestion]:
    if settings.engine == "transformers" or device.is_cpu:
        return
    for size in (2, 4, 8):
        if size > settings.tensor_parallel_size and model.architecture.spreads_over(size):
            of = replace(settings, tensor_parallel_size=size)
            change = suggest(
                f"spread it over {size} of these GPUs",
                f"compute.num_accelerators={size}",
                f"engine.tensor_parallel_size={size}",
                of=of,
            )
            yield change
            if change.estimate.fits:
                return


def _larger_cards(suggest: Callable[..., Suggestion], device: Device) -> Iterator[Suggestion]:
    if device.is_cpu:
        return
    for card in accelerators():
        if card.usable_bytes > device.usable_bytes:
            change = suggest(
                f"use a larger GPU: {card.name}",
                on=replace(device_by_name(card.name), count=device.count),
            )
            if change.estimate.fits:
                yield change
                return


def _in_four_bits(model: Model) -> Model:
    """Return the model with its layers in four bits and its embeddings as they are."""
    architecture = model.architecture
    embeddings = architecture.vocab_size * architecture.hidden_size * (1 if architecture.is_tied else 2)

    def weights(dtype: str, quantization: str | None, size: int) -> Weights:
        plain = model.weights(dtype, quantization, size)
        kept = min(embeddings, plain.num_parameters) * 2 / size
        packed = max(0, plain.num_parameters - embeddings) * _FOUR_BIT_BYTES / size
        return replace(plain, bytes_per_device=int(kept + packed), is_estimate=True)

    return replace(model, weights=weights)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, 0 where none does; what fits stays so for less."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
