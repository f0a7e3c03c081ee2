"""Engines behind an OpenAI-compatible HTTP server; and the engine `openai`, a server that already runs."""

import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import orjson

from modelkit.config import EngineConfig
from modelkit.engines.base import Chunk, Engine, FinishReason, GenerationRequest
from modelkit.engines.openai_rules import COMPLETION_MAX_TOKENS, check_model_name
from modelkit.engines.sampling import SamplingParams
from modelkit.engines.upstream import Upstream
from modelkit.errors import (
    CallError,
    EngineError,
    InvalidArgumentError,
    LoadError,
    NotFoundError,
    UnauthenticatedError,
)

__all__ = ["OpenAIEngine", "RemoteEngine"]

# What is passed on. Engines have more under /v1, and beside it: weights are loaded and servers ended there.
ENDPOINTS = frozenset(
    {
        *("/chat/completions", "/completions", "/responses", "/embeddings"),
        *("/rerank", "/score", "/classify", "/pooling"),
    }
)
# The fields that say how tokens are chosen, where a request may leave them to the checkpoint.
_SAMPLED_ENDPOINTS = frozenset({"/chat/completions", "/completions"})
_MEDIA = ("image_url", "video_url", "audio_url", "file_url")
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "abort": "abort",
}


class OpenAIEngine(Engine):
    """Base of engines with an HTTP server: the raw dialect is passed on, the typed one is made of it.

    A subclass sets `upstream` in `start`, and overrides `adapt` where its server spells a field its own way.
    """

    upstream: Upstream
    # The name that requests give; servers differ in how strictly they check it.
    served_name: str
    # Whether each streamed chunk can tell the totals so far (vLLM's continuous_usage_stats).
    streams_usage: ClassVar[bool] = False

    def known_names(self) -> set[str]:
        """Return the names that a request may give the model: its id, the server's name for it, LoRA adapters."""
        return {self.model_id, self.served_name, *(self.config.lora_modules or ())}

    def name_of_adapter(self, name: str) -> str:
        """Return what the server calls one of `engine.lora_modules`."""
        return name

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request's body as this engine's server wants it."""
        return body

    async def close(self) -> None:
        """Close the connections to the server."""
        if hasattr(self, "upstream"):
            await self.upstream.close()

    async def metrics(self) -> bytes:
        """Return what the server's own /metrics says. Raises CallError where it has none or is gone."""
        return await self.upstream.get("/metrics")

    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Pass one OpenAI request on and return the response unread."""
        return await self.upstream.post(endpoint, self._prepare(endpoint, body))

    async def openai_stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Pass one OpenAI request on and yield each chunk unread."""
        async with aclosing(self.upstream.stream(endpoint, self._prepare(endpoint, body))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answer to one request; the totals are the engine's own where it streams them."""
        endpoint = "/completions" if request.messages is None else "/chat/completions"
        body = self._body(request)
        if request.messages is None and "max_tokens" not in body:
            body["max_tokens"] = await self.room_for_answer(body["prompt"])
        answer = _Answer()
        async with aclosing(self.upstream.stream(endpoint, orjson.dumps(self.adapt(body)))) as events:
            async for event in events:
                chunk = answer.read(orjson.loads(event))
                if chunk is not None:
                    yield chunk
        yield answer.last()

    async def room_for_answer(self, prompt: str | list[int]) -> int | None:
        """Return the most tokens that may follow a prompt; None leaves it to the server."""
        del prompt
        return None

    def sampling_fields(self, sampling: SamplingParams) -> dict[str, Any]:
        """Return the fields that a request sets; what it leaves out is the server's to decide."""
        said_by_zero = ("temperature", "seed")
        return {
            name: value
            for name, value in asdict(sampling).items()
            if value not in (None, (), 0) or (value == 0 and name in said_by_zero)
        }

    def sampled_defaults(self) -> Mapping[str, Any]:
        """Return what a request that says nothing gets; nothing where the server decides."""
        return {}

    def _prepare(self, endpoint: str, body: bytes) -> bytes:
        """Check a raw request, put the server's name of the model in, and fill in what engines see differently."""
        if endpoint not in ENDPOINTS:
            raise NotFoundError(
                f"'{endpoint}' is not passed on", cure=f"use one of: {', '.join(sorted(ENDPOINTS))}"
            )
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidArgumentError(f"the request is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise InvalidArgumentError("the request is not a JSON object")
        name = parsed.get("model")
        check_model_name(name, self.known_names())
        if name in (None, "", self.model_id):
            parsed["model"] = self.served_name
        elif name in (self.config.lora_modules or ()):
            parsed["model"] = self.name_of_adapter(name)
        if endpoint == "/completions" and parsed.get("max_tokens") is None:
            parsed["max_tokens"] = COMPLETION_MAX_TOKENS
        self._check_media(parsed)
        if endpoint in _SAMPLED_ENDPOINTS:
            for name, value in self.sampled_defaults().items():
                if parsed.get(name) is None:
                    parsed[name] = value
        return orjson.dumps(self.adapt(parsed))

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the body for a typed request."""
        options: dict[str, Any] = {"include_usage": True}
        if self.streams_usage:
            options["continuous_usage_stats"] = True
        body: dict[str, Any] = {"model": self.served_name, "stream": True, "stream_options": options}
        body |= self.sampling_fields(request.sampling)
        if request.messages is None:
            prompt = request.prompt if request.prompt_token_ids is None else list(request.prompt_token_ids)
            return body | {"prompt": prompt}
        self._check_media(request.messages)
        body["messages"] = list(request.messages)
        if request.tools:
            body["tools"] = list(request.tools)
        if request.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(request.chat_template_kwargs)
        return body

    def _check_media(self, messages: Any) -> None:
        """Refuse an image by its address: the engine would fetch it, from wherever the caller points it to."""
        for url in _media_urls(messages):
            if not url.lower().startswith("data:"):
                raise InvalidArgumentError(
                    f"images and other media are taken as data, not fetched from {url[:80]!r}",
                    cure="send data:image/png;base64,... in its place",
                )


def _media_urls(value: Any) -> Iterator[str]:
    """Find the addresses of media in chat messages, however deep they are nested."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _MEDIA:
                url = item.get("url") if isinstance(item, Mapping) else item
                if isinstance(url, str):
                    yield url
            elif isinstance(item, Mapping | list | tuple):
                yield from _media_urls(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _media_urls(item)


class _Answer:
    """The state of one streamed answer: totals so far, and why it ended."""

    def __init__(self) -> None:
        self._prompt_tokens = self._output_tokens = self._cached_tokens = 0
        self._finish_reason: FinishReason = "stop"

    def read(self, event: dict[str, Any]) -> Chunk | None:
        """Return the piece of text in an event; None where it has none."""
        choices = event.get("choices")
        choice = choices[0] if choices else {}
        text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        if usage := event.get("usage"):
            self._prompt_tokens = usage.get("prompt_tokens") or 0
            self._output_tokens = usage.get("completion_tokens") or 0
            self._cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        elif text:
            # A server that tells its totals at the end only sends a chunk a token, or close to it.
            self._output_tokens += 1
        if reason := choice.get("finish_reason"):
            self._finish_reason = _FINISH_REASONS.get(reason, "stop")
        return self._chunk(text) if text else None

    def last(self) -> Chunk:
        """Return the chunk that ends the answer."""
        return self._chunk("", self._finish_reason)

    def _chunk(self, text: str, reason: FinishReason | None = None) -> Chunk:
        return Chunk(text, (), self._prompt_tokens, self._output_tokens, self._cached_tokens, reason)


class RemoteEngine(OpenAIEngine):
    """An OpenAI-compatible server that already runs, modelkit's or anybody's.

    Its URL is `engine.url`, or the environment variable OPENAI_BASE_URL; its key is in the variable that
    `engine.api_key_env` names, OPENAI_API_KEY by default. `engine.model` names the model, the server's first otherwise.
    """

    name = "openai"

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        super().__init__(config, checkpoint_dir, model_id)
        self.served_name = config.model or ""
        self._listed: list[str] = []

    def known_names(self) -> set[str]:
        """Return the id here and every name that the server lists."""
        return super().known_names().union(self._listed)

    async def start(self) -> None:
        """Ask the server for its models. Raises LoadError or EngineError with what is missing."""
        url = self.config.url or os.environ.get("OPENAI_BASE_URL", "")
        if not url:
            raise LoadError(
                "the engine 'openai' needs the URL of a server",
                cure="set engine.url in config.yaml, or export OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
            )
        key_name = self.config.api_key_env or "OPENAI_API_KEY"
        self.upstream = Upstream(self.name, url, api_key=os.environ.get(key_name))
        try:
            served = self._listed = _model_names(await self.upstream.get("/v1/models"))
        except CallError as error:
            raise EngineError(
                f"the server at {url} does not list its models: {error.message}",
                cure=_cure(error, url, key_name),
            ) from error
        if not self.served_name:
            self.served_name = next(iter(served), self.model_id)
        elif served and self.served_name not in served:
            raise EngineError(
                f"the server at {url} has no model '{self.served_name}'",
                cure=f"set engine.model in config.yaml to one of: {', '.join(served)}",
            )


def _cure(error: CallError, url: str, key_name: str) -> str:
    """Return what to do about a server that does not say which models it has."""
    if isinstance(error, UnauthenticatedError):
        return f"export {key_name}=... with the server's key; engine.api_key_env names another variable"
    if isinstance(error, NotFoundError):
        return (
            "correct engine.url in config.yaml: it ends before /chat/completions, such as http://HOST:8000/v1"
        )
    base = url.rstrip("/").removesuffix("/v1")
    return f"start the server, or correct engine.url in config.yaml; `curl {base}/v1/models` has to answer"


def _model_names(content: bytes) -> list[str]:
    """Return the ids in a /v1/models response."""
    try:
        return [entry["id"] for entry in orjson.loads(content)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []
