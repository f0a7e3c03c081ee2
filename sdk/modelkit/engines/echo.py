"""An engine without weights: it streams the words of the last message back.

For trying a model folder, a client or a deployment before there is a checkpoint, and for tests that need an engine
whose answer is known.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelkit.config import EngineConfig
from modelkit.engines.base import Chunk, FinishReason, GenerationRequest
from modelkit.engines.embedded import EmbeddedEngine
from modelkit.engines.stops import StopMatcher
from modelkit.errors import EngineError, InvalidArgumentError, UnavailableError, UsageError

__all__ = ["EchoArgs", "EchoEngine"]

# A token is a word with the space before it: joined, the tokens are the text.
TOKEN = re.compile(r"\s*\S+|\s+$")


class EchoArgs(BaseModel):
    """What `engine.args` may hold for this engine."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    delay_s: float = Field(0.0, ge=0, description="Seconds each token takes.")


class EchoEngine(EmbeddedEngine):
    """Answers with its own prompt: the content of the last message, or the prompt's text, one word a token.

    Token ids are the position of the word in the answer. Sampling parameters other than max_tokens and stop change
    nothing.
    """

    name = "echo"

    def __init__(self, config: EngineConfig, checkpoint_dir: Path | None, model_id: str) -> None:
        super().__init__(config, checkpoint_dir, model_id)
        try:
            self.args = EchoArgs.model_validate(config.args)
        except ValidationError as error:
            raise UsageError(
                f"engine.args for the engine 'echo': {error}",
                cure=f"use one of: {', '.join(EchoArgs.model_fields)}",
            ) from error
        self._closed = asyncio.Event()
        self._started = False

    async def start(self) -> None:
        """Return at once."""
        self._started = True

    async def close(self) -> None:
        """End running requests with "abort" at their next token."""
        self._closed.set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Stream the words of the prompt. Raises InvalidArgumentError where there is no text in it."""
        if not self._started:
            raise EngineError("the engine was not started")
        if self._closed.is_set():
            raise UnavailableError("the engine is closed")
        sampling = request.sampling.resolve(self.sampling_defaults)
        tokens = TOKEN.findall(_text(request))
        if not tokens:
            raise InvalidArgumentError("the prompt is empty")
        matcher = StopMatcher(sampling.stop)
        # Like a model's answer, this one ends with a token that has no text.
        limit = min(sampling.max_tokens or len(tokens) + 1, len(tokens) + 1)
        for number, token in enumerate(itertools.islice([*tokens, ""], limit)):
            await asyncio.sleep(self.args.delay_s)
            text = matcher.feed(token)
            finish: FinishReason | None = None
            if self._closed.is_set():
                finish = "abort"
            elif matcher.stopped or number == len(tokens):
                finish = "stop"
            elif number + 1 == limit:
                finish = "length"
            if finish is not None:
                text += matcher.flush()
            yield Chunk(text, (number,), len(tokens), number + 1, finish_reason=finish)
            if finish is not None:
                return


def _text(request: GenerationRequest) -> str:
    if request.prompt_token_ids is not None:
        raise InvalidArgumentError(
            "the engine 'echo' has no tokenizer, so it cannot read token ids", cure="send text"
        )
    if request.messages:
        content = request.messages[-1].get("content")
        return content if isinstance(content, str) else ""
    return request.prompt or ""
