"""What a model is to fit on: a card from the catalogue, an amount of memory, this machine's own GPU or its main memory."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from modelkit.config import ComputeConfig
from modelkit.config.accelerators import (
    DRIVER_SHARE,
    Accelerator,
    accelerator_by_name,
    accelerators,
    matching_accelerators,
    table,
)
from modelkit.engines.machine import nvidia_gpus
from modelkit.errors import UsageError, closest

__all__ = [
    "Device",
    "device_by_name",
    "device_of_compute",
    "device_of_gpu",
    "device_of_size",
    "this_machine",
]

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Device:
    """One of `count` equal devices. `usable_bytes` is what programs may allocate; `memory_bytes` what is on the label."""

    name: str
    memory_bytes: int
    usable_bytes: int
    kind: Literal["gpu", "cpu"] = "gpu"
    count: int = 1
    accelerator: Accelerator | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether it is main memory."""
        return self.kind == "cpu"


def device_by_name(name: str) -> Device:
    """Return a card of the catalogue, or those of a cloud's machine type. Raises UsageError where there is none."""
    instance = table()["instances"].get(name)
    accelerator = accelerator_by_name(name if instance is None else instance[0])
    if accelerator is not None:
        return replace(_device(accelerator), count=1 if instance is None else instance[1])
    known = [each.name.removeprefix("NVIDIA-") for each in accelerators()]
    guess = closest(name, known)
    raise UsageError(
        f"the GPU '{name}' is not known here" + (f"; did you mean '{guess}'?" if guess else ""),
        cure=f"use one of: {', '.join(known)}; or give its memory: --memory 24GiB",
    )


def device_of_size(size_bytes: int) -> Device:
    """Return a card of which only the memory is known: all of it is counted as usable."""
    gib = size_bytes / 1024**3
    size = f"{gib:g} GiB" if gib >= 1 else f"{gib * 1024:g} MiB"
    return Device(f"a GPU with {size}", size_bytes, size_bytes)


def device_of_compute(compute: ComputeConfig) -> Device | None:
    """Return what the compute section asks for; None where it names no accelerator by kind or size.

    Of several kinds that would do, the one with the least memory counts: a replica may land on it.
    """
    if not compute.num_accelerators:
        return None
    least = compute.accelerator_memory_bytes or 0
    kinds = [
        each
        for pattern in compute.accelerator_type
        if pattern.strip("*") not in {"", "NVIDIA-"}
        for each in matching_accelerators(pattern)
        if each.memory_bytes * 1.05 >= least
    ]
    if kinds:
        smallest = min(kinds, key=lambda each: each.usable_bytes)
        return replace(_device(smallest), count=compute.num_accelerators)
    if least:
        return replace(device_of_size(least), count=compute.num_accelerators)
    return None


def this_machine() -> Device:
    """Return this machine's GPU, the smallest where they differ; its main memory where it has none."""
    gpus = [gpu for gpu in nvidia_gpus() if gpu.memory_bytes]
    if not gpus:
        size_bytes = _main_memory_bytes()
        return Device("main memory", size_bytes, size_bytes, "cpu")
    gpu = min(gpus, key=lambda each: each.memory_bytes)
    return replace(device_of_gpu(gpu.name, gpu.memory_bytes), count=len(gpus))


def device_of_gpu(name: str, memory_bytes: int) -> Device:
    """Return a GPU as nvidia-smi tells of it."""
    accelerator = accelerator_by_name(name)
    if accelerator is not None and abs(accelerator.memory_bytes - memory_bytes) < 64 * _MIB:
        return _device(accelerator)
    usable = int(memory_bytes * (1 - DRIVER_SHARE))
    return Device(name, memory_bytes, usable, accelerator=accelerator)


def _device(accelerator: Accelerator) -> Device:
    return Device(
        accelerator.name, accelerator.memory_bytes, accelerator.usable_bytes, accelerator=accelerator
    )


def _main_memory_bytes() -> int:
    """Return the memory of the machine, or of the container where that is less."""
    size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            size_bytes = min(size_bytes, int(limit))
    return size_bytes
