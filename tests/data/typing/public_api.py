"""Read by mypy, never run: what a type checker says of the public names, seen from a user's own code."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from modelkit import AsyncClient, Client, Field, Model, Tensor, Text, method


class Greeter(Model):
    @method
    def greet(self, name: str = Field("world", max_length=40)) -> str:
        return f"Hello, {name}!"

    @method
    async def shout(self, text: str) -> Text:
        return Text(text.upper())

    @method
    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)

    @method()
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line


def methods_keep_their_types(greeter: Greeter) -> None:
    assert_type(greeter.greet(), str)
    assert_type(greeter.count(3), Iterator[int])
    assert_type(greeter.request.id, str)
    greeter.greet(1)  # type: ignore[arg-type]


async def async_methods_keep_their_types(greeter: Greeter, lines: AsyncIterator[str]) -> None:
    assert_type(await greeter.shout("x"), Text)
    assert_type(greeter.echo(lines), AsyncIterator[str])


def a_client_returns_what_the_model_says(client: Client) -> None:
    assert_type(client.predict("x"), Any)
    with client as same:
        assert_type(same, Client)


async def an_async_client_is_awaited(client: AsyncClient) -> None:
    assert_type(await client.predict("x"), Any)
    async with client as same:
        assert_type(same, AsyncClient)


assert_type(Tensor((1,), "int8", b"\0").shape, tuple[int, ...])
