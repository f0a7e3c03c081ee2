"""How many tokens: `2048`, `100-200` (uniform), `normal:1024,256`, `lognormal:512,0.6` (median, sigma)."""

import math
import random
from dataclasses import dataclass
from typing import Literal

from modelkit.errors import UsageError

__all__ = ["Lengths", "parse_lengths"]

Kind = Literal["fixed", "uniform", "normal", "lognormal"]
_CURE = "write 2048, 100-200, normal:MEAN,DEVIATION or lognormal:MEDIAN,SIGMA"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts; every draw is at least 1."""

    kind: Kind
    first: float
    second: float = 0.0

    def draw(self, generator: random.Random) -> int:
        """Draw one."""
        if self.kind == "fixed":
            return int(self.first)
        if self.kind == "uniform":
            return generator.randint(int(self.first), int(self.second))
        if self.kind == "normal":
            return max(1, round(generator.gauss(self.first, self.second)))
        return max(1, round(generator.lognormvariate(math.log(self.first), self.second)))

    @property
    def mean(self) -> float:
        """The mean of many draws."""
        if self.kind == "uniform":
            return (self.first + self.second) / 2
        return self.first * math.exp(self.second**2 / 2) if self.kind == "lognormal" else self.first

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.first:g}"
        if self.kind == "uniform":
            return f"{self.first:g}-{self.second:g}"
        return f"{self.kind}:{self.first:g},{self.second:g}"


def parse_lengths(text: str, what: str) -> Lengths:
    """Read a distribution. Raises UsageError; `what` is the option that it came from."""
    kind, colon, numbers = text.strip().lower().partition(":")
    try:
        if not colon:
            low, dash, high = kind.partition("-")
            lengths = Lengths("uniform", int(low), int(high)) if dash else Lengths("fixed", int(kind))
        elif kind in {"normal", "lognormal"}:
            first, second = (float(number) for number in numbers.split(","))
            lengths = Lengths("normal" if kind == "normal" else "lognormal", first, second)
        else:
            raise ValueError(kind)
    except ValueError:
        raise UsageError(f"{what} {text}: that is no length and no distribution", cure=_CURE) from None
    if (
        lengths.first < 1
        or lengths.second < 0
        or (lengths.kind == "uniform" and lengths.second < lengths.first)
    ):
        raise UsageError(f"{what} {text}: lengths are 1 token or more, the lower one first", cure=_CURE)
    return lengths
