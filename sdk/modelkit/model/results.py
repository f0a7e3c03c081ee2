"""What a method gives, held against its annotation: the same for every transport.

Only the value itself is checked; what is inside of lists and objects is the author's word.
"""

import dataclasses
import enum
import sys
from collections.abc import Mapping
from typing import Any, Final

from modelkit.datatypes import Audio, Image, Tensor, Text, Video
from modelkit.errors import InternalError
from modelkit.model.types import TypeKind, TypeSpec

__all__ = ["ResultCheck"]


class ResultCheck:
    """The check of one method's results, or of each item of them. `shown` is the annotation as an error names it."""

    __slots__ = ("_allowed", "_shown", "_widens")

    def __init__(self, spec: TypeSpec, shown: str) -> None:
        self._shown = shown
        self._allowed = _allowed_kinds(spec)
        self._widens = self._allowed == {TypeKind.FLOAT}

    def __call__(self, method: str, value: Any) -> Any:
        """Return the value, a whole number as the float that is promised. Raises InternalError for another type."""
        kind = _KIND_OF.get(type(value))
        if kind in self._allowed or not self._allowed:
            return value
        if kind is None:
            kind = _find_kind(value)
        if self._widens and kind is TypeKind.INT and type(value) is int:
            return float(value)
        # A value of no kind at all cannot be sent; the encoder says what it is.
        if kind is None or kind in self._allowed:
            return value
        raise InternalError(
            f"'{method}' promises {self._shown} and gave {type(value).__name__}",
            cure="return what the annotation says, or correct the annotation",
        )


def _allowed_kinds(spec: TypeSpec) -> frozenset[TypeKind]:
    """Return the kinds that an annotation allows, empty where any is."""
    if spec.kind is TypeKind.UNION:
        members = [_allowed_kinds(member) for member in spec.args]
        return frozenset().union(*members) if all(members) else frozenset()
    if spec.kind is TypeKind.ANY:
        return frozenset()
    return _ALSO.get(spec.kind, frozenset({spec.kind}))


# What travels alike counts alike.
_SEQUENCE: Final = frozenset({TypeKind.LIST, TypeKind.TUPLE})
_MAPPING: Final = frozenset({TypeKind.MAP, TypeKind.OBJECT})
_ALSO: Final[Mapping[TypeKind, frozenset[TypeKind]]] = {
    TypeKind.LIST: _SEQUENCE,
    TypeKind.TUPLE: _SEQUENCE,
    TypeKind.MAP: _MAPPING,
    TypeKind.OBJECT: _MAPPING,
    TypeKind.TEXT: frozenset({TypeKind.TEXT, TypeKind.STRING}),
}
# The base of another (int of bool) comes after it: subclasses are looked up in this order.
_KIND_OF: Final[Mapping[type, TypeKind]] = {
    str: TypeKind.STRING,
    bool: TypeKind.BOOL,
    int: TypeKind.INT,
    float: TypeKind.FLOAT,
    bytes: TypeKind.BYTES,
    bytearray: TypeKind.BYTES,
    memoryview: TypeKind.BYTES,
    type(None): TypeKind.NULL,
    Text: TypeKind.TEXT,
    Tensor: TypeKind.TENSOR,
    Image: TypeKind.IMAGE,
    Audio: TypeKind.AUDIO,
    Video: TypeKind.VIDEO,
    dict: TypeKind.MAP,
    list: TypeKind.LIST,
    tuple: TypeKind.LIST,
    set: TypeKind.LIST,
    frozenset: TypeKind.LIST,
    Mapping: TypeKind.MAP,
}
_TEXT_MODULES: Final = frozenset({"datetime", "decimal", "ipaddress", "pathlib", "uuid"})


def _find_kind(value: Any) -> TypeKind | None:
    """Return the kind of a value of a subclass or of a library's type; None where nobody knows."""
    if isinstance(value, enum.Enum):
        return _find_kind(value.value)
    for base, kind in _KIND_OF.items():
        if isinstance(value, base):
            return kind
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return TypeKind.OBJECT
    return _kind_of_foreign(value)


def _kind_of_foreign(value: Any) -> TypeKind | None:
    """Return the kind of an object of a library. None of it exists where its library is not imported."""
    pydantic, numpy, pil = (sys.modules.get(name) for name in ("pydantic", "numpy", "PIL.Image"))
    if pydantic and isinstance(value, pydantic.RootModel):
        return _find_kind(value.root)
    if pydantic and isinstance(value, pydantic.BaseModel):
        return TypeKind.OBJECT
    if numpy and isinstance(value, numpy.ndarray):
        return TypeKind.TENSOR
    if numpy and isinstance(value, numpy.generic):
        return _KIND_OF.get(type(value.item()))
    if pil and isinstance(value, pil.Image):
        return TypeKind.IMAGE
    # Dates, paths and their like are written as text.
    return TypeKind.STRING if type(value).__module__.partition(".")[0] in _TEXT_MODULES else None
