"""The check before anything is started: a folder whose model certainly does not fit is refused, a doubtful one named.

Certain is what holds without any overhead: the weights alone are more than there is, or not one sequence of
max_model_len fits beside them and the engine would refuse to start. The rest is an estimate, and only a warning.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelkit.config import Config
from modelkit.errors import LoadError, UsageError
from modelkit.fit.budget import Estimate, Model, estimate
from modelkit.fit.checkpoint import read_model
from modelkit.fit.hardware import Device
from modelkit.fit.limits import suggestions
from modelkit.fit.measured import learn
from modelkit.fit.places import open_checkpoint
from modelkit.fit.report import engine_title, gib, spelled
from modelkit.fit.settings import Settings, settings_of

__all__ = ["Finding", "check_fit"]

# The others start, and refuse or cut what is too long for them.
_REFUSES_TO_START = frozenset({"vllm", "tgi"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, with the cure and the keys of config.yaml that it is about, the likeliest first."""

    severity: Literal["error", "warning"]
    message: str
    cure: str
    keys: tuple[tuple[str, ...], ...]


def check_fit(config: Config, model_dir: Path, device: Device, *, offline: bool = True) -> Finding | None:
    """Return why the model of a folder does not fit on a device; None where it does, or where that cannot be told.

    Unless `offline`, the headers of a checkpoint that is not on this machine are read at its source. One that is damaged,
    or cannot be had, is not this check's to report.
    """
    if config.engine is None or config.checkpoints is None:
        return None
    settings = settings_of(config.engine, config.compute.num_accelerators)
    if settings is None or (device.is_cpu and settings.engine not in {"vllm", "transformers"}):
        return None
    try:
        with open_checkpoint(config, model_dir, offline=offline) as reader:
            return _finding(learn(read_model(reader), model_dir), settings, device)
    except (LoadError, UsageError):
        return None


def _finding(model: Model, settings: Settings, device: Device) -> Finding | None:
    likely = estimate(model, settings, device)
    if likely.fits:
        return None
    least = estimate(model, settings, device, with_overheads=False)
    is_known = model.architecture.is_known and not least.weights.is_estimate
    weights_exceed = least.weights.bytes_per_device > device.usable_bytes
    never_starts = settings.engine in _REFUSES_TO_START and not least.fits
    is_certain = is_known and (weights_exceed or never_starts)
    changes = suggestions(model, settings, device)
    cure = " or ".join(spelled(change) for change in changes[:2])
    return Finding(
        severity="error" if is_certain else "warning",
        message=_message(likely, weights_exceed=weights_exceed),
        cure=cure or "use a smaller model, or more and larger GPUs",
        keys=_keys(likely, weights_exceed=weights_exceed),
    )


def _message(found: Estimate, *, weights_exceed: bool) -> str:
    where = f"{gib(found.device.usable_bytes)} of {found.device.name}"
    weights = gib(found.weights.bytes_per_device)
    if weights_exceed:
        return f"the weights alone, {weights} on each device, are more than the {where}"
    if found.spilling_bytes and found.most_sequences:
        return (
            f"{engine_title(found)} had {gib(found.beyond_bytes)} more in use than it reserves when bench measured it, and "
            f"{gib(found.spilling_bytes)} of that find no room in the {where}"
        )
    return (
        f"one sequence of {found.max_model_len:,} tokens takes {gib(found.sequence_bytes)} of KV cache, and beside "
        f"{weights} of weights {engine_title(found)} has {gib(max(0, found.kv_room_bytes))} for it in the {where}"
    )


def _keys(found: Estimate, *, weights_exceed: bool) -> tuple[tuple[str, ...], ...]:
    compute = (("compute", "instance"), ("compute", "accelerator_type"), ("compute", "accelerator_memory"))
    engine: tuple[tuple[str, ...], ...] = (("engine", "max_model_len"), ("engine", "name"))
    if found.spilling_bytes and found.most_sequences:
        engine = (("engine", "gpu_memory_utilization"), *engine)
    return compute + engine if weights_exceed else engine + compute
