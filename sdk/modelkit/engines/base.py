"""The one shape every engine has, and the values that go in and out of it.

An engine answers in two dialects. `generate` is typed: a GenerationRequest in, Chunks out. `openai` and
`openai_stream` are raw: an OpenAI request as JSON bytes in, the response or its streamed chunks as JSON bytes out, so
that everything OpenAI's API can say passes through unread. An embedded engine has `generate` and derives the raw
dialect from it (`embedded`); an engine behind an HTTP server has the raw one and derives `generate`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from modelkit.config import EngineConfig
from modelkit.engines.sampling import Sampling, SamplingParams, read_generation_config, sampling_defaults

__all__ = ["Chunk", "Engine", "FinishReason", "GenerationRequest", "Sampling", "SamplingParams"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to continue, exactly one of the three: a text, token ids, or chat messages for the chat template."""

    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One streamed piece of an answer: at least one token, several where the reader was slower than the engine.

    `prompt_tokens`, `output_tokens` and `cached_tokens` are totals so far. The last chunk, and only it, has a
    `finish_reason`. The end-of-sequence token counts as an output token; its text is empty, as is that of the tokens
    that complete a stop string. Joined, the texts are the answer: a chunk never ends inside a character.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None


class Engine(ABC):
    """Runs one language model. Made by `engines.create`, started once, closed once.

    `generate`, `openai` and `openai_stream` may be called concurrently. Ending an iteration early (`aclose`), or
    cancelling the task that iterates, aborts the request in the engine. Bad requests raise InvalidArgumentError;
    a request that the engine fails on raises EngineError, or OverloadedError where it may succeed later.
    """

    name: ClassVar[str]
    # Why the engine cannot answer at the moment (its server has died and is being restarted); "" where it can.
    down_reason: str = ""
    # Why it never will again: its server has been restarted too many times. "" while there is hope.
    dead_reason: str = ""

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        self.config = config
        self.checkpoint_dir = checkpoint_dir
        self.model_id = model_id
        # Hears the name of each phase of a long start; set before `start`.
        self.on_stage: Callable[[str], None] = lambda _: None

    @cached_property
    def sampling_defaults(self) -> Mapping[str, float]:
        """What the checkpoint's generation_config.json says where a request says nothing (`SamplingParams.resolve`)."""
        return sampling_defaults(read_generation_config(self.checkpoint_dir))

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be answered; a prompt alone is then a chat of one message."""
        return True

    @abstractmethod
    async def start(self) -> None:
        """Load the weights; return when the engine has answered. Raises EngineError or LoadError."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the engine and free what it holds; running requests end with finish_reason "abort"."""

    async def metrics(self) -> bytes:
        """Return the engine's own metrics in Prometheus' text format; b"" where it has none."""
        return b""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the answer to one request."""

    @abstractmethod
    async def openai(self, endpoint: str, body: bytes) -> bytes:
        """Answer one OpenAI request, `endpoint` being "/chat/completions", "/completions", ..."""

    @abstractmethod
    def openai_stream(self, endpoint: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Answer one OpenAI request as the JSON of each streamed chunk, without SSE's framing and without [DONE]."""
