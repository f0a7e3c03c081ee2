"""OpenAI's dialect for engines in this process, derived from `generate`."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson

from modelkit.engines._openai_body import ChatBody, OpenAIBody, parse_body
from modelkit.engines.base import Chunk, Engine, GenerationRequest
from modelkit.errors import UnavailableError

__all__ = ["EmbeddedEngine"]


class EmbeddedEngine(Engine):
    """Base of engines that have only `generate`: answers /chat/completions and /completions.

    Honours n, stop, seed, max_tokens and the sampling parameters, streamed or not, with usage. Refuses what it cannot
    do (`_openai_body`).
    """

    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Answer one OpenAI request with the whole response. Raises NotFoundError or InvalidArgumentError."""
        parsed = parse_body(endpoint, body, self.name)
        answers = await asyncio.gather(*(self._answer(request) for request in parsed.requests()))
        style = _Style(parsed, self.model_id)
        choices = [style.choice(index, text, last) for index, (text, last) in enumerate(answers)]
        usage = _usage([last for _, last in answers], parsed.n)
        return orjson.dumps({**style.envelope, "choices": choices, "usage": usage})

    async def openai_stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Answer one OpenAI request as the JSON of each chunk. Raises NotFoundError or InvalidArgumentError."""
        parsed = parse_body(endpoint, body, self.name)
        requests = parsed.requests()
        style = _Style(parsed, self.model_id, streamed=True)
        last: dict[int, Chunk] = {}
        async with aclosing(_merge([self._checked(request) for request in requests])) as chunks:
            async for index, chunk in chunks:
                if style.is_chat and not last:
                    # Not before the engine has answered: until then an error can be a status instead of an event.
                    for number in range(len(requests)):
                        yield style.chunk(number, {"role": "assistant", "content": ""})
                last[index] = chunk
                if chunk.text or not chunk.finish_reason:
                    yield style.chunk(index, {"content": chunk.text})
                if chunk.finish_reason:
                    yield style.chunk(index, {}, chunk.finish_reason)
        if parsed.stream_options.include_usage:
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

    def chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """Return the JSON of one streamed chunk."""
        content = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
        return orjson.dumps({**self.envelope, "choices": [choice]})


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
    merged: asyncio.Queue[tuple[int, Chunk | None]] = asyncio.Queue(maxsize=len(streams))

    async def drain(index: int, stream: AsyncIterator[Chunk]) -> None:
        async for chunk in stream:
            await merged.put((index, chunk))

    tasks = [asyncio.create_task(drain(index, stream)) for index, stream in enumerate(streams)]
    everything = asyncio.gather(*tasks)
    everything.add_done_callback(lambda _: merged.put_nowait((-1, None)) if not merged.full() else None)
    try:
        while not (everything.done() and merged.empty()):
            index, chunk_or_end = await merged.get()
            if chunk_or_end is not None:
                yield index, chunk_or_end
        await everything
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
