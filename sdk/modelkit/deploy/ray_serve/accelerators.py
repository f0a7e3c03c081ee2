"""The accelerators of config.yaml by the names that Ray gives its nodes' GPUs."""

import re
from typing import Final

from modelkit.config import ComputeConfig
from modelkit.config.accelerators import Accelerator, accelerators, matching_accelerators

__all__ = ["ray_name", "type_selectors"]

# How Ray makes a type of what the driver calls the card (ray/_private/accelerators/nvidia_gpu.py).
_PATTERN: Final = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")


def ray_name(driver_name: str) -> str:
    """Return Ray's type of a card: "NVIDIA H100 80GB HBM3" is H100, "NVIDIA GeForce RTX 5090" GeForce-RTX-5090."""
    found = _PATTERN.match(driver_name)
    name = found[1].replace(" ", "-") if found else ""
    return name if len(name) > 1 else re.sub(r"^NVIDIA\s+", "", driver_name).strip().replace(" ", "-")


def type_selectors(compute: ComputeConfig) -> list[list[str]]:
    """Return which of Ray's types will do, the best first; those of one entry are as good as each other. Empty: any.

    Ray does not tell the sizes of an A100 apart: both are A100.
    """
    known = [each for each in accelerators() if each.memory_bytes >= (compute.accelerator_memory_bytes or 0)]
    if not compute.accelerator_type:
        return [] if compute.accelerator_memory_bytes is None else [_ray_names(known)]
    selectors = []
    for entry in compute.accelerator_type:
        meant = matching_accelerators(entry)
        if len(meant) == len(accelerators()) and len(known) == len(accelerators()):
            return []  # anything will do; what comes before it would only be a preference that Ray waits for
        names = _ray_names([each for each in meant if each in known])
        # A card that is not in our table has the name that its owner has given to the node.
        selectors.append(names or [entry.removeprefix("NVIDIA-")])
    return selectors


def _ray_names(kinds: list[Accelerator]) -> list[str]:
    return sorted({ray_name(name) for kind in kinds for name in kind.nvidia_smi_names})
