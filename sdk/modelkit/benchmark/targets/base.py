"""The one shape of what is measured: a server that takes an OpenAI request and streams its answer."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modelkit.benchmark.record import BY_SPREAD, BY_USAGE, OK, Record

__all__ = ["Arrivals", "Protocol", "RequestFailed", "Target", "TargetSpec", "Turn", "base_url"]

Protocol = Literal["grpc", "http"]
Endpoint = Literal["completions", "chat"]
now_ns = time.perf_counter_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """Where a server is and which of the common extensions of OpenAI's API it takes (`probe` finds out).

    `exact_length` are vLLM's `ignore_eos` and `min_tokens`, which make every answer as long as was asked for;
    `running_usage` is its `continuous_usage_stats`, by which each chunk tells the totals so far. `method` is the gRPC
    method, `model` the name that requests give.
    """

    protocol: Protocol
    address: str
    model: str = ""
    method: str = ""
    endpoint: Endpoint = "completions"
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    exact_length: bool = True
    running_usage: bool = True
    temperature: float | None = 0.0
    keep_text: bool = False

    @property
    def url(self) -> str:
        """How a person would write it."""
        return self.address if "://" in self.address else f"grpc://{self.address}"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request says: text, or a list of OpenAI's content parts; and the length of the answer it asks for."""

    content: str | Sequence[Mapping[str, Any]]
    output_tokens: int
    expected_prompt_tokens: int = 0


class RequestFailed(Exception):  # noqa: N818 - a result of the measurement, not an error of modelkit's
    """A request ended badly; `code` is gRPC's status name, or HTTP_503, CONNECTION_RESET, STREAM_ERROR, TIMEOUT."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Arrivals:
    """Notes the messages of one answer, and at its end how many tokens each has carried."""

    def __init__(self, record: Record, *, keep_text: bool) -> None:
        self.record = record
        self._keep_text = keep_text
        self._weights: list[int] = []
        self.told = 0
        self._all_told = True

    def message(self, at_ns: int, weight: int, total_tokens: int | None, text: str = "") -> None:
        """Note a message that seems to carry `weight` tokens; `total_tokens` is the server's count so far, if it told."""
        if total_tokens is not None:
            self.record.arrive(at_ns, max(0, total_tokens - self.told))
            self.told = max(self.told, total_tokens)
        elif weight:
            self._all_told = False
            self.record.arrive(at_ns, 0)
        else:
            return
        self._weights.append(weight)
        if self._keep_text:
            self.record.text += text

    @property
    def is_told(self) -> bool:
        """Whether every message so far came with the server's count."""
        return self._all_told and self.told > 0

    def usage(self, prompt_tokens: int, output_tokens: int, cached_tokens: int) -> None:
        """Note the totals."""
        self.record.prompt_tokens = prompt_tokens
        self.record.output_tokens = output_tokens
        self.record.cached_tokens = cached_tokens

    def settle(self) -> None:
        """Attribute the tokens, once the answer is complete."""
        told = self._all_told and self.told == self.record.output_tokens
        self.record.counted_by = BY_USAGE if told else BY_SPREAD
        self.record.settle(None if told else self._weights)


class Target(ABC):
    """A connection to a server. Opened once, before anything is timed; `ask` may be called concurrently."""

    def __init__(self, spec: TargetSpec) -> None:
        self.spec = spec
        self.num_bytes = 0

    @abstractmethod
    async def open(self) -> None:
        """Connect. Raises ModelkitError where the server cannot be reached or is none of this kind."""

    async def prepare(self, num_connections: int) -> None:  # noqa: B027 - a protocol may have nothing to prepare
        """Open the connections that so many requests at once will need: no answer's time has that in it."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    def encode(self, body: dict[str, Any]) -> Any:
        """Return what goes over the wire for a request; called before the clock starts."""

    @abstractmethod
    async def stream(self, encoded: Any, arrivals: Arrivals) -> None:
        """Send a request and note its answer. Raises RequestFailed."""

    async def ask(self, turn: Turn, history: Sequence[Mapping[str, Any]], record: Record) -> None:
        """Send one request and fill in its record; a request that fails is a result too and raises nothing."""
        encoded = self.encode(request_body(self.spec, turn, history))
        arrivals = Arrivals(record, keep_text=self.spec.keep_text)
        record.sent_ns = now_ns()
        try:
            async with asyncio.timeout(self.spec.timeout_s):
                await self.stream(encoded, arrivals)
            record.status = OK
        except TimeoutError:
            record.status, record.error = "TIMEOUT", f"no end within {self.spec.timeout_s:g} s"
        except RequestFailed as failure:
            record.status, record.error = failure.code, str(failure)[:500]
        finally:
            record.ended_ns = now_ns()
        # Answers of equal length end together. The others are noted first: what follows, and the next request, takes time.
        await asyncio.sleep(0)
        if record.status == OK:
            arrivals.settle()
            if not record.output_tokens:
                record.status = "NO_TOKENS"
                record.error = "the answer has no token, or its server told no usage"
        if record.status != OK:
            record.settle([1] * len(record.times_ns) if not any(record.tokens) else None)


def request_body(spec: TargetSpec, turn: Turn, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the OpenAI request for a turn."""
    body: dict[str, Any] = {"model": spec.model, "max_tokens": turn.output_tokens, "stream": True}
    if spec.temperature is not None:
        body["temperature"] = spec.temperature
    if spec.exact_length:
        body |= {"ignore_eos": True, "min_tokens": turn.output_tokens}
    options: dict[str, Any] = {"include_usage": True}
    if spec.running_usage:
        options["continuous_usage_stats"] = True
    body["stream_options"] = options
    if spec.endpoint == "completions":
        return body | {"prompt": turn.content}
    return body | {"messages": [*history, {"role": "user", "content": turn.content}]}


def base_url(address: str) -> str:
    """Return an address without the /v1 that people write or leave out."""
    return address.rstrip("/").removesuffix("/v1")
