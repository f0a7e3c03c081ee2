from modelkit import LLM, Field, method


class MyModel(LLM):
    """A language model. It has `predict`, `generate` (streamed) and OpenAI's API already; add what is yours."""

    @method
    async def summarize(self, text: str, max_words: int = Field(50, ge=1, le=500)) -> str:
        """Sum a text up."""
        return await self.complete(f"Summarize in at most {max_words} words:\n\n{text}", temperature=0)
