"""Annotations to types: what an author wrote becomes a description for callers and a pydantic type that checks.

One walk over an annotation gives both, so they cannot disagree. The wire carries plain values (`codec.decode`), and
the pydantic type turns them into what the author asked for: a numpy array from a Tensor, a Pillow image from an Image,
a dataclass from a dict. Scalars are strict: "1" is not 1, and True is not 1.
"""

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast

import pydantic
from pydantic.fields import FieldInfo

from modelkit.datatypes import Audio, Image, Tensor, Text, Video
from modelkit.model.fields import REQUIRED, FieldSpec

__all__ = [
    "ArgumentSpec",
    "Limits",
    "TypeKind",
    "TypeSpec",
    "UnsupportedTypeError",
    "WireType",
    "unsupported",
    "wire_type",
]


class TypeKind(enum.StrEnum):
    """The kinds of type a signature is made of; the names in the gRPC contract without their prefix."""

    ANY = "any"
    NULL = "null"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    STRING = "string"
    BYTES = "bytes"
    LIST = "list"
    TUPLE = "tuple"
    MAP = "map"
    OBJECT = "object"
    UNION = "union"
    CHOICE = "choice"
    TENSOR = "tensor"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a value must keep to; None means no limit. Lengths count characters, bytes or items."""

    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """The description of a type: its kind, what it is made of, and its name where it has one."""

    kind: TypeKind
    args: tuple["TypeSpec", ...] = ()
    name: str = ""
    fields: tuple["ArgumentSpec", ...] = ()
    choices: tuple[Any, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentSpec:
    """The description of an argument, or of a member of an object. `default` is REQUIRED where there is none."""

    name: str
    type: TypeSpec
    description: str = ""
    default: Any = REQUIRED
    limits: Limits = Limits()
    streamed: bool = False

    @property
    def required(self) -> bool:
        """Whether a caller has to give it."""
        return self.default is REQUIRED


@dataclass(frozen=True, slots=True)
class WireType:
    """An annotation, read: the pydantic type that checks a decoded value, its description, and its limits."""

    check: Any
    spec: TypeSpec
    limits: Limits = Limits()
    description: str = ""
    default: Any = REQUIRED
    # Makes a default of its own for each call; `default` is then what it made when the annotation was read.
    factory: Callable[[], Any] | None = None


class UnsupportedTypeError(TypeError):
    """An annotation that cannot be served; the message says why and `cure` what to write instead."""

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.cure = cure


def wire_type(annotation: Any, *, option: FieldSpec | FieldInfo | None = None) -> WireType:
    """Read an annotation, with the `Field` that stood beside it if any.

    Raises UnsupportedTypeError for what the contract cannot carry.
    """
    annotation = _unwrap_alias(annotation)
    options: list[Any] = []
    if typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
        annotation = _unwrap_alias(annotation)
        options += metadata
    if option is not None:
        options.append(option)
    try:
        inner = _Reader().read(annotation)
    except RecursionError as error:
        raise UnsupportedTypeError(
            "the type contains itself without end", "use Any, or a pydantic model for a recursive type"
        ) from error
    return _with_options(inner, options)


# ------------------------------------------------------------------------------------------------------- annotations

_SCALARS: dict[Any, tuple[Any, TypeKind]] = {
    bool: (pydantic.StrictBool, TypeKind.BOOL),
    int: (pydantic.StrictInt, TypeKind.INT),
    float: (pydantic.StrictFloat, TypeKind.FLOAT),
    str: (pydantic.StrictStr, TypeKind.STRING),
    bytes: (pydantic.StrictBytes, TypeKind.BYTES),
    type(None): (None, TypeKind.NULL),
    None: (None, TypeKind.NULL),
    Any: (Any, TypeKind.ANY),
    object: (Any, TypeKind.ANY),
    pydantic.JsonValue: (pydantic.JsonValue, TypeKind.ANY),
}

_MEDIA: dict[Any, TypeKind] = {
    Image: TypeKind.IMAGE,
    Audio: TypeKind.AUDIO,
    Video: TypeKind.VIDEO,
    Tensor: TypeKind.TENSOR,
}

_CONCRETE: dict[Any, Any] = {
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Collection: list,
    collections.abc.Set: frozenset,
    collections.abc.MutableSet: set,
}
_SEQUENCES = (list, set, frozenset, *_CONCRETE)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_KEY_KINDS = {
    TypeKind.ANY,
    TypeKind.STRING,
    TypeKind.INT,
    TypeKind.FLOAT,
    TypeKind.BOOL,
    TypeKind.CHOICE,
    TypeKind.UNION,
}


class _Reader:
    """One walk over an annotation. It remembers the objects it is inside of, so that a type may contain itself."""

    def __init__(self) -> None:
        self.open_objects: list[type] = []

    def read(self, annotation: Any) -> WireType:
        annotation = _unwrap_alias(annotation)
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            inner, *metadata = typing.get_args(annotation)
            return _with_options(self.read(inner), metadata)
        if isinstance(annotation, collections.abc.Hashable) and annotation in _SCALARS:
            check, kind = _SCALARS[annotation]
            return WireType(check, TypeSpec(kind))
        if origin in (Union, types.UnionType):
            return self._union(annotation)
        if origin is Literal:
            return _literal(annotation)
        if _is_numpy_array(annotation):
            return _numpy_array(annotation)
        return self._container(annotation, origin) or self._class(annotation)

    def _union(self, annotation: Any) -> WireType:
        members = [self.read(member) for member in typing.get_args(annotation)]
        check = _of(Union, tuple(member.check for member in members))
        return WireType(check, TypeSpec(TypeKind.UNION, args=tuple(member.spec for member in members)))

    def _container(self, annotation: Any, origin: Any) -> WireType | None:
        kind, args = origin or annotation, typing.get_args(annotation)
        if kind is tuple:
            return self._tuple(args)
        if kind in _SEQUENCES:
            item = self.read(args[0] if args else Any)
            return WireType(
                _of(_CONCRETE.get(kind, kind), item.check), TypeSpec(TypeKind.LIST, args=(item.spec,))
            )
        if kind in _MAPPINGS:
            key_annotation, value_annotation = args or (str, Any)
            key, value = self.read(key_annotation), self.read(value_annotation)
            if key.spec.kind not in _KEY_KINDS:
                raise UnsupportedTypeError(
                    f"the keys of a dict cannot be of type {key.spec.kind.value}",
                    "keys are str, int, float, bool, Literal or an Enum",
                )
            # Keys travel as text, so they are read leniently: "1" is the key 1 of a dict[int, ...].
            check = _of(dict, (key_annotation, value.check))
            return WireType(check, TypeSpec(TypeKind.MAP, args=(key.spec, value.spec)))
        return None

    def _tuple(self, args: tuple[Any, ...]) -> WireType:
        if not args:
            args = (Any, ...)
        if len(args) == 2 and args[1] is Ellipsis:  # noqa: PLR2004 - tuple[T, ...] has two arguments
            item = self.read(args[0])
            return WireType(_of(tuple, (item.check, ...)), TypeSpec(TypeKind.LIST, args=(item.spec,)))
        members = [self.read(arg) for arg in args]
        check = _of(tuple, tuple(member.check for member in members))
        return WireType(check, TypeSpec(TypeKind.TUPLE, args=tuple(member.spec for member in members)))

    def _class(self, annotation: Any) -> WireType:
        simple = self._value_class(annotation)
        if simple is not None:
            return simple
        if isinstance(annotation, type):
            if dataclasses.is_dataclass(annotation):
                return self._dataclass(annotation)
            if issubclass(annotation, pydantic.BaseModel):
                return self._pydantic_model(annotation)
            if typing.is_typeddict(annotation):
                return self._typed_dict(annotation)
        raise unsupported(annotation)

    def _value_class(self, annotation: Any) -> WireType | None:
        """A class whose values have no members: text, media, images, enumerations."""
        if annotation is Text:
            return WireType(Annotated[Any, pydantic.BeforeValidator(_read_text)], TypeSpec(TypeKind.TEXT))
        if annotation in _MEDIA:
            return WireType(_instance_of(annotation), TypeSpec(_MEDIA[annotation]))
        if _is_pil_image(annotation):
            return WireType(Annotated[Any, pydantic.BeforeValidator(_read_pil)], TypeSpec(TypeKind.IMAGE))
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            spec = TypeSpec(TypeKind.CHOICE, name=annotation.__name__, choices=_values(tuple(annotation)))
            return WireType(annotation, spec)
        return None

    def _pydantic_model(self, model: type[pydantic.BaseModel]) -> WireType:
        if model in self.open_objects:
            return WireType(model, TypeSpec(TypeKind.OBJECT, name=model.__name__))
        self.open_objects.append(model)
        try:
            if issubclass(model, pydantic.RootModel):
                return WireType(model, self.read(model.model_fields["root"].annotation).spec)
            fields = tuple(
                self._pydantic_field(_pydantic_name(model, name, info), info)
                for name, info in model.model_fields.items()
            )
        finally:
            self.open_objects.pop()
        return WireType(model, TypeSpec(TypeKind.OBJECT, name=model.__name__, fields=fields))

    def _pydantic_field(self, name: str, info: FieldInfo) -> ArgumentSpec:
        try:
            wire = self.read(info.annotation)
        except UnsupportedTypeError:
            # pydantic reads more types than the contract names (dates, URLs, ...): it checks them, we describe them.
            wire = WireType(Any, TypeSpec(TypeKind.ANY))
        return ArgumentSpec(
            name=name,
            type=wire.spec,
            description=info.description or wire.description,
            default=_pydantic_default(info),
            limits=_merge(wire.limits, _limits_of_metadata(info.metadata)),
        )

    def _dataclass(self, cls: type) -> WireType:
        """A dataclass is read as a pydantic dataclass of its members' wire types, then built by its own class."""
        if cls in self.open_objects:
            raise UnsupportedTypeError(
                f"the dataclass {cls.__name__} contains itself", "use a pydantic model for a recursive type"
            )
        self.open_objects.append(cls)
        try:
            hints = _hints(cls)
            members = [
                (field, self._object_field(hints[field.name], _dataclass_default(field)))
                for field in dataclasses.fields(cls)
                if field.init
            ]
        finally:
            self.open_objects.pop()
        check = _object_check(cls, {field.name: wire for field, wire in members}, build=cls)
        fields = tuple(_member(field.name, wire) for field, wire in members)
        return WireType(check, TypeSpec(TypeKind.OBJECT, name=cls.__name__, fields=fields))

    def _typed_dict(self, cls: Any) -> WireType:
        if cls in self.open_objects:
            raise UnsupportedTypeError(
                f"the TypedDict {cls.__name__} contains itself", "use a pydantic model for a recursive type"
            )
        self.open_objects.append(cls)
        try:
            members = {
                name: self._object_field(hint, REQUIRED if _is_required_key(cls, name, hint) else ABSENT)
                for name, hint in _hints(cls).items()
            }
        finally:
            self.open_objects.pop()
        check = _object_check(cls, members, build=dict)
        fields = tuple(_member(name, wire) for name, wire in members.items())
        return WireType(check, TypeSpec(TypeKind.OBJECT, name=cls.__name__, fields=fields))

    def _object_field(self, hint: Any, default: Any) -> WireType:
        hint = (
            typing.get_args(hint)[0]
            if typing.get_origin(hint) in (typing.Required, typing.NotRequired)
            else hint
        )
        return dataclasses.replace(self.read(hint), default=default)


def _of(generic: Any, arguments: Any) -> Any:
    """Return `generic[arguments]`, a type that exists only at run time."""
    return generic[arguments]


def _literal(annotation: Any) -> WireType:
    """A Literal; of enumeration members, which travel as their values, each value is read back as its member."""
    choices = typing.get_args(annotation)
    values = _values(choices)
    check: Any = annotation
    if values != choices:
        members = dict(zip(values, choices, strict=True))
        check = Annotated[_of(Literal, values), pydantic.AfterValidator(members.__getitem__)]
    return WireType(check, TypeSpec(TypeKind.CHOICE, choices=values))


def _values(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the plain values of a Literal's choices or an Enum's members."""
    values = tuple(choice.value if isinstance(choice, enum.Enum) else choice for choice in choices)
    for value in values:
        if not isinstance(value, (str, int, float, bool, bytes, type(None))):
            raise UnsupportedTypeError(
                f"the choice {value!r} cannot be sent", "the values of an Enum are strings or numbers"
            )
    return values


def _is_required_key(cls: Any, name: str, hint: Any) -> bool:
    """`cls.__required_keys__` misses what is written in strings (`from __future__ import annotations`)."""
    origin = typing.get_origin(hint)
    return origin is typing.Required or (origin is not typing.NotRequired and name in cls.__required_keys__)


def _pydantic_name(model: type[pydantic.BaseModel], name: str, info: FieldInfo) -> str:
    """Return the name under which a pydantic model reads a field."""
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    alias = info.validation_alias or info.alias
    return alias if isinstance(alias, str) and not by_name else name


def _pydantic_default(info: FieldInfo) -> Any:
    if info.is_required():
        return REQUIRED
    if info.default_factory_takes_validated_data:
        return None
    return info.get_default(call_default_factory=True)


class _Absent:
    """The default of a TypedDict's optional key: where it is left out, it stays out."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise UnsupportedTypeError(
            f"{cls.__name__}: the name '{error.name}' in an annotation is not defined",
            "import it at the top of the file, outside of 'if TYPE_CHECKING'",
        ) from error


def _member(name: str, wire: WireType) -> ArgumentSpec:
    default = None if wire.default is ABSENT else wire.default
    return ArgumentSpec(
        name=name, type=wire.spec, description=wire.description, default=default, limits=wire.limits
    )


def _dataclass_default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _object_check(cls: Any, members: dict[str, WireType], *, build: Callable[..., Any]) -> Any:
    """Return a pydantic type that reads a dict into `build(**members)`; members left out keep the class's default."""
    required = [name for name, wire in members.items() if wire.default is REQUIRED]
    annotations = {
        name: _of(typing.Required if name in required else typing.NotRequired, wire.check)
        for name, wire in members.items()
    }
    # pydantic reads `typing_extensions.TypedDict` on every Python; the functional form takes any member name.
    import typing_extensions

    make: Any = typing_extensions.TypedDict
    shape = make(cls.__name__, annotations)
    shape.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    def construct(value: dict[str, Any]) -> Any:
        return build(**value)

    return Annotated[shape, pydantic.AfterValidator(construct)]


def _instance_of(cls: type) -> Any:
    def check(value: Any) -> Any:
        if not isinstance(value, cls):
            raise ValueError(f"must be {_article(cls.__name__)}, got {_plain_name(value)}")
        return value

    return Annotated[Any, pydantic.BeforeValidator(check)]


def _read_text(value: Any) -> Any:
    if isinstance(value, Text):
        return value
    if isinstance(value, str):
        return Text(value)
    raise ValueError(f"must be a text, got {_plain_name(value)}")


def _read_pil(value: Any) -> Any:
    if isinstance(value, Image):
        return value.pil()
    raise ValueError(f"must be an image, got {_plain_name(value)}")


def _plain_name(value: Any) -> str:
    return "null" if value is None else _article(type(value).__name__)


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name.lower() if name[:1].isupper() else name}"


def _unwrap_alias(annotation: Any) -> Any:
    """Follow `type X = ...` and NewType to what they stand for."""
    while True:
        if type(annotation).__name__ == "TypeAliasType" and annotation is not pydantic.JsonValue:
            annotation = annotation.__value__
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def _is_numpy_array(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    return getattr(kind, "__module__", "") == "numpy" and getattr(kind, "__name__", "") == "ndarray"


def _numpy_array(annotation: Any) -> WireType:
    """`np.ndarray`, `npt.NDArray[np.float32]`: the dtype, where it is named, is checked and never converted."""
    scalars = [scalar for item in typing.get_args(annotation)[1:] for scalar in typing.get_args(item)]
    name = getattr(scalars[0], "__name__", "") if scalars else ""
    dtype = name if name in Tensor.DTYPES else ""  # np.floating, Any and the like name none

    def read(value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise ValueError(f"must be a tensor, got {_plain_name(value)}")
        if dtype and value.dtype != dtype:
            raise ValueError(f"must be a tensor of {dtype}, got one of {value.dtype}")
        return value.numpy().copy()  # an author expects an array that can be written to

    return WireType(Annotated[Any, pydantic.BeforeValidator(read)], TypeSpec(TypeKind.TENSOR, dtype=dtype))


def _is_pil_image(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and annotation.__module__.split(".")[0] == "PIL"
        and any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in annotation.__mro__)
    )


def unsupported(annotation: Any) -> UnsupportedTypeError:
    """Say why an annotation cannot be served, and what to write instead."""
    if inspect.ismodule(annotation):
        name = annotation.__name__
        return UnsupportedTypeError(
            f"'{name}' is a module, not a type", f"annotate with {name}.{name.rpartition('.')[2]}"
        )
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation).removeprefix("typing.")
    if _is_iterator(annotation):
        return UnsupportedTypeError(
            f"{shown} cannot stand inside another type",
            "an iterator is the type of a whole argument or result",
        )
    if isinstance(annotation, typing.TypeVar):
        return UnsupportedTypeError(
            f"the type variable {shown} has no value on the wire", "write the concrete type"
        )
    return UnsupportedTypeError(
        f"values of type {shown} cannot be sent",
        "use str, bytes, int, float, bool, None, list, dict, tuple, Literal, an Enum, a dataclass, a pydantic model, "
        "numpy.ndarray, PIL.Image.Image, or modelkit's Text, Image, Audio, Video, Tensor",
    )


_ITERATORS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


def _is_iterator(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in _ITERATORS


# ----------------------------------------------------------------------------------------------------------- options


def _with_options(wire: WireType, options: Sequence[Any]) -> WireType:
    """Add what stands beside a type: Field(...) of ours or of pydantic, and annotated-types such as Ge(1).

    Raises UnsupportedTypeError for a limit that the type cannot have: pydantic would say so only when it is called.
    """
    for option in options:
        if isinstance(option, FieldSpec):
            wire = _with_field_spec(wire, option)
        elif isinstance(option, FieldInfo):
            wire = _with_field_info(wire, option)
        elif type(option).__module__.startswith(("annotated_types", "pydantic")):
            limits = _merge(wire.limits, _limits_of_metadata([option]))
            wire = dataclasses.replace(wire, check=_constrain(wire, option), limits=limits)
    _check_limits(wire)
    return wire


_NUMBERS = {TypeKind.INT, TypeKind.FLOAT}
_SIZED = {TypeKind.STRING, TypeKind.BYTES, TypeKind.LIST, TypeKind.TUPLE, TypeKind.MAP}


def _check_limits(wire: WireType) -> None:
    members = wire.spec.args if wire.spec.kind is TypeKind.UNION else (wire.spec,)
    kinds = {member.kind for member in members} - {TypeKind.NULL, TypeKind.ANY}
    for name, kinds_allowed in _LIMITED_KINDS.items():
        if getattr(wire.limits, name) is not None and not kinds <= kinds_allowed:
            raise UnsupportedTypeError(
                f"the limit {name} does not fit the type {' | '.join(sorted(kinds))}",
                "ge, gt, le, lt and multiple_of are for numbers, min_length and max_length for str, bytes, list, "
                "tuple and dict, pattern for str",
            )


_LIMITED_KINDS = {
    "minimum": _NUMBERS,
    "maximum": _NUMBERS,
    "exclusive_minimum": _NUMBERS,
    "exclusive_maximum": _NUMBERS,
    "multiple_of": _NUMBERS,
    "min_length": _SIZED,
    "max_length": _SIZED,
    "pattern": {TypeKind.STRING},
}


def _with_field_spec(wire: WireType, spec: FieldSpec) -> WireType:
    constraints = {
        name: value
        for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
        if (value := getattr(spec, name)) is not None
    }
    check = _constrain(wire, pydantic.Field(**constraints)) if constraints else wire.check
    if spec.choices:
        check = _constrain(
            dataclasses.replace(wire, check=check), pydantic.AfterValidator(_one_of(spec.choices))
        )
    limits = Limits(
        minimum=spec.ge,
        maximum=spec.le,
        exclusive_minimum=spec.gt,
        exclusive_maximum=spec.lt,
        multiple_of=spec.multiple_of,
        min_length=spec.min_length,
        max_length=spec.max_length,
        pattern=spec.pattern,
        choices=spec.choices,
    )
    default = spec.default if spec.default is not REQUIRED else wire.default
    return WireType(
        check, wire.spec, _merge(wire.limits, limits), spec.description or wire.description, default
    )


def _with_field_info(wire: WireType, info: FieldInfo) -> WireType:
    check = wire.check
    if info.metadata:
        constrained = dataclasses.replace(wire, check=check)
        for constraint in info.metadata:
            constrained = dataclasses.replace(constrained, check=_constrain(constrained, constraint))
        check = constrained.check
    default = wire.default if info.is_required() else _pydantic_default(info)
    limits = _merge(wire.limits, _limits_of_metadata(info.metadata))
    factory = None if info.default_factory_takes_validated_data else info.default_factory
    description = info.description or wire.description
    return WireType(check, wire.spec, limits, description, default, cast("Callable[[], Any] | None", factory))


def _constrain(wire: WireType, constraint: Any) -> Any:
    """Apply a constraint to a type; of an optional one, to what it is when it is not None."""
    spec = wire.spec
    if spec.kind is TypeKind.UNION and any(member.kind is TypeKind.NULL for member in spec.args):
        members = [member for member in typing.get_args(wire.check) if member not in (None, type(None))]
        return _of(Union, (Annotated[_of(Union, tuple(members)), constraint], None))
    return Annotated[wire.check, constraint]


def _one_of(choices: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(map(repr, choices))}")
        return value

    return check


# The names under which annotated-types and pydantic keep each limit, and ours.
_METADATA_NAMES = {
    "ge": "minimum",
    "le": "maximum",
    "gt": "exclusive_minimum",
    "lt": "exclusive_maximum",
    "multiple_of": "multiple_of",
    "min_length": "min_length",
    "max_length": "max_length",
    "pattern": "pattern",
}


def _limits_of_metadata(metadata: Sequence[Any]) -> Limits:
    found: dict[str, Any] = {}
    for item in metadata:
        for theirs, ours in _METADATA_NAMES.items():
            value = getattr(item, theirs, None)
            value = getattr(value, "pattern", value)
            if isinstance(value, (int, float, str)):  # not the date of a pydantic model's own type
                found[ours] = value
    return Limits(**found)


def _merge(first: Limits, second: Limits) -> Limits:
    """The limits of both; where both set the same one, the second."""
    given = {
        field.name: value
        for field in dataclasses.fields(Limits)
        if (value := getattr(second, field.name)) not in (None, ())
    }
    return dataclasses.replace(first, **given)
