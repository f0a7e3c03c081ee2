"""The sum as rows for people and as JSON for scripts."""

from typing import Any

from modelkit.fit.budget import Estimate
from modelkit.fit.limits import Suggestion

__all__ = ["as_json", "engine_title", "gib", "rows", "spelled"]

_LEAST_GIB = 0.05
_MILLION, _BILLION = 1e6, 1e9

_TITLES = {"turbomind": "lmdeploy (TurboMind)", "pytorch": "lmdeploy (PyTorch)"}


def gib(num_bytes: float) -> str:
    """Write an amount of memory for people: in MiB where GiB would round it away."""
    if 0 < abs(num_bytes) < _LEAST_GIB * 1024**3:
        return f"{num_bytes / 1024**2:.2f} MiB"
    return f"{num_bytes / 1024**3:.2f} GiB"


def engine_title(found: Estimate) -> str:
    """Return the engine's name, with the back end where it has two."""
    return _TITLES.get(found.settings.engine, found.settings.engine)


def spelled(change: Suggestion) -> str:
    """Write a change with the options of the command line that make it."""
    options = " ".join(f"--set {option}" for option in change.options)
    return f"{change.text} ({options})" if options else change.text


def rows(found: Estimate) -> list[tuple[str, int]]:
    """Return what lies on each device, the last two rows what is left; all of them come to what the device has.

    Left for the KV cache is what the engine has set aside and nobody asked for; what it leaves alone others may use.
    """
    left_for_cache = found.kv_room_bytes - found.kv_bytes
    others = found.device.usable_bytes - found.used_bytes - left_for_cache
    sequences = "1 sequence" if found.concurrency == 1 else f"{found.concurrency:,} sequences"
    parts = [
        (f"weights ({_kind(found)})", found.weights.bytes_per_device),
        (f"KV cache, {sequences} of {found.max_model_len:,} tokens", found.kv_bytes),
        ("activations at their peak", found.activation_bytes),
        ("CUDA graphs", found.graph_bytes),
        (
            "the process and its libraries" if found.device.is_cpu else "CUDA context and libraries",
            found.overhead_bytes,
        ),
        ("more than that, as bench saw", found.beyond_bytes),
        ("left for more KV cache" if found.fits else "missing for the KV cache", left_for_cache),
        ("left alone by the engine" if others >= 0 else "more than there is", others),
    ]
    return [(text, size) for text, size in parts if size]


def as_json(found: Estimate) -> dict[str, Any]:
    """Return the sum as plain values, in bytes."""
    return {
        "fits": found.fits,
        "device": {
            "name": found.device.name,
            "kind": found.device.kind,
            "memory_bytes": found.device.memory_bytes,
            "usable_bytes": found.device.usable_bytes,
        },
        "engine": found.settings.engine,
        "tensor_parallel_size": found.settings.tensor_parallel_size,
        "dtype": found.dtype,
        "max_model_len": found.max_model_len,
        "concurrency": found.concurrency,
        "weights_bytes": found.weights.bytes_per_device,
        "weights_are_an_estimate": found.weights.is_estimate,
        "num_parameters": found.weights.num_parameters,
        "kv_bytes": found.kv_bytes,
        "kv_bytes_per_sequence": found.sequence_bytes,
        "kv_room_bytes": found.kv_room_bytes,
        "kv_capacity_tokens": found.kv_capacity_tokens,
        "activation_bytes": found.activation_bytes,
        "graph_bytes": found.graph_bytes,
        "overhead_bytes": found.overhead_bytes,
        "beyond_bytes": found.beyond_bytes,
        "missing_bytes": found.missing_bytes,
    }


def _kind(found: Estimate) -> str:
    estimated = ", estimated" if found.weights.is_estimate else ""
    num = found.weights.num_parameters
    count = f"{num / _BILLION:.2f} B" if num >= _BILLION / 10 else f"{num / _MILLION:.2f} M"
    return f"{count} in {found.dtype}{estimated}"
