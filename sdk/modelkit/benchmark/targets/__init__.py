"""What can be measured: one kind of server per file, named by its protocol."""

from importlib import import_module
from typing import Final

from modelkit.benchmark.targets.base import (
    Endpoint,
    Protocol,
    RequestFailed,
    Target,
    TargetSpec,
    Turn,
    base_url,
)

__all__ = ["Endpoint", "Protocol", "RequestFailed", "Target", "TargetSpec", "Turn", "base_url", "connect"]

# Protocol -> "module:class", loaded when chosen.
_TARGETS: Final = {
    "grpc": "modelkit.benchmark.targets.grpc:GrpcTarget",
    "http": "modelkit.benchmark.targets.openai:OpenAITarget",
}


def connect(spec: TargetSpec) -> Target:
    """Make the target that a spec describes; `open` connects it."""
    module_name, _, class_name = _TARGETS[spec.protocol].partition(":")
    target_class: type[Target] = getattr(import_module(module_name), class_name)
    return target_class(spec)
