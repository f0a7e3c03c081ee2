"""Methods as authors write them: which kind they are, how they inherit, what reaches a direct call."""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator
from typing import Annotated

import pydantic
import pytest

from modelkit import Field, Model, method
from modelkit.errors import InvalidArgumentError
from modelkit.model import MethodKind, SignatureError, TypeKind, current_request, read_signatures
from modelkit.model.signature import read_signature


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Every(Model):
    @method
    def unary(self, a: int) -> str:
        """Say it.

        At length.
        """
        return str(a)

    @method
    async def unary_async(self, a: int) -> str: ...
    @method
    def iterates(self) -> Iterator[int]:
        yield 1

    @method
    def generates(self) -> Generator[int, None, None]:
        yield 1

    @method
    def returns_iterable(self) -> Iterable[int]:
        return [1]

    @method
    async def async_generates(self) -> AsyncGenerator[int, None]:
        yield 1

    @method
    async def returns_async_iterator(self) -> AsyncIterator[int]:
        return self.async_generates()

    @method
    def hands_over(self) -> AsyncIterator[int]:
        return self.async_generates()

    @method
    def both(self, items: Iterator[str], loud: bool = False) -> Iterator[int]:
        yield from map(len, items)

    @method()
    async def both_async(self, items: AsyncIterator[str]) -> AsyncIterator[int]:
        async for item in items:
            yield len(item)

    def unmarked(self): ...


@pytest.mark.parametrize(
    ("name", "kind", "is_async"),
    [
        ("unary", "unary", False),
        ("unary_async", "unary", True),
        ("iterates", "server_stream", False),
        ("generates", "server_stream", False),
        ("returns_iterable", "server_stream", False),
        ("async_generates", "server_stream", True),
        ("returns_async_iterator", "server_stream", True),
        ("hands_over", "server_stream", True),
        ("both", "bidirectional", False),
        ("both_async", "bidirectional", True),
    ],
)
def test_annotations_say_the_kind(name, kind, is_async):
    signature = read_signatures(Every)[name]
    assert (signature.kind, signature.is_async) == (MethodKind(kind), is_async)


def test_only_marked_methods_are_served():
    assert list(read_signatures(Every)) == sorted(
        name for name in vars(Every) if name[0] != "_" and name != "unmarked"
    )


def test_the_docstring_is_the_description():
    assert read_signature(Every, "unary").description == "Say it.\n\nAt length."


def test_the_streamed_argument_is_marked_and_checked_item_by_item():
    signature = read_signature(Every, "both")
    assert [(spec.name, spec.streamed, spec.required) for spec in signature.arguments] == [
        ("items", True, True),
        ("loud", False, False),
    ]
    assert signature.check_item("a") == "a"
    with pytest.raises(InvalidArgumentError, match="items: must be a valid string"):
        signature.check_item(1)
    assert signature.bind({"loud": True}) == {"loud": True}
    with pytest.raises(InvalidArgumentError):
        signature.bind({"*stream*": 1})


def test_an_override_counts_without_a_mark_and_may_change_everything():
    class Base(Model):
        @method
        def greet(self, name: str) -> str: ...
        @method
        def gone(self) -> str: ...

    class Derived(Base):
        gone = None

        def greet(self, name: str, times: int = Field(2, ge=1)) -> list[str]:
            return [name] * times

    signatures = read_signatures(Derived)
    assert list(signatures) == ["greet"]
    assert signatures["greet"].result.kind is TypeKind.LIST
    assert signatures["greet"].arguments[1].limits.minimum == 1
    assert Derived().greet("a") == ["a", "a"]


def test_defaults_reach_direct_calls():
    class Direct(Model):
        @method
        def run(
            self, a: int = Field(ge=1), b: int = Field(2), *, c: int = pydantic.Field(3), d: int = Field(le=9)
        ) -> tuple[int, int, int, int]:
            return a, b, c, d

        @method
        @logged
        def wrapped(self, a: int = Field(5, ge=1)) -> int:
            return a

        @logged
        @method
        def wrapped_outside(self, a: int = Field(6)) -> int:
            return a

    assert Direct().run(1, d=4) == (1, 2, 3, 4)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Direct().run(d=1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument"):
        Direct().run(1)
    assert (Direct().wrapped(), Direct().wrapped_outside()) == (5, 6)
    signatures = read_signatures(Direct)
    assert signatures["wrapped"].arguments[0].limits.minimum == 1
    assert signatures["wrapped_outside"].arguments[0].default == 6


def test_unknown_missing_and_wrong_arguments_are_one_error():
    with pytest.raises(InvalidArgumentError, match="bad arguments for 'unary'") as caught:
        read_signature(Every, "unary").bind({"b": 1, "c": 2})
    assert [violation.field for violation in caught.value.violations] == ["b", "c", "a"]


def test_outside_of_a_call_the_request_is_empty():
    Every().report_usage(prompt_tokens=1)
    assert (current_request().id, current_request().usage.prompt_tokens) == ("", 0)
    assert Every().request.time_remaining_s() is None


class Wrong(Model):
    @method
    def no_type(self, a) -> int: ...
    @method
    def no_result(self, a: int): ...
    @method
    def starred(self, *args: int) -> int: ...
    @method
    def double_starred(self, **kwargs: int) -> int: ...
    @method
    def positional(self, a: int, /) -> int: ...
    @method
    def no_self() -> int: ...
    @method
    def two_streams(self, a: Iterator[int], b: Iterator[int]) -> Iterator[int]: ...
    @method
    def stream_in_unary_out(self, a: Iterator[int]) -> int: ...
    @method
    async def sync_stream(self, a: Iterator[int]) -> AsyncIterator[int]: ...
    @method
    def async_stream(self, a: AsyncIterator[int]) -> Iterator[int]: ...
    @method
    def undefined(self, a: Missing) -> int: ...  # noqa: F821
    @method
    def module(self, a: pydantic) -> int: ...
    @method
    def unsupported(self, a: complex) -> int: ...
    @method
    def unsupported_result(self) -> complex: ...
    @method
    def limit(self, a: Annotated[str, Field(ge=1)]) -> int: ...
    @method
    def default(self, a: int = Field(0, ge=1)) -> int: ...
    @method
    def yields(self) -> int:
        yield 1

    @method
    def not_async(self) -> AsyncIterator[int]:
        yield 1

    @method
    async def not_sync(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("name", "argument", "words"),
    [
        ("no_type", "a", "has no type"),
        ("no_result", "return", "does not say what it returns"),
        ("starred", "args", "no fixed set of arguments"),
        ("double_starred", "kwargs", "no fixed set of arguments"),
        ("positional", "a", "positional-only"),
        ("no_self", "", "has no 'self'"),
        ("two_streams", "b", "has 2 streamed arguments: a, b"),
        ("stream_in_unary_out", "return", "takes a stream but returns a single value"),
        ("sync_stream", "a", "reads 'a' from a synchronous iterator"),
        ("async_stream", "a", "reads 'a' from an asynchronous iterator"),
        ("undefined", "a", "the name 'Missing' in an annotation is not defined"),
        ("module", "a", "'pydantic' is a module, not a type"),
        ("unsupported", "a", "values of type complex cannot be sent"),
        ("unsupported_result", "return", "values of type complex cannot be sent"),
        ("limit", "a", "the limit minimum does not fit the type string"),
        ("default", "a", "breaks its own rules: 0 must be greater than or equal to 1"),
        ("yields", "return", "yields, but its annotation says"),
        ("not_async", "return", "not async but says that it returns an asynchronous iterator"),
        ("not_sync", "return", "is async but says that it returns a synchronous iterator"),
    ],
)
def test_a_signature_that_cannot_be_served_says_which_part(name, argument, words):
    with pytest.raises(SignatureError, match=words.replace("(", r"\(")) as caught:
        read_signature(Wrong, name)
    assert caught.value.argument == argument
    assert caught.value.cure


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_a_method_that_is_no_plain_function(wrap):
    class Base(Model):
        @method
        def run(self, a: int) -> int: ...

    class Odd(Base):
        run = wrap(Base.run)

    with pytest.raises(SignatureError, match=f"method 'run' is a {wrap.__name__}, not a plain function"):
        read_signature(Odd, "run")
    with pytest.raises(TypeError, match=f"marks a plain function, not a {wrap.__name__}"):
        method(wrap(Base.run))


@dataclasses.dataclass
class Tags:
    names: list[str] = dataclasses.field(default_factory=list)


class FreshDefaults(Model):
    @method
    def made(self, key: str = pydantic.Field(default_factory=lambda: uuid.uuid4().hex)) -> str:
        return key

    @method
    def shared(self, tags: Tags = Tags(["a"]), rows: tuple[list[int], ...] = ([1],)) -> int:  # noqa: B008
        return len(tags.names)


def test_a_default_factory_makes_a_default_for_each_call():
    signature = read_signature(FreshDefaults, "made")
    assert signature.bind({})["key"] != signature.bind({})["key"]
    assert signature.bind({"key": "mine"}) == {"key": "mine"}


def test_a_default_that_can_change_is_not_shared_between_calls():
    signature = read_signature(FreshDefaults, "shared")
    first = signature.bind({})
    first["tags"].names.append("b")
    first["rows"][0].append(2)
    assert signature.bind({}) == {"tags": Tags(["a"]), "rows": ([1],)}
