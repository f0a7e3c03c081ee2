"""The accelerators that are known by name, from the one table of them: instances.json.

`memory` is the size people and clouds ask for; `total_mib` is what nvidia-smi says of the card; `usable_mib` is what a
program may allocate (the total of cudaMemGetInfo, which the driver's own share is not part of). The bandwidth is the
vendor's, the compute capability NVIDIA's (https://developer.nvidia.com/cuda-gpus).
"""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

__all__ = [
    "DRIVER_SHARE",
    "Accelerator",
    "accelerator_by_name",
    "accelerators",
    "matching_accelerators",
    "table",
]

_MIB = 1024**2
# What a driver keeps of a card for which no figure is in the table: the most that is seen on a card of 24 GB or more.
DRIVER_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of card. `memory_bytes` is what nvidia-smi says, `usable_bytes` what a program may allocate."""

    name: str
    memory_bytes: int
    usable_bytes: int
    bandwidth_bytes_s: float
    compute_capability: tuple[int, int]
    nvidia_smi_names: tuple[str, ...]


@cache
def table() -> dict[str, Any]:
    """Return instances.json as it is written."""
    text = resources.files("modelkit.config").joinpath("instances.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


@cache
def accelerators() -> tuple[Accelerator, ...]:
    """Return every accelerator of the table, the one with the least memory first."""
    known = [_accelerator(name, row) for name, row in table()["accelerators"].items()]
    return tuple(sorted(known, key=lambda each: (each.memory_bytes, each.name)))


def accelerator_by_name(name: str) -> Accelerator | None:
    """Return an accelerator by our name of it, by nvidia-smi's or by a short one such as H200; None where unknown."""
    wanted = _plain(name)
    for each in accelerators():
        if wanted in {_plain(each.name), *map(_plain, each.nvidia_smi_names)}:
            return each
    return None


def matching_accelerators(pattern: str) -> tuple[Accelerator, ...]:
    """Return the accelerators that an entry of `compute.accelerator_type` stands for, where * stands for anything."""
    return tuple(each for each in accelerators() if fnmatchcase(each.name.lower(), pattern.lower()))


def _accelerator(name: str, row: dict[str, Any]) -> Accelerator:
    total = row["total_mib"] * _MIB
    major, _, minor = row["compute_capability"].partition(".")
    return Accelerator(
        name=name,
        memory_bytes=total,
        usable_bytes=row["usable_mib"] * _MIB if "usable_mib" in row else int(total * (1 - DRIVER_SHARE)),
        bandwidth_bytes_s=row["bandwidth_gb_s"] * 1e9,
        compute_capability=(int(major), int(minor)),
        nvidia_smi_names=tuple(row["nvidia_smi"]),
    )


def _plain(name: str) -> str:
    """Take away what people leave out or spell differently: case, separators, the vendor."""
    return re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", name.lower())
