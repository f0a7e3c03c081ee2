"""What a server says of its model, as plain dataclasses that print like the author's own code."""

from dataclasses import dataclass
from typing import Any, Literal

from modelkit.codec import decode
from modelkit.errors import MethodNotFoundError
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = [
    "ArgumentDescription",
    "Limits",
    "MethodDescription",
    "MethodKind",
    "ModelDescription",
    "ModelState",
    "TypeDescription",
    "read_description",
]

MAX_HINT_CHARS = 120

MethodKind = Literal["unary", "server_stream", "bidirectional"]
ModelState = Literal["loading", "ready", "unavailable", "draining", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class TypeDescription:
    """The type of an argument or a result. `str()` writes it as Python does: `list[str]`, `str | None`, `Image`.

    `kind` is the contract's name in lower case: any, null, bool, int, float, string, bytes, list, tuple, map, object,
    union, choice, tensor, image, audio, video, text.
    """

    kind: str
    args: tuple["TypeDescription", ...] = ()
    name: str = ""
    fields: tuple["ArgumentDescription", ...] = ()
    choices: tuple[Any, ...] = ()
    dtype: str = ""

    def __str__(self) -> str:
        if self.kind == "union":
            return " | ".join(map(str, self.args))
        if self.kind == "choice":
            return self.name or f"Literal[{', '.join(map(repr, self.choices))}]"
        name = self.name or _TYPE_NAMES.get(self.kind, self.kind)
        inside = self.dtype or ", ".join(map(str, self.args))
        return f"{name}[{inside}]" if inside else name


_TYPE_NAMES = {
    "any": "Any",
    "null": "None",
    "string": "str",
    "map": "dict",
    "object": "dict",
    "tensor": "Tensor",
    "image": "Image",
    "audio": "Audio",
    "video": "Video",
    "text": "Text",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a value must keep to beside its type; None (or empty) sets no limit. `str()` is short: `1..500`."""

    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        parts = [
            _range(self.minimum, self.maximum),
            "" if self.exclusive_minimum is None else f">{self.exclusive_minimum}",
            "" if self.exclusive_maximum is None else f"<{self.exclusive_maximum}",
            "" if self.multiple_of is None else f"multiple of {self.multiple_of}",
            _length(_range(self.min_length, self.max_length)),
            f"/{self.pattern}/" if self.pattern else "",
            " | ".join(map(repr, self.choices)),
        ]
        return ", ".join(part for part in parts if part)


def _range(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f"<={most}"
    return f">={least}" if most is None else f"{least}..{most}"


def _length(text: str) -> str:
    return f"length {text}" if text else ""


@dataclass(frozen=True, slots=True)
class ArgumentDescription:
    """An argument of a method, or a member of an object type.

    `has_default` tells a default of None from none at all; an argument that is neither required nor has one takes a
    default that only the author's code knows. `streamed` marks the one that arrives item by item.
    """

    name: str
    type: TypeDescription
    description: str = ""
    required: bool = True
    has_default: bool = False
    default: Any = None
    limits: Limits = Limits()
    streamed: bool = False

    def __str__(self) -> str:
        text = f"{self.name}: {f'Iterator[{self.type}]' if self.streamed else self.type}"
        if self.has_default:
            text += f" = {self.default!r}"
        elif not self.required:
            text += " = ..."
        limits = str(self.limits)
        return f"{text} [{limits}]" if limits else text


@dataclass(frozen=True, slots=True)
class MethodDescription:
    """The signature of a remote method. `str()` is one line: `summarize(text: str, max_words: int = 50 [1..500]) -> str`."""

    name: str
    kind: MethodKind
    arguments: tuple[ArgumentDescription, ...]
    result: TypeDescription
    description: str = ""

    @property
    def summary(self) -> str:
        """The first line of the description."""
        return self.description.strip().partition("\n")[0]

    @property
    def streamed_argument(self) -> ArgumentDescription | None:
        """The argument of a bidirectional method that arrives item by item."""
        return next((argument for argument in self.arguments if argument.streamed), None)

    @property
    def hint(self) -> str:
        """How to call it, for the end of an error: the signature, or the arguments' names where it is long."""
        signature = str(self)
        if len(signature) <= MAX_HINT_CHARS:
            return f"it is {signature}"
        return f"its arguments are {', '.join(argument.name for argument in self.arguments)}"

    def __str__(self) -> str:
        result = str(self.result) if self.kind == "unary" else f"Iterator[{self.result}]"
        return f"{self.name}({', '.join(map(str, self.arguments))}) -> {result}"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A served model. `engine` is empty for a plain Python model.

    `state` is where it is in its life: loading, ready, unavailable (loaded, but its engine cannot answer now), draining
    or failed; unknown where the server says something newer.
    """

    model_id: str
    description: str
    methods: tuple[MethodDescription, ...]
    state: ModelState
    modelkit_version: str
    engine: str

    @property
    def ready(self) -> bool:
        """Whether the model takes calls."""
        return self.state == "ready"

    @property
    def method_names(self) -> list[str]:
        """The names of the methods, sorted."""
        return [method.name for method in self.methods]

    def method(self, name: str) -> MethodDescription:
        """Return the method of that name. Raises MethodNotFoundError, which suggests the nearest."""
        for method in self.methods:
            if method.name == name:
                return method
        raise MethodNotFoundError(name, self.method_names)


def read_description(message: pb.DescribeResponse) -> ModelDescription:
    """Read the answer of Describe."""
    return ModelDescription(
        model_id=message.model_id,
        description=message.description,
        methods=tuple(_read_method(method) for method in message.methods),
        state=_MODEL_STATES.get(message.state, "unknown"),
        modelkit_version=message.modelkit_version,
        engine=message.engine,
    )


_MODEL_STATES: dict[int, ModelState] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_UNAVAILABLE: "unavailable",
    pb.MODEL_STATE_DRAINING: "draining",
    pb.MODEL_STATE_FAILED: "failed",
}

_METHOD_KINDS: dict[int, MethodKind] = {
    pb.METHOD_KIND_UNARY: "unary",
    pb.METHOD_KIND_SERVER_STREAM: "server_stream",
    pb.METHOD_KIND_BIDIRECTIONAL: "bidirectional",
}


def _read_method(message: pb.Method) -> MethodDescription:
    return MethodDescription(
        name=message.name,
        kind=_METHOD_KINDS.get(message.kind, "unary"),
        arguments=tuple(_read_field(field) for field in message.arguments),
        result=_read_type(message.result),
        description=message.description,
    )


def _read_field(message: pb.Field) -> ArgumentDescription:
    has_default = message.HasField("default")
    return ArgumentDescription(
        name=message.name,
        type=_read_type(message.type),
        description=message.description,
        required=message.required,
        has_default=has_default,
        default=decode(message.default) if has_default else None,
        limits=_read_limits(message.limits),
        streamed=message.streamed,
    )


def _read_type(message: pb.Type) -> TypeDescription:
    try:
        kind = pb.TypeKind.Name(message.kind).removeprefix("TYPE_KIND_").lower()
    except ValueError:  # a kind that a newer server knows
        kind = "any"
    return TypeDescription(
        kind="any" if kind == "unspecified" else kind,
        args=tuple(_read_type(arg) for arg in message.args),
        name=message.name,
        fields=tuple(_read_field(field) for field in message.fields),
        choices=tuple(decode(choice) for choice in message.choices),
        dtype=message.dtype,
    )


def _read_limits(message: pb.Limits) -> Limits:
    bounds = ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum", "multiple_of")
    lengths = ("min_length", "max_length")
    return Limits(
        **{name: decode(getattr(message, name)) for name in bounds if message.HasField(name)},
        **{name: getattr(message, name) for name in lengths if message.HasField(name)},
        pattern=message.pattern,
        choices=tuple(decode(choice) for choice in message.choices),
    )
