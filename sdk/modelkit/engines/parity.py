"""Do engines give the same answers? The same prompts, greedy, one engine after the other, compared with the first."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import orjson

from modelkit.engines.base import Engine, GenerationRequest
from modelkit.engines.sampling import SamplingParams
from modelkit.errors import UsageError

__all__ = ["Comparison", "Divergence", "Prompt", "Run", "answer_all", "compare", "read_prompts"]

# The messages of one chat.
Prompt: TypeAlias = Sequence[Mapping[str, Any]]

_BUILT_IN = (
    "What is the capital of France?",
    "Count from one to twenty.",
    "Write a haiku about the sea.",
    "Explain in two sentences what gRPC is.",
    "Translate into German: The weather is nice today.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List three prime numbers above 100, as a JSON array.",
    "Why is the sky blue?",
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine answered, in the order of the prompts."""

    engine: str
    answers: tuple[str, ...]
    num_output_tokens: int
    duration_s: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second over all prompts."""
        return self.num_output_tokens / self.duration_s if self.duration_s else 0.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first character at which two answers to a prompt differ."""

    prompt: str
    position: int
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One engine against the reference.

    `agreement` is the mean over all prompts of the share of the longer answer up to the first difference: once a token
    differs, what follows answers something else, and comparing it would say nothing.
    """

    engine: str
    num_exact: int
    agreement: float
    divergences: tuple[Divergence, ...]


def read_prompts(path: Path | None, checkpoint_dir: Path | None) -> list[Prompt]:
    """Read prompts: one a line, or JSON lines with `messages` or `prompt`; a .json file holds a list of such objects.

    Without a path, those of the checkpoint's qa.json, or a few that are built in. Raises UsageError.
    """
    if path is None:
        known = checkpoint_dir / "qa.json" if checkpoint_dir else None
        if known is None or not known.is_file():
            return [_chat(text) for text in _BUILT_IN]
        path = known
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", cure="give a file of prompts, one a line"
        ) from error
    prompts = _parse(path, content)
    if not prompts:
        raise UsageError(f"{path} holds no prompt", cure="write one a line")
    return prompts


def _parse(path: Path, content: bytes) -> list[Prompt]:
    try:
        if path.suffix == ".json":
            return [_entry(entry) for entry in orjson.loads(content)]
        lines = [line.strip() for line in content.decode().splitlines() if line.strip()]
        return [_entry(orjson.loads(line)) if line.startswith("{") else _chat(line) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} is no file of prompts: {error}", cure='write one a line, or {"messages": [...]} a line'
        ) from error


def _entry(entry: Mapping[str, Any]) -> Prompt:
    messages: Prompt = entry["messages"] if "messages" in entry else _chat(entry["prompt"])
    return messages


def _chat(text: str) -> Prompt:
    return ({"role": "user", "content": text},)


async def answer_all(
    name: str, engine: Engine, prompts: Sequence[Prompt], *, max_tokens: int, concurrency: int
) -> Run:
    """Let a started engine answer all prompts, greedy, `concurrency` at once. Raises what the engine raises."""
    places = asyncio.Semaphore(concurrency)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)

    async def answer(prompt: Prompt) -> tuple[str, int]:
        request = GenerationRequest(messages=prompt, sampling=sampling)
        if not engine.has_chat_template:
            request = GenerationRequest(prompt=_last_text(prompt), sampling=sampling)
        texts, num_tokens = [], 0
        async with places, aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                num_tokens = chunk.output_tokens
        return "".join(texts), num_tokens

    # The first request may compile kernels; it is not what is measured.
    await answer(prompts[0])
    started = time.perf_counter()
    answers = await asyncio.gather(*(answer(prompt) for prompt in prompts))
    duration_s = time.perf_counter() - started
    return Run(name, tuple(text for text, _ in answers), sum(num for _, num in answers), duration_s)


def compare(reference: Run, other: Run, prompts: Sequence[Prompt]) -> Comparison:
    """Compare two runs over the same prompts."""
    shares: list[float] = []
    divergences: list[Divergence] = []
    for prompt, expected, answer in zip(prompts, reference.answers, other.answers, strict=True):
        if expected == answer:
            shares.append(1.0)
            continue
        position = _common_length(expected, answer)
        shares.append(position / max(len(expected), len(answer)))
        divergences.append(Divergence(_last_text(prompt), position, expected, answer))
    return Comparison(other.engine, len(prompts) - len(divergences), mean(shares), tuple(divergences))


def _common_length(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _last_text(prompt: Prompt) -> str:
    content = prompt[-1].get("content") if prompt else ""
    return content if isinstance(content, str) else ""
