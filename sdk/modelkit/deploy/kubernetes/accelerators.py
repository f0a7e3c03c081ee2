"""From `compute.accelerator_type` to a device plugin's resource and the labels of the nodes that have such cards.

The labels are those of NVIDIA's GPU operator (gpu-feature-discovery): the product as nvidia-smi calls it, with '-' for
each space, and the memory in MiB. https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from modelkit.config import ComputeConfig
from modelkit.config.accelerators import accelerators, matching_accelerators
from modelkit.errors import UsageError

__all__ = ["PRODUCT_LABEL", "gpu_affinity", "gpu_resource", "gpu_tolerations"]

PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
_NVIDIA: Final = "nvidia.com/gpu"
_AMD: Final = "amd.com/gpu"
_MIB: Final = 1024**2
# Cards are called by round numbers that they do not quite have: one of "80 GB" says 81,559 MiB, which is 79.6 GiB, and
# one of 24 GB 23,028 MiB, which is 6 % less than 24 GiB.
_NOMINAL_SHARE: Final = 0.93
_MAX_WEIGHT: Final = 100
_WEIGHT_STEP: Final = 10


def gpu_resource(compute: ComputeConfig) -> str | None:
    """Return the resource that a replica asks for, None where it needs no card. Raises UsageError for a mixture."""
    if not compute.num_accelerators:
        return None
    vendors = {_vendor(kind) for kind in compute.accelerator_type}
    if len(vendors) > 1:
        raise UsageError(
            f"compute.accelerator_type names cards of several vendors: {', '.join(compute.accelerator_type)}",
            cure="name cards of one vendor, and deploy the other half under another name",
        )
    return vendors.pop() if vendors else _NVIDIA


def gpu_affinity(compute: ComputeConfig) -> dict[str, Any] | None:
    """Return which nodes will do, best first; None where any does that has the resource."""
    if gpu_resource(compute) != _NVIDIA:
        return None
    groups = [_products(kind) for kind in compute.accelerator_type]
    required = []
    if groups and all(groups):  # one that stands for any card makes all of them do
        products = list(dict.fromkeys(product for group in groups for product in group))
        required.append({"key": PRODUCT_LABEL, "operator": "In", "values": products})
    if compute.accelerator_memory_bytes is not None:
        least_mib = int(compute.accelerator_memory_bytes / _MIB * _NOMINAL_SHARE)
        required.append({"key": _MEMORY_LABEL, "operator": "Gt", "values": [str(least_mib)]})
    affinity: dict[str, Any] = {}
    if required:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [{"matchExpressions": required}]
        }
    if preferred := _preferences(groups):
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"nodeAffinity": affinity} if affinity else None


def gpu_tolerations(compute: ComputeConfig) -> list[dict[str, str]]:
    """Return what lets a replica onto nodes that are kept for those who need their cards."""
    resource = gpu_resource(compute)
    return [] if resource is None else [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]


def _preferences(groups: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return a preference for each kind but the last, the first with the most weight."""
    if len(groups) < 2:  # noqa: PLR2004 - nothing to choose between
        return []
    return [
        {
            "weight": max(1, _MAX_WEIGHT - _WEIGHT_STEP * place),
            "preference": {
                "matchExpressions": [{"key": PRODUCT_LABEL, "operator": "In", "values": list(group)}]
            },
        }
        for place, group in enumerate(groups)
        if group
    ]


def _products(kind: str) -> list[str]:
    """Return the label's values that an entry stands for; none for one that stands for every card."""
    if fnmatchcase("nvidia-", kind.lower()) or kind.lower() in {"*", "nvidia", "nvidia*"}:
        return []
    found = [_label(name) for each in matching_accelerators(kind) for name in each.nvidia_smi_names]
    labels = [_label(name) for each in accelerators() for name in each.nvidia_smi_names]
    found += [label for label in labels if fnmatchcase(label.lower(), kind.lower())]
    # A card that is in no table here is named as its label says.
    return list(dict.fromkeys(found)) or [kind]


def _label(nvidia_smi_name: str) -> str:
    return nvidia_smi_name.replace(" ", "-")


def _vendor(kind: str) -> str:
    return _AMD if kind.lower().startswith("amd") else _NVIDIA
