"""The language model that most folders need: subclass `LLM`, and config.yaml says which engine runs it."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import orjson

from modelkit.config import EngineConfig
from modelkit.engines.base import Chunk, Engine, GenerationRequest
from modelkit.engines.catalog import create
from modelkit.engines.read_ahead import reading_ahead
from modelkit.engines.sampling import SamplingParams
from modelkit.errors import InvalidArgumentError, LoadError, UnavailableError
from modelkit.model import Field, Request, current_request
from modelkit.model.base import Model, method

__all__ = ["LLM"]

Message = Mapping[str, Any]

# The arguments of `predict` and `generate`, described once. None means the checkpoint's own default.
Prompt = Annotated[
    str, Field(description="What to say to the model; follows `messages` where both are given.")
]
Messages = Annotated[
    list[dict[str, Any]] | None,
    Field(description="The chat so far, as OpenAI's API has it: {'role': 'user', 'content': '...'}."),
]
System = Annotated[str, Field(description="System message: how the model should behave.")]
MaxTokens = Annotated[
    int | None, Field(ge=1, description="Most tokens to answer with. Default: what the model takes.")
]
MinTokens = Annotated[int, Field(ge=0, description="Fewest tokens to answer with.")]
Temperature = Annotated[
    float | None,
    Field(
        ge=0,
        le=2,
        description="0, or next to it, always takes the likeliest token. Default: what the checkpoint says, else 0.",
    ),
]
TopP = Annotated[
    float | None, Field(gt=0, le=1, description="Draw from the likeliest tokens with this total share.")
]
TopK = Annotated[
    int | None, Field(ge=0, description="Draw from this many of the likeliest tokens; 0 from all.")
]
MinP = Annotated[
    float | None,
    Field(ge=0, le=1, description="Leave out tokens less likely than this share of the likeliest."),
]
RepetitionPenalty = Annotated[
    float | None, Field(gt=0, description="Above 1: less of what stands in the prompt or the answer already.")
]
PresencePenalty = Annotated[
    float, Field(ge=-2, le=2, description="Above 0: less of what the answer has said once.")
]
FrequencyPenalty = Annotated[
    float, Field(ge=-2, le=2, description="Above 0: less of what the answer says often.")
]
Stop = Annotated[list[str] | None, Field(description="End the answer before any of these strings.")]
Seed = Annotated[int | None, Field(description="Makes a random answer repeatable.")]


class LLM(Model):
    """A language model run by the engine of config.yaml, with methods to predict, to stream, and for OpenAI clients.

    Subclass it and it serves; add methods of your own with `complete` and `stream`:

        class Translator(LLM):
            @method
            async def translate(self, text: str, language: str = "French") -> str:
                "Translate a text."
                return await self.complete(f"Translate into {language}: {text}", temperature=0)

    Everything that goes through `complete` and `stream` counts towards the call's usage. For more (token ids, several
    requests at once) there is `self.engine`.
    """

    engine: Engine

    async def load(self) -> None:
        """Start the engine on the model's checkpoint. Raises LoadError, UsageError or EngineError."""
        if self.config.engine is None:
            raise LoadError(
                "an LLM needs an engine, and config.yaml names none",
                cure="add to config.yaml: engine: {name: transformers}",
            )
        checkpoint_dir = next(iter(self.context.checkpoint_dirs.values()), None)
        self.engine = create(self._engine_config(self.config.engine), checkpoint_dir, self.config.model.id)
        self.engine.on_stage = self.report_progress
        with reading_ahead(self.engine.checkpoint_dir):
            await self.engine.start()

    async def close(self) -> None:
        """Stop the engine."""
        if hasattr(self, "engine"):
            await self.engine.close()

    def _engine_config(self, config: EngineConfig) -> EngineConfig:
        """Fill in what the engine cannot know: how many accelerators there are, and where the folder is."""
        changes: dict[str, Any] = {}
        if config.tensor_parallel_size is None and self.config.compute.num_accelerators > 1:
            changes["tensor_parallel_size"] = self.config.compute.num_accelerators
        if config.lora_modules:
            changes["lora_modules"] = {
                name: self._weights_dir(where) for name, where in config.lora_modules.items()
            }
        draft = (config.speculative or {}).get("model")
        if draft in self.context.checkpoint_dirs:
            changes["speculative"] = {**(config.speculative or {}), "model": self._weights_dir(str(draft))}
        return config.model_copy(update=changes)

    def _weights_dir(self, where: str) -> str:
        """Return the folder of a checkpoint of config.yaml by its name, or a folder relative to the model's."""
        return str(self.context.checkpoint_dirs.get(where) or (self.model_dir / where).resolve())

    @property
    def unready_reason(self) -> str:
        """Why the engine cannot answer at the moment."""
        return self.engine.down_reason if hasattr(self, "engine") else ""

    @property
    def dead_reason(self) -> str:
        """Why the engine will not answer again."""
        return self.engine.dead_reason if hasattr(self, "engine") else ""

    @method
    async def predict(
        self,
        prompt: Prompt = "",
        messages: Messages = None,
        system: System = "",
        max_tokens: MaxTokens = None,
        temperature: Temperature = None,
        top_p: TopP = None,
        top_k: TopK = None,
        min_p: MinP = None,
        stop: Stop = None,
        seed: Seed = None,
        repetition_penalty: RepetitionPenalty = None,
        presence_penalty: PresencePenalty = 0.0,
        frequency_penalty: FrequencyPenalty = 0.0,
        min_tokens: MinTokens = 0,
    ) -> str:
        """Answer a prompt or a chat with the whole text at once."""
        return await self.complete(**_arguments(locals()))

    @method
    async def generate(
        self,
        prompt: Prompt = "",
        messages: Messages = None,
        system: System = "",
        max_tokens: MaxTokens = None,
        temperature: Temperature = None,
        top_p: TopP = None,
        top_k: TopK = None,
        min_p: MinP = None,
        stop: Stop = None,
        seed: Seed = None,
        repetition_penalty: RepetitionPenalty = None,
        presence_penalty: PresencePenalty = 0.0,
        frequency_penalty: FrequencyPenalty = 0.0,
        min_tokens: MinTokens = 0,
    ) -> AsyncIterator[str]:
        """Answer a prompt or a chat piece by piece, as the model writes."""
        async with aclosing(self.stream(**_arguments(locals()))) as texts:
            async for text in texts:
                yield text

    @method
    async def openai_transport(self, msg: str) -> str:
        """Answer an OpenAI request given as JSON; `openai_endpoint` in it chooses another than /chat/completions."""
        endpoint, body = _openai_request(msg)
        body.pop("stream", None)
        body.pop("stream_options", None)
        response = await self.engine.openai(endpoint, orjson.dumps(body))
        _report_openai_usage(response, current_request())
        return response.decode()

    @method
    async def openai_stream_transport(self, msg: str) -> AsyncIterator[str]:
        """Stream the chunks of the answer to an OpenAI request, each as JSON."""
        endpoint, body = _openai_request(msg)
        options = body.get("stream_options") or {}
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        body["stream"] = True
        if endpoint in _USAGE_BY_OPTION:
            # The call's own usage is reported in any case; the chunk that carries it is passed on only when asked for.
            # More that was asked for stays, such as vLLM's continuous_usage_stats: totals with every chunk.
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        call = current_request()
        async with aclosing(self.engine.openai_stream(endpoint, orjson.dumps(body))) as chunks:
            async for chunk in chunks:
                only_usage = _report_openai_usage(chunk, call)
                if wants_usage or not only_usage:
                    yield chunk.decode()

    # ------------------------------------------------------------------------------------- for methods of a subclass

    async def complete(
        self,
        prompt: str = "",
        *,
        messages: Sequence[Message] | None = None,
        system: str = "",
        **sampling: Any,
    ) -> str:
        """Return the model's whole answer. Arguments as in `stream`."""
        async with aclosing(self.stream(prompt, messages=messages, system=system, **sampling)) as texts:
            return "".join([text async for text in texts])

    async def stream(
        self,
        prompt: str = "",
        *,
        messages: Sequence[Message] | None = None,
        system: str = "",
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the model's answer in pieces; none is empty or ends inside a character.

        `sampling` takes the fields of SamplingParams (`max_tokens`, `temperature`, ...; `stop` is a string or several).
        The call's usage grows before each piece. Raises InvalidArgumentError for a bad request and UnavailableError where the
        engine closes before the answer is complete.
        """
        request = self._request(prompt, messages or (), system, _sampling(**sampling))
        call = current_request()
        before = Chunk("")
        async with aclosing(self.engine.generate(request)) as chunks:
            async for chunk in chunks:
                _add_usage(call, before, chunk)
                before = chunk
                if chunk.finish_reason == "abort":
                    raise UnavailableError("the engine closed before the answer was complete")
                if chunk.text:
                    yield chunk.text
        call.finish_reason = before.finish_reason or ""

    def _request(
        self, prompt: str, messages: Sequence[Message], system: str, sampling: SamplingParams
    ) -> GenerationRequest:
        """Return a chat; or, where the checkpoint has no chat template and only a prompt is given, its continuation."""
        if not prompt and not messages:
            raise InvalidArgumentError("give a prompt or messages", cure="modelkit predict 'What is gRPC?'")
        if not self.engine.has_chat_template and not messages and not system:
            return GenerationRequest(prompt=prompt, sampling=sampling)
        chat = list(messages)
        if system:
            chat.insert(0, {"role": "system", "content": system})
        if prompt:
            chat.append({"role": "user", "content": prompt})
        return GenerationRequest(messages=chat, sampling=sampling)


# The endpoints that stream their usage only when a request asks for it; the Responses API always does.
_USAGE_BY_OPTION = ("/chat/completions", "/completions")


def _arguments(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a method was called with, given its `locals()` at the start."""
    return {name: value for name, value in variables.items() if name != "self"}


def _sampling(stop: str | Sequence[str] | None = None, **fields: Any) -> SamplingParams:
    return SamplingParams(stop=(stop,) if isinstance(stop, str) else tuple(stop or ()), **fields)


def _add_usage(call: Request, before: Chunk, chunk: Chunk) -> None:
    """Add what a chunk has more than the one before it, so that several requests of one call sum up."""
    call.usage.prompt_tokens += chunk.prompt_tokens - before.prompt_tokens
    call.usage.output_tokens += chunk.output_tokens - before.output_tokens
    call.usage.cached_tokens += chunk.cached_tokens - before.cached_tokens


def _openai_request(msg: str) -> tuple[str, dict[str, Any]]:
    """Return the endpoint and the body without the key that named it."""
    try:
        body = orjson.loads(msg)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"'msg' is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidArgumentError("'msg' is not a JSON object")
    endpoint = body.pop("openai_endpoint", None) or "/chat/completions"
    if not isinstance(endpoint, str):
        raise InvalidArgumentError("'openai_endpoint' is not a string")
    return "/" + endpoint.removeprefix("/v1").lstrip("/"), body


def _report_openai_usage(chunk: bytes, call: Request) -> bool:
    """Set the call's usage from a response or chunk that has one; say whether it has nothing else."""
    # Most chunks carry none, and parsing every one would cost more than passing it on.
    if b'"usage"' not in chunk:
        return False
    content = orjson.loads(chunk)
    # The Responses API has it inside the response, under names of its own.
    usage = content.get("usage") or (content.get("response") or {}).get("usage")
    if not usage:
        return False
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    call.usage.prompt_tokens = usage.get("prompt_tokens") or usage.get("input_tokens") or 0
    call.usage.output_tokens = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    call.usage.cached_tokens = details.get("cached_tokens") or 0
    return bool(content.get("choices") == [])
