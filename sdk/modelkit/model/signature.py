"""A method's signature: what it takes and returns, and how a call's arguments are checked against it."""

import collections.abc
import copy
import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pydantic
from pydantic_core import SchemaError, SchemaValidator

from modelkit.datatypes import Media, Tensor, Text
from modelkit.errors import InvalidArgumentError, Violation, closest
from modelkit.model.base import METHOD_ATTRIBUTE, Model, method
from modelkit.model.fields import REQUIRED
from modelkit.model.results import ResultCheck
from modelkit.model.types import (
    ArgumentSpec,
    TypeKind,
    TypeSpec,
    UnsupportedTypeError,
    WireType,
    unsupported,
    wire_type,
)

__all__ = ["MethodKind", "Signature", "SignatureError", "method_names", "read_signature"]


class MethodKind(enum.StrEnum):
    """How a method is called: one answer, a stream of them, or a stream both ways."""

    UNARY = "unary"
    SERVER_STREAM = "server_stream"
    BIDIRECTIONAL = "bidirectional"


class SignatureError(TypeError):
    """A signature that cannot be served. `argument` names the part: an argument, "return", or "" for all of it."""

    def __init__(self, message: str, cure: str, argument: str = "") -> None:
        super().__init__(message)
        self.cure = cure
        self.argument = argument


@dataclass(frozen=True, slots=True)
class Signature:
    """What callers may know of a method, and the checks of its arguments.

    `is_async` says whether it runs on the event loop (`async def`) or in a thread. `result` describes one item where
    the result is a stream. `streamed` is the name of the argument that arrives item by item, "" where there is none.
    `check_result` holds what the method gives against its annotation. `binds_slowly` is True where checking the arguments decodes images or copies tensors, which is work for a thread.
    """

    name: str
    kind: MethodKind
    description: str
    arguments: tuple[ArgumentSpec, ...]
    result: TypeSpec
    is_async: bool
    streamed: str
    validators: Mapping[str, SchemaValidator]
    item_validator: SchemaValidator | None
    fill_in: Mapping[str, Callable[[], Any]]
    binds_slowly: bool
    required: frozenset[str]
    check_result: ResultCheck

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check decoded arguments and turn them into the author's types; what is left out keeps its default.

        Raises InvalidArgumentError with every violation: unknown, missing, of the wrong type, outside its limits.
        """
        bound = {name: make() for name, make in self.fill_in.items() if name not in arguments}
        violations: list[Violation] = []
        validators = self.validators
        for name, value in arguments.items():
            validator = validators.get(name)
            if validator is None:
                violations.append(self._unknown(name))
                continue
            try:
                bound[name] = validator.validate_python(value)
            except pydantic.ValidationError as error:
                violations += self._violations(name, error)
        if not self.required <= arguments.keys():
            missing = (spec.name for spec in self.arguments if spec.name in self.required - arguments.keys())
            violations += (Violation(name, "is required") for name in missing)
        if violations:
            raise InvalidArgumentError(_summary(self.name, violations), violations=violations)
        return bound

    def check_item(self, value: Any) -> Any:
        """Check one item of the streamed argument. Raises InvalidArgumentError."""
        assert self.item_validator is not None
        try:
            return self.item_validator.validate_python(value)
        except pydantic.ValidationError as error:
            violations = self._violations(self.streamed, error)
            raise InvalidArgumentError(_summary(self.name, violations), violations=violations) from error

    def _unknown(self, name: str) -> Violation:
        known = [spec.name for spec in self.arguments]
        guess = closest(name, known)
        hint = f"; did you mean '{guess}'?" if guess else f"; the arguments are {', '.join(known) or 'none'}"
        return Violation(name, f"is not an argument of '{self.name}'{hint}")

    def _violations(self, name: str, error: pydantic.ValidationError) -> list[Violation]:
        spec = next(spec for spec in self.arguments if spec.name == name)
        items = error.errors(include_url=False, include_input=False)
        if _is_ambiguous(spec.type) and len(items) > 1:
            # pydantic reports every member of a union that did not fit; a caller wants to know what would.
            return [Violation(name, f"must be {describe_type(spec.type)}")]
        return [Violation(_path(name, item["loc"]), _message(item)) for item in items]


_STREAM_RESULTS = (collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator)
_ASYNC_STREAM_RESULTS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


def method_names(model_class: type[Model]) -> list[str]:
    """Return the names of a model's methods, sorted. One that overrides a marked method counts without a mark."""
    return sorted(
        name
        for name in dir(model_class)
        if any(hasattr(base.__dict__.get(name), METHOD_ATTRIBUTE) for base in model_class.__mro__)
        and getattr(model_class, name) is not None  # `greet = None` takes an inherited method away
    )


def read_signature(model_class: type[Model], name: str) -> Signature:
    """Read the signature of one method from its annotations. Raises SignatureError."""
    function = _function(model_class, name)
    options = getattr(function, METHOD_ATTRIBUTE)
    parameters = _parameters(name, function)
    hints = _type_hints(function)
    if "return" not in hints:
        raise SignatureError(
            f"method '{name}' does not say what it returns",
            "annotate the result, for example -> str",
            "return",
        )
    result, kind, gives_async = _result(hints["return"])
    _check_body(name, function, kind, gives_async=gives_async)
    streamed, takes_async = _streamed(name, hints, parameters, kind)
    if streamed:
        kind = MethodKind.BIDIRECTIONAL
    is_async = _runs_on_loop(function, gives_async=gives_async)
    if streamed and is_async and not takes_async:
        raise SignatureError(
            f"method '{name}' is async but reads '{streamed}' from a synchronous iterator",
            f"annotate '{streamed}' with AsyncIterator[...] and read it with 'async for'",
            streamed,
        )
    if streamed and takes_async and not is_async:
        raise SignatureError(
            f"method '{name}' is not async but reads '{streamed}' from an asynchronous iterator",
            f"write 'async def {name}', or annotate '{streamed}' with Iterator[...]",
            streamed,
        )
    wires = {
        parameter.name: _argument_wire(name, parameter, hints[parameter.name], options, streamed=streamed)
        for parameter in parameters
    }
    validators = {key: _validator(key, wire) for key, wire in wires.items()}
    item_validator = validators.pop(streamed, None)
    return Signature(
        name=name,
        kind=kind,
        description=inspect.getdoc(function) or "",
        arguments=tuple(_argument_spec(key, wire, streamed) for key, wire in wires.items()),
        result=result,
        is_async=is_async,
        streamed=streamed,
        validators=validators,
        item_validator=item_validator,
        fill_in=_fill_in(parameters, wires, streamed),
        required=frozenset(
            name for name, wire in wires.items() if wire.default is REQUIRED and name != streamed
        ),
        binds_slowly=any(_is_heavy(wire.spec) for wire in wires.values()),
        check_result=ResultCheck(result, describe_type(result)),
    )


def describe_type(spec: TypeSpec) -> str:
    """Say a type in Python's spelling: `list[str]`, `int | None`, `'a' | 'b'`."""
    if spec.kind is TypeKind.UNION:
        return " | ".join(describe_type(member) for member in spec.args)
    if spec.kind is TypeKind.CHOICE:
        return " | ".join(repr(choice) for choice in spec.choices)
    if spec.kind in (TypeKind.LIST, TypeKind.TUPLE, TypeKind.MAP):
        name = {TypeKind.LIST: "list", TypeKind.TUPLE: "tuple", TypeKind.MAP: "dict"}[spec.kind]
        return f"{name}[{', '.join(describe_type(member) for member in spec.args)}]"
    if spec.kind is TypeKind.OBJECT:
        return spec.name
    python_names = {TypeKind.STRING: "str", TypeKind.NULL: "None"}
    return python_names.get(spec.kind, spec.kind.value)


# ------------------------------------------------------------------------------------------------ reading annotations


def _function(model_class: type[Model], name: str) -> Callable[..., Any]:
    """Return a method's function. One that overrides a marked method is marked now: it may have Field defaults too."""
    found = inspect.getattr_static(model_class, name)
    if not inspect.isfunction(found):
        raise SignatureError(
            f"method '{name}' is a {type(found).__name__}, not a plain function",
            f"write def {name}(self, ...) or async def {name}(self, ...), with @method above it",
        )
    return found if hasattr(found, METHOD_ATTRIBUTE) else method(found)


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters after `self`; those that cannot be given by name are refused."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise SignatureError(f"method '{name}' has no 'self'", f"write def {name}(self, ...)")
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise SignatureError(
                f"method '{name}' takes '{parameter}', which has no fixed set of arguments",
                "name each argument; for a variable number take a list or a dict",
                parameter.name,
            )
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise SignatureError(
                f"argument '{parameter.name}' of method '{name}' is positional-only",
                "remove the '/': arguments are sent by name",
                parameter.name,
            )
        if parameter.annotation is inspect.Parameter.empty:
            raise SignatureError(
                f"argument '{parameter.name}' of method '{name}' has no type",
                f"annotate it, for example {parameter.name}: str",
                parameter.name,
            )
    return parameters[1:]


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    return {key: _type_hint(inner, key, value) for key, value in inner.__annotations__.items()}


def _type_hint(function: Any, key: str, annotation: Any) -> Any:
    """Evaluate one annotation; alone, so that an error is known to be this one's."""
    alone = types.SimpleNamespace(__annotations__={key: annotation})
    try:
        return typing.get_type_hints(alone, globalns=function.__globals__, include_extras=True)[key]
    except NameError as error:
        raise SignatureError(
            f"the name '{error.name}' in an annotation is not defined when model.py is imported",
            f"import '{error.name}' at the top of the file, outside of 'if TYPE_CHECKING'; "
            "to keep a heavy library out, take modelkit's Image or Tensor and convert it in the method",
            key,
        ) from error
    except Exception as error:  # an annotation is an expression: it may raise anything
        module = _module_in(str(annotation), function.__globals__)
        if module is not None:
            fault = unsupported(module)
            raise SignatureError(str(fault), fault.cure, key) from error
        message = f"the annotation '{annotation}' cannot be read: {error}"
        raise SignatureError(message, "write it as a type", key) from error


def _module_in(annotation: str, names: Mapping[str, Any]) -> types.ModuleType | None:
    """Return the module that stands in an annotation where a class should, as in `from PIL import Image`."""
    for path in re.findall(r"[A-Za-z_][\w.]*", annotation):
        first, *rest = path.split(".")
        value = names.get(first)
        for part in rest:
            value = getattr(value, part, None)
        if isinstance(value, types.ModuleType):
            return value
    return None


def _result(annotation: Any) -> tuple[TypeSpec, MethodKind, bool | None]:
    """Return the result's description, the kind it implies, and whether the stream is asynchronous."""
    origin = typing.get_origin(annotation) or annotation
    is_async = origin in _ASYNC_STREAM_RESULTS
    try:
        if not is_async and origin not in _STREAM_RESULTS:
            return wire_type(annotation).spec, MethodKind.UNARY, None
        items = typing.get_args(annotation)
        return wire_type(items[0] if items else Any).spec, MethodKind.SERVER_STREAM, is_async
    except UnsupportedTypeError as error:
        raise SignatureError(f"the result: {error}", error.cure, "return") from error


def _check_body(
    name: str, function: Callable[..., Any], kind: MethodKind, *, gives_async: bool | None
) -> None:
    """Refuse an annotation of the result that the function's body cannot keep."""
    yields = inspect.isgeneratorfunction(function)
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if kind is MethodKind.UNARY and (yields or inspect.isasyncgenfunction(function)):
        stream = "Iterator" if yields else "AsyncIterator"
        message = f"method '{name}' yields, but its annotation says that it returns one value"
        cure = f"annotate the result with {stream}[...]"
    elif gives_async and yields:
        message = f"method '{name}' is not async but says that it returns an asynchronous iterator"
        cure = f"write 'async def {name}', or annotate the result with Iterator[...]"
    elif gives_async is False and is_async:
        message = f"method '{name}' is async but says that it returns a synchronous iterator"
        cure = "annotate the result with AsyncIterator[...]"
    else:
        return
    raise SignatureError(message, cure, "return")


def _streamed(
    name: str, hints: Mapping[str, Any], parameters: list[inspect.Parameter], kind: MethodKind
) -> tuple[str, bool]:
    """Return the name of the streamed argument ("" for none) and whether it is an asynchronous iterator."""
    streams = _STREAM_RESULTS + _ASYNC_STREAM_RESULTS
    names = [p.name for p in parameters if (typing.get_origin(hints[p.name]) or hints[p.name]) in streams]
    if not names:
        return "", False
    if len(names) > 1:
        raise SignatureError(
            f"method '{name}' has {len(names)} streamed arguments: {', '.join(names)}",
            "stream one argument; take the others as lists, or stream tuples",
            names[1],
        )
    if kind is MethodKind.UNARY:
        raise SignatureError(
            f"method '{name}' takes a stream but returns a single value",
            f"take a list[...] instead of '{names[0]}', or return an Iterator and yield once",
            "return",
        )
    return names[0], (typing.get_origin(hints[names[0]]) or hints[names[0]]) in _ASYNC_STREAM_RESULTS


def _runs_on_loop(function: Callable[..., Any], *, gives_async: bool | None) -> bool:
    """`async def` runs on the event loop, and so does a plain function that returns an asynchronous iterator."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) or bool(gives_async)


def _argument_wire(
    method: str, parameter: inspect.Parameter, hint: Any, options: Mapping[str, Any], *, streamed: str
) -> WireType:
    name = parameter.name
    if name == streamed:
        items = typing.get_args(hint)
        hint = items[0] if items else Any
    try:
        wire = wire_type(hint, option=options.get(name))
    except UnsupportedTypeError as error:
        raise SignatureError(f"argument '{name}' of method '{method}': {error}", error.cure, name) from error
    if parameter.default is not inspect.Parameter.empty and name not in options:
        wire = replace(wire, default=parameter.default)
    _check_default(method, name, wire)
    return wire


def _check_default(method: str, name: str, wire: WireType) -> None:
    """A default that breaks the argument's own limits would fail only the callers that rely on it."""
    default = wire.default
    plain = default is None or type(default) in (str, int, float, bool, bytes, list, tuple, dict)
    if not plain or wire.spec.kind in (TypeKind.OBJECT, TypeKind.TEXT):
        return
    try:
        _validator(name, wire).validate_python(default)
    except pydantic.ValidationError as error:
        reason = _message(error.errors(include_url=False)[-1])
        raise SignatureError(
            f"the default of argument '{name}' of method '{method}' breaks its own rules: {default!r} {reason}",
            "change the default or the limits",
            name,
        ) from error


def _argument_spec(name: str, wire: WireType, streamed: str) -> ArgumentSpec:
    return ArgumentSpec(
        name=name,
        type=wire.spec,
        description=wire.description,
        default=wire.default,
        limits=wire.limits,
        streamed=name == streamed,
    )


def _validator(name: str, wire: WireType) -> SchemaValidator:
    try:
        adapter = pydantic.TypeAdapter(wire.check)
    except (pydantic.errors.PydanticUserError, SchemaError, TypeError) as error:
        message = str(error).partition("\n")[0]
        raise SignatureError(
            f"argument '{name}' has a limit that does not fit its type: {message}",
            "use ge, gt, le, lt for numbers, min_length and max_length for strings and lists",
            name,
        ) from error
    return typing.cast("SchemaValidator", adapter.validator)


def _is_heavy(spec: TypeSpec) -> bool:
    members = (*spec.args, *(field.type for field in spec.fields))
    return spec.kind in (TypeKind.IMAGE, TypeKind.TENSOR) or any(_is_heavy(member) for member in members)


def _fill_in(
    parameters: list[inspect.Parameter], wires: Mapping[str, WireType], streamed: str
) -> dict[str, Callable[[], Any]]:
    """Return makers of the defaults that Python itself does not know or would share between calls.

    That is those written inside Annotated[..., Field(default)], those with a factory, and objects that a method may
    change.
    """
    makers: dict[str, Callable[[], Any]] = {}
    for parameter in parameters:
        wire = wires[parameter.name]
        if parameter.name == streamed or wire.default is REQUIRED:
            continue
        if wire.factory is not None:
            makers[parameter.name] = wire.factory
        elif parameter.default is inspect.Parameter.empty or not _is_immutable(wire.default):
            makers[parameter.name] = functools.partial(copy.deepcopy, wire.default)
    return makers


def _is_immutable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_immutable, value))
    return value is None or isinstance(value, (str, int, float, bytes, enum.Enum, Media, Tensor, Text))


# ------------------------------------------------------------------------------------------------------- violations


def _is_ambiguous(spec: TypeSpec) -> bool:
    """Whether a type is a union of several types beside None."""
    return spec.kind is TypeKind.UNION and sum(member.kind is not TypeKind.NULL for member in spec.args) > 1


def _path(name: str, location: tuple[int | str, ...]) -> str:
    """Join an argument's name and pydantic's location: `messages[0].role`."""
    return name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _message(item: Any) -> str:
    """Say pydantic's reason so that it reads on after the name of the field."""
    text = str(item["msg"]).removeprefix("Value error, ")
    for start, better in (("Input should be ", "must be "), ("Field required", "is required")):
        if text.startswith(start):
            return better + text.removeprefix(start)
    return text[:1].lower() + text[1:]


def _summary(method: str, violations: list[Violation]) -> str:
    shown = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
    more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""  # noqa: PLR2004 - three fit a line
    return f"bad arguments for '{method}': {shown}{more}"
