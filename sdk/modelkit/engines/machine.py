"""What this machine has for engines to run on, asked of NVIDIA's driver; no CUDA library is loaded for it."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gpu", "has_nvidia_gpu", "nvidia_gpus"]

_MIB = 1024**2
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU, as nvidia-smi names it."""

    name: str
    memory_bytes: int
    driver: str


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi lists; none where it is absent or finds no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(  # noqa: S603 - a fixed query
            query, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if listing.returncode != 0:
        return ()
    return tuple(_gpu(line) for line in listing.stdout.splitlines() if line.count(",") >= 2)  # noqa: PLR2004 - three columns


def has_nvidia_gpu() -> bool:
    """Tell whether there is an NVIDIA GPU: a container may have the device without nvidia-smi."""
    return Path("/dev/nvidia0").exists() or bool(nvidia_gpus())


def _gpu(line: str) -> Gpu:
    name, memory, driver = (cell.strip() for cell in line.rsplit(",", 2))
    # "[N/A]" where the GPU shares the machine's memory.
    return Gpu(name, int(memory) * _MIB if memory.isdecimal() else 0, driver)
