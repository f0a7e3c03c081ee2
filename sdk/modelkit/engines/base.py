"""The one shape every engine has, and the values that go in and out of it.

An engine answers in two dialects. `generate` is typed: a GenerationRequest in, Chunks out. `openai` and
`openai_stream` are raw: an OpenAI request as JSON bytes in, the response or its streamed chunks as JSON bytes out, so
that everything OpenAI's API can say passes through unread. An embedded engine has `generate` and derives the raw
dialect from it (`embedded`); an engine behind an HTTP server has the raw one and derives `generate`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from modelkit.config import EngineConfig

__all__ = ["Chunk", "Engine", "FinishReason", "GenerationRequest", "SamplingParams"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to end; spelled and defaulted as in OpenAI's API and vLLM.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 mean no restriction. `max_tokens` None means up to the model's
    length. `seed` makes a request repeatable whatever else shares its batch.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to continue, exactly one of the three: a text, token ids, or chat messages for the chat template."""

    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplingParams = SamplingParams()


@dataclass(frozen=True, slots=True)
class Chunk:
    """One streamed piece of an answer. It may hold several tokens, or none where a character is not complete yet.

    `prompt_tokens`, `output_tokens` and `cached_tokens` are totals so far. The last chunk, and only it, has a
    `finish_reason`. The end-of-sequence token counts as an output token; its text is empty.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None


class Engine(ABC):
    """Runs one language model. Made by `engines.create`, started once, closed once.

    `generate`, `openai` and `openai_stream` may be called concurrently. Ending an iteration early, or cancelling the
    task that iterates, aborts the request in the engine. Bad requests raise InvalidArgumentError.
    """

    name: ClassVar[str]

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        self.config = config
        self.checkpoint_dir = checkpoint_dir
        self.model_id = model_id

    @abstractmethod
    async def start(self) -> None:
        """Load the weights; return when the engine has answered. Raises EngineError or LoadError."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the engine and free what it holds; running requests end with finish_reason "abort"."""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        """Stream the answer to one request."""

    @abstractmethod
    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Answer one OpenAI request, `endpoint` being "/chat/completions", "/completions", ..."""

    @abstractmethod
    def openai_stream(self, endpoint: str, body: bytes) -> AsyncIterator[bytes]:
        """Answer one OpenAI request as the JSON of each streamed chunk, without SSE's framing and without [DONE]."""
