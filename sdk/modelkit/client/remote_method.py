"""What the remote methods of both clients share: they look like local functions, which the server describes."""

# ruff: noqa: SLF001 - the client and its methods are parts of one thing

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from modelkit.client.base import BaseClient, Prepared
from modelkit.client.binding import bind
from modelkit.client.description import MethodDescription, ModelDescription
from modelkit.client.retry import Deadline
from modelkit.errors import CallError

__all__ = ["BaseMethods", "BaseRemoteMethod", "Bound"]


class Bound(NamedTuple):
    """A call that fits the signature: the method, its arguments, and what goes into its streamed one."""

    method: MethodDescription
    arguments: dict[str, Any]
    items: Any


class _Docstring:
    """The docstring of a class, and for an instance what the server says of its method."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: "BaseRemoteMethod | None", owner: type) -> str | None:
        if instance is None:
            return self._text
        described = instance._glance()
        return described.description or None if described is not None else None


class BaseRemoteMethod:
    """A method of the served model. Nothing is asked of the server before it is called or looked at."""

    def __init__(
        self,
        client: Any,
        name: str,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._metadata = metadata
        self.__name__ = name

    def __init_subclass__(cls) -> None:
        cls.__doc__ = _Docstring(cls.__doc__ or "")  # type: ignore[assignment]

    def options(self, *, timeout_s: float | None = None, metadata: Mapping[str, str] | None = None) -> Self:
        """Return the same method with a deadline or metadata of its own: `summarize.options(timeout_s=5)(text="...")`."""
        return type(self)(self._client, self.__name__, timeout_s, metadata)

    @property
    def description(self) -> MethodDescription:
        """What the server says of the method."""
        known: ModelDescription = self._client._recall()
        return known.method(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__" and (described := self._glance()) is not None:
            return _python_signature(described)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __repr__(self) -> str:
        described = self._glance()
        if described is None:
            return self.__name__
        about = described.description.strip()
        return f"{described}\n\n{about}" if about else str(described)

    def _glance(self) -> MethodDescription | None:
        """Return the description for something that must not fail: a repr, a docstring, a signature."""
        known: ModelDescription | None = self._client._glance()
        try:
            return known.method(self.__name__) if known is not None else None
        except CallError:
            return None

    def _fit(self, model: ModelDescription, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound:
        """Check the arguments against the signature. Raises InvalidArgumentError and MethodNotFoundError."""
        method = model.method(self.__name__)
        arguments = bind(method, args, kwargs)
        streamed = method.streamed_argument
        items = arguments.pop(streamed.name, ()) if streamed is not None else ()
        return Bound(method, arguments, items)

    def _prepare_bound(self, bound: Bound, deadline: Deadline) -> Prepared:
        """Prepare a call that streams."""
        call = self._client._new_call(bound.method.name, bound.arguments, deadline, self._metadata)
        prepared: Prepared
        if bound.method.kind == "bidirectional":
            prepared = self._client._prepare_stream(call, bound.items)
        else:
            prepared = self._client._prepare_generate(call)
        return prepared


class BaseMethods:
    """The methods of the served model by name, as attributes and as items.

    Any name gives a method, without asking the server, which may have been reloaded with others: calling one that does
    not exist raises MethodNotFoundError. `in`, `len` and iteration know which there are.
    """

    _METHOD: type[BaseRemoteMethod]
    _UNKNOWN: str

    def __init__(self, client: BaseClient) -> None:
        self._client: Any = client

    def __getitem__(self, name: str) -> Any:
        return self._METHOD(self._client, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy, pickle and notebooks probe for these
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known().method_names)

    def __len__(self) -> int:
        return len(self._known().methods)

    def __contains__(self, name: object) -> bool:
        return name in self._known().method_names

    def __dir__(self) -> list[str]:
        known = self._client._glance()
        return [*super().__dir__(), *(known.method_names if known is not None else ())]

    def __repr__(self) -> str:
        known = self._client._glance()
        if known is None:
            return f"<methods of {self._client.address}: {self._UNKNOWN}>"
        return "\n".join(
            f"{method}\n    {method.summary}" if method.summary else str(method) for method in known.methods
        )

    def _known(self) -> ModelDescription:
        known: ModelDescription = self._client._recall()
        return known


def _python_signature(method: MethodDescription) -> inspect.Signature:
    """Return the signature that editors and `help` show; the names of types are text, the author's classes are not here."""
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            argument.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default if argument.has_default else empty if argument.required else ...,
            annotation=str(argument.type),
        )
        for argument in method.arguments
        if argument.name.isidentifier()
    ]
    # Python wants arguments without a default first; a keyword-only argument of the author's may stand behind others.
    parameters.sort(key=lambda parameter: parameter.default is not empty)
    return inspect.Signature(parameters, return_annotation=str(method.result))
