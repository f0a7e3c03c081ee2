"""Every kind of method a model can have, without an engine. The annotations are the whole declaration."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from modelkit import Field, Model, method


@dataclass
class Person:
    name: str
    languages: list[str]


class Hello(Model):
    def load(self) -> None:
        self.greetings = {"en": "Hello", "fr": "Bonjour", "de": "Hallo"}

    @method
    def greet(self, name: str = Field("world", min_length=1, max_length=40)) -> str:
        """Greet somebody: one call, one answer."""
        return f"{self.greetings['en']}, {name}!"

    @method
    async def introduce(self, person: Person) -> dict[str, str]:
        """Greet a person in each of their languages that we know; slow callers do not hold up others."""
        await asyncio.sleep(0.01)
        known = [code for code in person.languages if code in self.greetings]
        return {code: f"{self.greetings[code]}, {person.name}!" for code in known}

    @method
    def generate(self, prompt: str, times: int = Field(1, ge=1, le=1000)) -> Iterator[str]:
        """Say the prompt word by word: one call, a stream of answers."""
        for _ in range(times):
            yield from (f"{word} " for word in prompt.split())

    @method
    async def stream(self, lines: AsyncIterator[str], shout: bool = False) -> AsyncIterator[str]:
        """Answer each line as it arrives: a stream both ways."""
        async for line in lines:
            yield f"you said: {line.upper() if shout else line}"
