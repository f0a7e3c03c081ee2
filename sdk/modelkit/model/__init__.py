"""The author's side: `Model`, `@method`, `Field`; and what the rest of modelkit reads off it: signatures.

`Model`, `method` and `Field` are cheap to import. Signatures need pydantic and are loaded when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from modelkit.model.fields import REQUIRED, Field, FieldSpec
from modelkit.model.request import REQUEST, Request, Usage, current_request

if TYPE_CHECKING:
    from modelkit.model.base import Model, ModelContext, method
    from modelkit.model.importing import (
        check_model,
        find_model_file,
        import_checked_class,
        import_model_class,
        read_signatures,
    )
    from modelkit.model.signature import MethodKind, Signature, SignatureError, describe_type, method_names
    from modelkit.model.types import ArgumentSpec, Limits, TypeKind, TypeSpec

_HOME_OF = {
    "ArgumentSpec": "types",
    "Limits": "types",
    "MethodKind": "signature",
    "Model": "base",
    "ModelContext": "base",
    "Signature": "signature",
    "SignatureError": "signature",
    "TypeKind": "types",
    "TypeSpec": "types",
    "check_model": "importing",
    "describe_type": "signature",
    "find_model_file": "importing",
    "import_checked_class": "importing",
    "import_model_class": "importing",
    "method": "base",
    "method_names": "signature",
    "read_signatures": "importing",
}

__all__ = [
    "REQUEST",
    "REQUIRED",
    "ArgumentSpec",
    "Field",
    "FieldSpec",
    "Limits",
    "MethodKind",
    "Model",
    "ModelContext",
    "Request",
    "Signature",
    "SignatureError",
    "TypeKind",
    "TypeSpec",
    "Usage",
    "check_model",
    "current_request",
    "describe_type",
    "find_model_file",
    "import_checked_class",
    "import_model_class",
    "method",
    "method_names",
    "read_signatures",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'modelkit.model' has no attribute '{name}'")
    return getattr(import_module(f"modelkit.model.{home}"), name)
