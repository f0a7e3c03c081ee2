"""What is kept of each request: when everything happened, and nothing that could be computed from it later."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import orjson

from modelkit.errors import UsageError

__all__ = ["OK", "Record", "read_records", "spread_tokens", "write_records"]

OK = "OK"
# How the tokens of each message are known, best first.
BY_USAGE, BY_SPREAD = "usage", "spread"


@dataclass(slots=True)
class Record:
    """One request. Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share; 0 is never.

    `times_ns[i]` is when message i arrived and `tokens[i]` how many output tokens it carried. A message is what one read
    of the connection gave, so chunks that a server or a network has put together count as one. `asked_tokens` is the
    length that was ordered. A `ramp` request fills its slot until the measurement begins and counts in no latency.
    """

    index: int
    asked_tokens: int
    scheduled_ns: int
    is_ramp: bool = False
    sent_ns: int = 0
    headers_ns: int = 0
    ended_ns: int = 0
    times_ns: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    status: str = ""
    error: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    counted_by: str = ""
    expected_prompt_tokens: int = 0
    text: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it ended well, with at least one token."""
        return self.status == OK and self.output_tokens > 0 and bool(self.times_ns)

    @property
    def is_short(self) -> bool:
        """Whether it ended well with another number of tokens than was asked for."""
        return self.is_ok and self.asked_tokens > 0 and self.output_tokens != self.asked_tokens

    def arrive(self, now_ns: int, num_tokens: int) -> None:
        """Note a message."""
        self.times_ns.append(now_ns)
        self.tokens.append(num_tokens)

    def settle(self, weights: list[int] | None = None) -> None:
        """Make the tokens of the messages add up to the usage that the server told at the end.

        A server that told running totals needs nothing; otherwise the total is spread by `weights` (what each message
        seemed to carry). Messages without a token are not messages of the answer.
        """
        if weights is not None and self.output_tokens:
            self.tokens = spread_tokens(self.output_tokens, weights)
        kept = [pair for pair in zip(self.times_ns, self.tokens, strict=True) if pair[1] > 0]
        self.times_ns = [at for at, _ in kept]
        self.tokens = [number for _, number in kept]

    def as_json(self, level: str) -> dict[str, Any]:
        """Return the line of requests.jsonl: times in microseconds since `sent_ns`, each message since the one before."""
        offsets = [(at - self.sent_ns) // 1000 for at in self.times_ns]
        deltas = offsets[:1] + [after - before for before, after in pairwise(offsets)]
        uniform = all(number == 1 for number in self.tokens)
        line: dict[str, Any] = {
            "level": level,
            "index": self.index,
            "ramp": self.is_ramp,
            "status": self.status,
            "scheduled_ns": self.scheduled_ns,
            "sent_ns": self.sent_ns,
            "headers_us": (self.headers_ns - self.sent_ns) // 1000 if self.headers_ns else None,
            "ended_us": (self.ended_ns - self.sent_ns) // 1000,
            "asked_tokens": self.asked_tokens,
            "output_tokens": self.output_tokens,
            "prompt_tokens": self.prompt_tokens,
            "expected_prompt_tokens": self.expected_prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "counted_by": self.counted_by,
            "deltas_us": deltas,
            "tokens": 1 if uniform else self.tokens,
        }
        if self.error:
            line["error"] = self.error
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Record":
        """Read a line of requests.jsonl."""
        sent_ns = line["sent_ns"]
        times = [sent_ns + offset * 1000 for offset in accumulate(line["deltas_us"])]
        tokens = line["tokens"]
        return cls(
            index=line["index"],
            asked_tokens=line["asked_tokens"],
            scheduled_ns=line["scheduled_ns"],
            is_ramp=line["ramp"],
            sent_ns=sent_ns,
            headers_ns=sent_ns + line["headers_us"] * 1000 if line["headers_us"] is not None else 0,
            ended_ns=sent_ns + line["ended_us"] * 1000,
            times_ns=times,
            tokens=[1] * len(times) if tokens == 1 else list(tokens),
            status=line["status"],
            error=line.get("error", ""),
            prompt_tokens=line["prompt_tokens"],
            output_tokens=line["output_tokens"],
            cached_tokens=line["cached_tokens"],
            counted_by=line["counted_by"],
            expected_prompt_tokens=line["expected_prompt_tokens"],
        )


def spread_tokens(total: int, weights: list[int]) -> list[int]:
    """Split a total over messages in proportion to their weights, in whole tokens; the first that has any gets one."""
    whole = sum(weights)
    if whole == 0:
        return [total if index == 0 else 0 for index in range(len(weights))]
    marks = [0, *(round(total * so_far / whole) for so_far in accumulate(weights))]
    parts = [after - before for before, after in pairwise(marks)]
    first = next(index for index, weight in enumerate(weights) if weight)
    if parts[first] == 0 and total:
        parts[next(index for index, part in enumerate(parts) if part)] -= 1
        parts[first] = 1
    return parts


def write_records(path: Path, level: str, records: Iterable[Record]) -> None:
    """Append the requests of a level that is done."""
    with path.open("ab") as file:
        file.writelines(orjson.dumps(record.as_json(level)) + b"\n" for record in records)


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (level, request) of a requests.jsonl. Raises UsageError where a line is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                content = orjson.loads(line)
                yield content["level"], Record.from_json(content)
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{path}, line {number}, is no request: {error}", cure="remove the line, or measure again"
                ) from error
