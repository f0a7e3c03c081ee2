"""The author's side: subclass `Model`, load in `load`, mark methods with `@method`."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from modelkit.config import Config
from modelkit.model.fields import REQUIRED, FieldSpec
from modelkit.model.request import Request, current_request

__all__ = ["MarkError", "Model", "ModelContext", "method"]

F = TypeVar("F", bound=Callable[..., Any])

# Marks a function as a method; the value keeps the FieldSpecs that stood in place of its defaults, by argument.
METHOD_ATTRIBUTE = "__modelkit_method__"


class MarkError(TypeError):
    """`@method` stands over something that it cannot mark."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model is given before `load`: its config, its folder, and its checkpoints on disk by name."""

    config: Config
    model_dir: Path
    checkpoint_dirs: Mapping[str, Path] = field(default_factory=dict)
    # Hears what `load` is doing.
    report_progress: Callable[[str], None] = lambda _: None


class Model:
    """Base of every served model.

        class Greeter(Model):
            def load(self) -> None:
                self.greeting = "Hello"

            @method
            def greet(self, name: str) -> str:
                "Greet somebody."
                return f"{self.greeting}, {name}!"

    `load` runs once, before the server says it is ready; import heavy libraries inside it. `close` runs once at the
    end, also when `load` failed half-way. Both may be `async def`, as may every method.
    """

    context: ModelContext

    def load(self) -> Awaitable[None] | None:
        """Prepare the model: read weights, start an engine. What it raises becomes the reason the server gives."""
        return None

    def close(self) -> Awaitable[None] | None:
        """Release what `load` took."""
        return None

    @property
    def unready_reason(self) -> str:
        """Why a loaded model cannot answer at the moment, "" where it can. Readiness probes ask often: keep it cheap."""
        return ""

    @property
    def dead_reason(self) -> str:
        """Why a loaded model will never answer again, "" while there is hope: then liveness fails, to be started anew."""
        return ""

    @property
    def config(self) -> Config:
        """The model folder's config.yaml, checked."""
        return self.context.config

    @property
    def model_dir(self) -> Path:
        """The model folder."""
        return self.context.model_dir

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of the model's checkpoint. Raises LookupError where config.yaml names none."""
        for directory in self.context.checkpoint_dirs.values():
            return directory
        raise LookupError("config.yaml has no 'checkpoints' section")

    @property
    def request(self) -> Request:
        """The call being answered: its id, metadata, deadline, and whether the caller has gone."""
        return current_request()

    def report_progress(self, stage: str) -> None:
        """Say what a `load` that takes long is doing now: "compiling". Who starts the server sees it."""
        self.context.report_progress(stage)

    def report_usage(
        self,
        *,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> None:
        """Report the tokens this call has used so far, as totals; None leaves a number as it is."""
        usage = current_request().usage
        if prompt_tokens is not None:
            usage.prompt_tokens = prompt_tokens
        if output_tokens is not None:
            usage.output_tokens = output_tokens
        if cached_tokens is not None:
            usage.cached_tokens = cached_tokens


@overload
def method(function: F) -> F: ...
@overload
def method(function: None = None) -> Callable[[F], F]: ...
def method(function: F | None = None) -> F | Callable[[F], F]:
    """Mark a function of a Model as callable over gRPC.

    Its annotations say how: `-> T` is unary, `-> Iterator[T]` or `-> AsyncIterator[T]` a server stream, and with one
    argument that is an iterator too, bidirectional. They are read when the model folder is validated or served.
    """
    if function is None:
        return _mark
    return _mark(function)


def _mark(function: F) -> F:
    """Record the Field defaults of a function and put the plain values in their place.

    So a method that calls a sibling directly gets the value it would get over the wire, without a wrapper that would
    cost time on each call and hide whether the function is a coroutine or a generator.
    """
    if not inspect.isfunction(function):
        kind = "class" if inspect.isclass(function) else type(function).__name__
        wrapped = isinstance(function, (staticmethod, classmethod, property))
        cure = (
            f"remove @{kind}: a method takes self"
            if wrapped
            else "write @method alone above a 'def' in the class"
        )
        raise MarkError(f"@method marks a plain function, not a {kind}", cure)
    specs: dict[str, Any] = {}
    layer: Any = function
    while inspect.isfunction(layer):
        _take_specs(layer, specs)
        layer = getattr(layer, "__wrapped__", None)  # another decorator's wrapper has no defaults of its own
    setattr(function, METHOD_ATTRIBUTE, specs)
    return function


def _take_specs(function: Any, specs: dict[str, Any]) -> None:
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    first_default = len(positional) - len(defaults)
    plain = [_plain_default(*pair, specs) for pair in zip(positional[first_default:], defaults, strict=True)]
    while plain and plain[0] is REQUIRED:  # Python knows by itself that these must be given
        plain.pop(0)
    function.__defaults__ = tuple(plain) or None
    keywords = {
        name: _plain_default(name, value, specs) for name, value in (function.__kwdefaults__ or {}).items()
    }
    function.__kwdefaults__ = {name: value for name, value in keywords.items() if value is not REQUIRED}


def _plain_default(name: str, value: Any, specs: dict[str, Any]) -> Any:
    if isinstance(value, FieldSpec):
        specs[name] = value
        return value.default
    if type(value).__name__ == "FieldInfo" and type(value).__module__.startswith("pydantic"):
        specs[name] = value
        return REQUIRED if value.is_required() else value.get_default(call_default_factory=True)
    return value
