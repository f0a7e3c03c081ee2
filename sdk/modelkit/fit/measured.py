"""What `modelkit bench` saw of a model's GPU memory, for the sum to learn from.

Most engines lay their KV cache out at the start, so that their peak is the sum of all they reserve and little more: 0.1 to
2 GiB from one caller to a hundred. What was seen beyond that sum (a pool that fragments, workspaces) belongs to the engine, the
model and the load, and is to be expected with other settings and on another card too. Less than the sum teaches nothing: the
longest prompt may not have come yet.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelkit.config import BENCH_RECORD, EngineConfig
from modelkit.errors import UsageError
from modelkit.fit.budget import Model, estimate
from modelkit.fit.hardware import device_of_gpu
from modelkit.fit.settings import EngineKind, settings_of

__all__ = ["Measured", "learn", "read_measured", "taught"]

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    UsageError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The most memory of each device that an engine had in use, and what the sum comes to with its settings of then."""

    kind: EngineKind
    engine: str
    device: str
    load: str
    run_id: str
    peak_bytes: int
    expected_bytes: int

    @property
    def beyond_bytes(self) -> int:
        """How much more than the sum there was."""
        return max(0, self.peak_bytes - self.expected_bytes)


def learn(model: Model, model_dir: Path) -> Model:
    """Return the model with what its folder's last benchmark has shown; the same where there is none."""
    return taught(model, read_measured(model, model_dir))


def taught(model: Model, seen: Sequence[Measured]) -> Model:
    """Return the model with what was seen of it; the same where that is nothing."""
    return replace(model, beyond={each.kind: each.beyond_bytes for each in seen}) if seen else model


def read_measured(model: Model, model_dir: Path) -> tuple[Measured, ...]:
    """Return what a folder's last benchmark saw of each engine; nothing where it saw no GPU, or cannot be read."""
    most: dict[EngineKind, Measured] = {}  # one engine may have been measured twice, over gRPC and HTTP
    try:
        record = json.loads((model_dir / BENCH_RECORD).read_bytes())
        for seen in _measured(model, record):
            if seen.kind not in most or seen.beyond_bytes > most[seen.kind].beyond_bytes:
                most[seen.kind] = seen
        return tuple(most.values())
    except _UNREADABLE:
        return ()  # a record of another version of modelkit, or nobody's: the sum stands by itself


def _measured(model: Model, record: dict[str, Any]) -> Iterator[Measured]:
    gpus = {(gpu["name"], gpu["memory_bytes"]) for gpu in record["gpus"]}
    if len(gpus) != 1:  # none, or of several kinds
        return
    device, num = device_of_gpu(*gpus.pop()), len(record["gpus"])
    for subject in record["subjects"]:
        levels = [
            level
            for level in record["levels"]
            if level["subject"] == subject["name"] and level["gpu_memory_bytes_max"] is not None
        ]
        if subject.get("config_hash") != model.config_hash:  # another model was here then
            continue
        # All GPUs that the run could use were summed up: with others among them nobody knows whose memory it was.
        if not levels or subject.get("tensor_parallel_size") != num:
            continue
        options = json.dumps({"name": subject["engine"], **subject["engine_args"]})
        settings = settings_of(EngineConfig.model_validate_json(options))
        if settings is None or settings.engine == "transformers":  # its cache grows with the load
            continue
        most = max(levels, key=lambda level: float(level["gpu_memory_bytes_max"]))
        expected = estimate(model, settings, device)
        peak_bytes = (most["gpu_memory_bytes_max"] - (subject.get("gpu_used_before_bytes") or 0)) // num
        if not 0 < peak_bytes <= device.memory_bytes:  # no card has that
            continue
        yield Measured(
            kind=expected.settings.engine,
            engine=f"{subject['engine']} {subject['engine_version'] or ''}".rstrip(),
            device=device.name,
            load=most["load"],
            run_id=record["run_id"],
            peak_bytes=int(peak_bytes),
            expected_bytes=expected.reserved_bytes,
        )
