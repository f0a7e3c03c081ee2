"""What this machine has for engines to run on, asked of NVIDIA's driver; no CUDA library is loaded for it.

The driver lists every card; CUDA_VISIBLE_DEVICES says which of them are this process's, and so those of what it starts.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gpu", "has_nvidia_gpu", "is_visible", "nvidia_gpus"]

_MIB = 1024**2
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU, as nvidia-smi names it."""

    name: str
    memory_bytes: int
    driver: str
    used_bytes: int = 0


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi lists and this process may use; none where it is absent or finds no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    columns = "index,uuid,name,memory.total,driver_version,memory.used"
    query = [tool, f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(  # noqa: S603 - a fixed query
            query, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if listing.returncode != 0:
        return ()
    rows = [line.split(", ", 2) for line in listing.stdout.splitlines() if line.count(", ") >= 5]  # noqa: PLR2004 - six columns
    return tuple(_gpu(rest) for index, uuid, rest in rows if is_visible(index, uuid))


def has_nvidia_gpu() -> bool:
    """Tell whether there is an NVIDIA GPU to use: a container may have the device without nvidia-smi."""
    return _visible() != () and (Path("/dev/nvidia0").exists() or bool(nvidia_gpus()))


def is_visible(index: str, uuid: str) -> bool:
    """Tell whether this process may use a GPU, by nvidia-smi's index and UUID of it.

    CUDA counts the fastest card first where they differ (unless CUDA_DEVICE_ORDER=PCI_BUS_ID), nvidia-smi by slot: on
    such a machine only UUIDs are certain. Source: CUDA C++ Programming Guide, "CUDA environment variables".
    """
    visible = _visible()
    return visible is None or any(entry == index or uuid.startswith(entry) for entry in visible)


def _visible() -> tuple[str, ...] | None:
    """Return the indices and (beginnings of) UUIDs that CUDA_VISIBLE_DEVICES names; None where all are visible."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None or "MIG-" in value:  # a slice of a card: nvidia-smi tells of cards alone
        return None
    entries = []
    for entry in value.split(","):
        name = entry.strip()
        if not (
            name.isdecimal() or name.startswith("GPU-")
        ):  # CUDA reads no further, by design: -1 hides the rest
            break
        entries.append(name)
    return tuple(entries)


def _gpu(line: str) -> Gpu:
    name, memory, driver, used = (cell.strip() for cell in line.rsplit(",", 3))
    return Gpu(name, _bytes(memory), driver, _bytes(used))


def _bytes(mib: str) -> int:
    return int(mib) * _MIB if mib.isdecimal() else 0  # "[N/A]" where the GPU shares the machine's memory
