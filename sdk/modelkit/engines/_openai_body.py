"""Read an OpenAI request for an engine that has only `generate`.

Three kinds of fields: those that are honoured, those that change nothing here and are skipped, and those that mean
something this engine cannot do. The last are refused by name, as is a field that nobody knows: an option that is
silently ignored is a wrong answer.
Source: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create; `top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `ignore_eos` and `chat_template_kwargs` as in vLLM's server.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelkit.engines.base import GenerationRequest
from modelkit.engines.openai_rules import COMPLETION_MAX_TOKENS, check_model_name
from modelkit.engines.sampling import SamplingParams
from modelkit.errors import InvalidArgumentError, NotFoundError, Violation, closest

__all__ = ["ChatBody", "CompletionBody", "OpenAIBody", "parse_body"]

MAX_CHOICES = 128
# Answers of one request, its prompts and the choices of each counted: they all start at once.
MAX_ANSWERS = 1024

_SKIPPED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# Fields that cannot be honoured, with the values that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "audio": (),
        "best_of": (1,),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "web_search_options": (),
    }
)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class OpenAIBody(BaseModel):
    """What both endpoints have in common."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str = ""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: str | list[str] = Field(default_factory=list)
    seed: int | None = None
    ignore_eos: bool = False

    def requests(self) -> list[GenerationRequest]:
        """Return one request per choice of the response, in the order of their index."""
        prompts = self._prompts()
        if len(prompts) * self.n > MAX_ANSWERS:
            raise _invalid(
                "prompt", f"asks for {len(prompts) * self.n} answers at once; there may be {MAX_ANSWERS}"
            )
        return [
            replace(prompt, sampling=self.sampling(number)) for prompt in prompts for number in range(self.n)
        ]

    def sampling(self, number: int = 0) -> SamplingParams:
        """Return the sampling of choice `number` of a prompt; with a seed, each choice gets its own."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            seed=None if self.seed is None else self.seed + number,
            ignore_eos=self.ignore_eos,
        )

    def _prompts(self) -> list[GenerationRequest]:
        raise NotImplementedError


class ChatBody(OpenAIBody):
    """The body of a request to /chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def sampling(self, number: int = 0) -> SamplingParams:
        """Return the sampling of choice `number`; `max_completion_tokens` is the newer name of `max_tokens`."""
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return super().sampling(number)

    def _prompts(self) -> list[GenerationRequest]:
        messages = [_plain_message(index, message) for index, message in enumerate(self.messages)]
        return [GenerationRequest(messages=messages, chat_template_kwargs=self.chat_template_kwargs)]


class CompletionBody(OpenAIBody):
    """The body of a request to /completions: one or several prompts, as text or as token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = COMPLETION_MAX_TOKENS

    def _prompts(self) -> list[GenerationRequest]:
        prompts: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not prompts:
            raise _invalid("prompt", "must not be empty")
        return [
            GenerationRequest(prompt=prompt)
            if isinstance(prompt, str)
            else GenerationRequest(prompt_token_ids=prompt)
            for prompt in prompts
        ]


_BODIES: Mapping[str, type[OpenAIBody]] = MappingProxyType(
    {"/chat/completions": ChatBody, "/completions": CompletionBody}
)


def parse_body(endpoint: str, body: bytes, engine_name: str, model_id: str) -> OpenAIBody:
    """Read the body of a request.

    Raises NotFoundError for an endpoint this engine has not or the name of another model, InvalidArgumentError for a body that is no JSON object,
    lacks a field, or asks for what cannot be done.
    """
    kind = _BODIES.get(endpoint)
    if kind is None:
        raise NotFoundError(
            f"the engine '{engine_name}' has no endpoint {endpoint}", cure=f"use one of: {', '.join(_BODIES)}"
        )
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"the request is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError("the request is not a JSON object")
    check_model_name(content.get("model"), {model_id})
    # In OpenAI's API null stands for a field that is left out.
    content = {name: value for name, value in content.items() if value is not None and name not in _SKIPPED}
    _refuse_unsupported(content, kind, engine_name)
    fields = {name: value for name, value in content.items() if name in kind.model_fields}
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _translated(error) from error


def _refuse_unsupported(content: dict[str, Any], kind: type[OpenAIBody], engine_name: str) -> None:
    for name, value in content.items():
        if name in kind.model_fields or (name in _REFUSED and value in _REFUSED[name]):
            continue
        if name in _REFUSED:
            raise _invalid(name, f"is not supported by the engine '{engine_name}'", cure="leave it out")
        guess = closest(name, list(kind.model_fields))
        raise _invalid(name, "is not known", cure=f"did you mean '{guess}'?" if guess else "leave it out")


def _plain_message(index: int, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is text, which is what chat templates take. Joins text parts by line breaks."""
    if not isinstance(message.get("role"), str):
        raise _invalid(f"messages[{index}].role", "is required and must be a string")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return {**message, "content": content or ""}
    if not isinstance(content, list):
        raise _invalid(f"messages[{index}].content", "must be a string or a list of parts")
    texts = []
    for position, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _invalid(
                f"messages[{index}].content[{position}]", "must be text: this engine reads nothing else"
            )
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}


def _invalid(name: str, description: str, *, cure: str = "") -> InvalidArgumentError:
    return InvalidArgumentError(
        f"'{name}' {description}", cure=cure, violations=[Violation(name, description)]
    )


def _translated(error: ValidationError) -> InvalidArgumentError:
    violations = [
        Violation(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)
    ]
    return InvalidArgumentError(
        "; ".join(f"'{violation.field}': {violation.description}" for violation in violations),
        violations=violations,
    )
