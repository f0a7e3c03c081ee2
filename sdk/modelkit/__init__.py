"""modelkit: package a model once, serve it over gRPC anywhere.

Every public name is here and loaded on first use, so that `import modelkit` costs nothing and a client never pays for
a server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelkit.client import AsyncClient, Client
    from modelkit.datatypes import Audio, Image, Tensor, Text, Video
    from modelkit.engines.llm import LLM
    from modelkit.errors import (
        CallError,
        CancelledCallError,
        ConfigError,
        DeadlineExceededError,
        FailedPreconditionError,
        InternalError,
        InvalidArgumentError,
        LoadError,
        MethodNotFoundError,
        ModelkitError,
        ModelNotFoundError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from modelkit.model import Field, Model, Request, Usage, current_request, method

__version__ = "0.1.0"

_HOMES = {
    "modelkit.client": ("AsyncClient", "Client"),
    "modelkit.datatypes": ("Audio", "Image", "Tensor", "Text", "Video"),
    "modelkit.engines.llm": ("LLM",),
    "modelkit.errors": (
        "CallError",
        "CancelledCallError",
        "ConfigError",
        "DeadlineExceededError",
        "FailedPreconditionError",
        "InternalError",
        "InvalidArgumentError",
        "LoadError",
        "MethodNotFoundError",
        "ModelNotFoundError",
        "ModelkitError",
        "NotFoundError",
        "OverloadedError",
        "PermissionDeniedError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnimplementedError",
    ),
    "modelkit.model": ("Field", "Model", "Request", "Usage", "current_request", "method"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LLM",
    "AsyncClient",
    "Audio",
    "CallError",
    "CancelledCallError",
    "Client",
    "ConfigError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "Field",
    "Image",
    "InternalError",
    "InvalidArgumentError",
    "LoadError",
    "MethodNotFoundError",
    "Model",
    "ModelNotFoundError",
    "ModelkitError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Request",
    "Tensor",
    "Text",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "Video",
    "current_request",
    "method",
]


def __getattr__(name: str) -> Any:
    """Import the module that has `name` on first use."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'modelkit' has no attribute '{name}'")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
