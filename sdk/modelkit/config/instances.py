"""`compute.instance: g5.xlarge`: what accelerators a cloud's machine type has, from the table in instances.json.

Only the accelerators are taken over. The machine's cores and memory are not ours to ask for in full: the system on it
needs some, and a replica that wants them all is never scheduled.
"""

from typing import Any

from modelkit.config.accelerators import table
from modelkit.config.tree import Entry, ListNode, MapNode, Node, Scalar, find, put
from modelkit.errors import Problem, closest

__all__ = ["fill_in"]


def fill_in(root: MapNode) -> tuple[MapNode, list[Problem]]:
    """Return the tree with the accelerators of `compute.instance`, where the keys for them are not there."""
    entry = find(root, ("compute", "instance"))
    if entry is None or not isinstance(entry.value, Scalar) or not isinstance(entry.value.value, str):
        return root, []
    name = entry.value.value
    instances: dict[str, Any] = table()["instances"]
    if name not in instances:
        guess = closest(name, list(instances))
        message = f"the machine type '{name}' is not known here, so nothing is taken from it"
        cure = f"did you mean '{guess}'?" if guess else "give num_accelerators and accelerator_type instead"
        return root, [entry.value.span.problem(message, cure, severity="warning")]
    for key, node in _accelerators(instances[name], entry).items():
        if find(root, ("compute", key)) is None:
            root = put(root, ("compute", key), Entry(entry.key, node))
    return root, []


def _accelerators(instance: list[Any] | None, entry: Entry) -> dict[str, Node]:
    if instance is None:
        return {}
    span = entry.value.span
    accelerator, num = instance
    memory = table()["accelerators"][accelerator]["memory"]
    return {
        "num_accelerators": Scalar(num, str(num), span),
        "accelerator_type": ListNode((Scalar(accelerator, accelerator, span),), span),
        "accelerator_memory": Scalar(memory, memory, span),
    }
