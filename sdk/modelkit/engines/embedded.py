"""OpenAI's dialect for engines in this process, derived from `generate`."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import orjson

from modelkit.engines._openai_body import ChatBody, OpenAIBody, parse_body
from modelkit.engines.base import Chunk, Engine, GenerationRequest
from modelkit.errors import UnavailableError

__all__ = ["EmbeddedEngine"]

T = TypeVar("T")


class EmbeddedEngine(Engine):
    """Base of engines that have only `generate`: answers /chat/completions and /completions.

    Honours n, stop, seed, max_tokens and the sampling parameters, streamed or not, with usage. Refuses what it cannot
    do (`_openai_body`).
    """

    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Answer one OpenAI request with the whole response. Raises NotFoundError or InvalidArgumentError."""
        parsed = parse_body(endpoint, body, self.name, self.model_id)
        async with _cancelled_on_exit([self._answer(request) for request in parsed.requests()]) as tasks:
            answers = await asyncio.gather(*tasks)
        style = _Style(parsed, self.model_id)
        choices = [style.choice(index, text, last) for index, (text, last) in enumerate(answers)]
        usage = _usage([last for _, last in answers], parsed.n)
        return orjson.dumps({**style.envelope, "choices": choices, "usage": usage})

    async def openai_stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Answer one OpenAI request as the JSON of each chunk. Raises NotFoundError or InvalidArgumentError."""
        parsed = parse_body(endpoint, body, self.name, self.model_id)
        requests = parsed.requests()
        style = _Style(parsed, self.model_id, streamed=True)
        options = parsed.stream_options
        tells_usage = options.include_usage and options.continuous_usage_stats
        last: dict[int, Chunk] = {}
        async with aclosing(_merge([self._checked(request) for request in requests])) as chunks:
            async for index, chunk in chunks:
                if style.is_chat and not last:
                    # Not before the engine has answered: until then an error can be a status instead of an event.
                    for number in range(len(requests)):
                        yield style.chunk(number, {"role": "assistant", "content": ""})
                last[index] = chunk
                usage = _usage([last[one] for one in sorted(last)], parsed.n) if tells_usage else None
                if chunk.text or not chunk.finish_reason:
                    yield style.chunk(index, {"content": chunk.text}, usage=usage)
                if chunk.finish_reason:
                    yield style.chunk(index, {}, chunk.finish_reason, usage)
        if options.include_usage:
            usage = _usage([last[index] for index in sorted(last)], parsed.n)
            yield orjson.dumps({**style.envelope, "choices": [], "usage": usage})

    async def _answer(self, request: GenerationRequest) -> tuple[str, Chunk]:
        """Return the whole text and the last chunk."""
        texts = []
        chunk = Chunk("")
        async with aclosing(self._checked(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
        return "".join(texts), chunk

    async def _checked(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answer; OpenAI's API has no finish reason for one that the engine's end cut off."""
        async with aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason == "abort":
                    raise UnavailableError("the engine closed before the answer was complete")
                yield chunk


class _Style:
    """The shapes in which the two endpoints put the same answer."""

    def __init__(self, body: OpenAIBody, model_id: str, *, streamed: bool = False) -> None:
        self.is_chat = isinstance(body, ChatBody)
        kind = "chat.completion" if self.is_chat else "text_completion"
        self.envelope: dict[str, Any] = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if streamed and self.is_chat else kind,
            "created": int(time.time()),
            "model": body.model or model_id,
        }

    def choice(self, index: int, text: str, last: Chunk) -> dict[str, Any]:
        """Return one choice of a whole response."""
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": last.finish_reason}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the JSON of one streamed chunk, with the totals so far where they were asked for."""
        content = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
        totals = {} if usage is None else {"usage": usage}
        return orjson.dumps({**self.envelope, "choices": [choice], **totals})


def _usage(last_chunks: list[Chunk], choices_per_prompt: int) -> dict[str, Any]:
    """Return OpenAI's usage, in which a prompt counts once however many choices it has."""
    prompts = last_chunks[::choices_per_prompt]
    prompt_tokens = sum(chunk.prompt_tokens for chunk in prompts)
    output_tokens = sum(chunk.output_tokens for chunk in last_chunks)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(chunk.cached_tokens for chunk in prompts)},
    }


async def _merge(streams: list[AsyncGenerator[Chunk, None]]) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Yield (index, chunk) of several streams as they come. The first error ends them all, as does leaving early."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for chunk in only:
                yield 0, chunk
        return
    # One place per stream: a stream goes on only when its last chunk has been read.
    merged: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue(maxsize=len(streams))
    async with _cancelled_on_exit([_drain(index, stream, merged) for index, stream in enumerate(streams)]):
        running = len(streams)
        while running:
            index, item = await merged.get()
            if isinstance(item, Exception):
                raise item
            yield index, item
            running -= item.finish_reason is not None


async def _drain(
    index: int, stream: AsyncGenerator[Chunk, None], merged: asyncio.Queue[tuple[int, Chunk | Exception]]
) -> None:
    """Move a stream into the queue, and its error after it."""
    try:
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                await merged.put((index, chunk))
    except Exception as error:  # noqa: BLE001 - raised by the reader
        await merged.put((index, error))


@asynccontextmanager
async def _cancelled_on_exit(
    coroutines: list[Coroutine[Any, Any, T]],
) -> AsyncIterator[list[asyncio.Task[T]]]:
    """Run coroutines as tasks; at the end, whatever the reason, none of them goes on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
