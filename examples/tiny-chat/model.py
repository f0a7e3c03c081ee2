"""A chat model with the methods every LLM has (predict, generate, the OpenAI transport) and one of its own."""

from modelkit import LLM, Field, method


class TinyChat(LLM):
    @method
    async def add(self, a: int = Field(ge=0, le=5), b: int = Field(ge=0, le=5)) -> str:
        """Add two small numbers, by asking the model."""
        return await self.complete(f"What is {a} plus {b}?")
