"""What is asked: prompts with their lengths, drawn from a seed, so that two runs ask the same."""

import base64
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from modelkit.benchmark.lengths import Lengths
from modelkit.benchmark.load import Conversation
from modelkit.benchmark.targets import Turn
from modelkit.benchmark.tokens import Texts
from modelkit.errors import UsageError

__all__ = [
    "Trace",
    "Workload",
    "fingerprint",
    "make_conversations",
    "poisson_offsets",
    "read_trace",
    "shortened",
]

Kind = Literal["synthetic", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The recipe of the prompts.

    `shared_prefix_tokens` of each prompt are the same within each of `num_prefixes` groups; what follows is random.
    `num_turns` makes conversations, whose prompts grow by the answers. `num_images` random images are put into each
    prompt. `prompts_path` names a file of prompts in place of synthetic ones.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    seed: int = 0
    shared_prefix_tokens: int = 0
    num_prefixes: int = 1
    num_turns: int = 1
    num_images: int = 0
    image_size: tuple[int, int] = (512, 512)
    prompts_path: Path | None = None

    @property
    def needs_chat(self) -> bool:
        """Whether only the chat endpoint can say it."""
        return self.num_turns > 1 or self.num_images > 0

    def as_json(self) -> dict[str, Any]:
        """Return it as run.json has it."""
        return {
            "kind": "file" if self.prompts_path else "synthetic",
            "input_tokens": str(self.input_tokens),
            "output_tokens": str(self.output_tokens),
            "seed": self.seed,
            "shared_prefix_tokens": self.shared_prefix_tokens,
            "num_prefixes": self.num_prefixes,
            "num_turns": self.num_turns,
            "num_images": self.num_images,
            "image_size": list(self.image_size) if self.num_images else None,
            "prompts": str(self.prompts_path) if self.prompts_path else None,
        }


@dataclass(frozen=True, slots=True)
class Trace:
    """When requests came to a real service, and how long they were; from a file."""

    offsets_s: tuple[float, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


def make_conversations(
    workload: Workload,
    texts: Texts,
    num: int,
    *,
    stream: str = "",
    overhead_tokens: int = 0,
    trace: Trace | None = None,
    on_made: Callable[[int], None] = lambda _: None,
) -> list[Conversation]:
    """Make `num` conversations; `stream` names a part of the run (a level, its warm-up) that gets prompts of its own.

    `overhead_tokens` are what the server's chat template adds to each prompt.
    """
    generator = random.Random(f"{workload.seed}/{stream}")  # noqa: S311 - prompts are no secret
    if workload.prompts_path is not None:
        return _from_file(workload, num, generator)
    prefixes = _prefixes(workload, texts)
    made = []
    for index in range(num):
        length = trace.input_tokens[index] if trace else workload.input_tokens.draw(generator)
        start = prefixes[index % len(prefixes)] if prefixes else ""
        turns = []
        for turn in range(workload.num_turns):
            wanted = max(1, length - overhead_tokens)
            text, count = texts.make(wanted, generator, start=start if turn == 0 else "")
            output = trace.output_tokens[index] if trace else workload.output_tokens.draw(generator)
            expected = count + overhead_tokens if count and turn == 0 and not workload.num_images else 0
            turns.append(Turn(_with_images(workload, text, generator), output, expected))
        made.append(Conversation(tuple(turns)))
        on_made(len(made))
    return made


def shortened(conversations: Sequence[Conversation], generator: random.Random) -> list[Conversation]:
    """Return the first turn of each with an answer of random length, so that the slots they fill fall out of step."""
    return [
        Conversation((replace(first, output_tokens=max(1, round(first.output_tokens * generator.random()))),))
        for first in (conversation.turns[0] for conversation in conversations)
    ]


def fingerprint(conversations: Sequence[Conversation]) -> str:
    """Return a hash of every prompt and length: two runs with the same one have asked the same."""
    digest = hashlib.sha256()
    for conversation in conversations:
        content = [[turn.content, turn.output_tokens] for turn in conversation.turns]
        digest.update(orjson.dumps([conversation.system, content]) + b"\n")
    return digest.hexdigest()[:16]


def poisson_offsets(rate: float, num: int, seed: str) -> list[float]:
    """Return when `num` requests come, at random and independent of each other, `rate` a second on average."""
    generator = random.Random(seed)  # noqa: S311 - a schedule is no secret
    at_s, offsets = 0.0, []
    for _ in range(num):
        at_s += generator.expovariate(rate)
        offsets.append(at_s)
    return offsets


def read_trace(path: Path) -> Trace:
    """Read JSON lines of timestamp (s, or ms where they are whole and large), input_length, output_length.

    These are the names of the Mooncake and vLLM traces. Raises UsageError.
    """
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append((float(row["timestamp"]), int(row["input_length"]), int(row["output_length"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number}, is no request of a trace: {error!r}",
                cure='write a line each: {"timestamp": 0.5, "input_length": 100, "output_length": 20}',
            ) from error
    if not rows:
        raise UsageError(f"{path} holds no request", cure="write a line each")
    rows.sort()
    # Published traces have milliseconds, and nobody's trace is a day of whole seconds.
    unit_s = 1e-3 if all(at == int(at) for at, _, _ in rows) and rows[-1][0] > 1000 else 1.0  # noqa: PLR2004
    first = rows[0][0]
    return Trace(
        tuple((at - first) * unit_s for at, _, _ in rows),
        tuple(input_tokens for _, input_tokens, _ in rows),
        tuple(output_tokens for _, _, output_tokens in rows),
    )


def _prefixes(workload: Workload, texts: Texts) -> list[str]:
    if not workload.shared_prefix_tokens:
        return []
    generator = random.Random(f"{workload.seed}/prefixes")  # noqa: S311
    return [texts.make(workload.shared_prefix_tokens, generator)[0] for _ in range(workload.num_prefixes)]


# ----------------------------------------------------------------------------------------------------------------- files


def _from_file(workload: Workload, num: int, generator: random.Random) -> list[Conversation]:
    assert workload.prompts_path is not None
    known = list(_read_prompts(workload.prompts_path))
    if not known:
        raise UsageError(f"{workload.prompts_path} holds no prompt", cure="write one a line")
    chosen = [known[index % len(known)] for index in range(num)]
    return [
        Conversation(
            tuple(Turn(text, workload.output_tokens.draw(generator)) for text in texts[: workload.num_turns]),
            system,
        )
        for system, texts in chosen
    ]


def _read_prompts(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (system message, what the user says) of lines of text, JSON lines, a JSON list, or ShareGPT's format."""
    content = _read(path)
    try:
        if path.suffix == ".json":
            entries = json.loads(content)
        else:
            lines = [line.strip() for line in content.splitlines() if line.strip()]
            entries = [json.loads(line) if line.startswith("{") else {"prompt": line} for line in lines]
        for entry in entries:
            system, said = _entry(entry)
            if said:
                yield system, said
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file of prompts: {error!r}",
            cure='write one a line, {"prompt": ...} or {"messages": [...]} a line, or ShareGPT\'s JSON',
        ) from error


def _entry(entry: dict[str, Any]) -> tuple[str, list[str]]:
    if "prompt" in entry:
        return "", [str(entry["prompt"])]
    turns = [
        (message.get("role") or message["from"], message.get("content") or message.get("value") or "")
        for message in entry.get("messages") or entry["conversations"]
    ]
    system = next((text for role, text in turns if role == "system"), "")
    return system, [text for role, text in turns if role in {"user", "human"} and text]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", cure="name a file that is there") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}", cure="convert it") from error


# ---------------------------------------------------------------------------------------------------------------- images


def _with_images(workload: Workload, text: str, generator: random.Random) -> str | list[dict[str, Any]]:
    if not workload.num_images:
        return text
    urls = [_random_png(*workload.image_size, generator) for _ in range(workload.num_images)]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": text}]


def _random_png(width: int, height: int, generator: random.Random) -> str:
    """Return a data URL of random coloured stripes: each another image, none large."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + generator.randbytes(3) * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows, 1)) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()
