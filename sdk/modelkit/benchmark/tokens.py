"""Texts of an exact number of tokens, each with a random start, so that no prefix cache helps."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelkit.errors import UsageError

__all__ = ["Texts", "TokenizerTexts", "WordTexts", "open_texts"]

_MAX_ATTEMPTS = 8
_MAX_ATOMS = 4000
# Common short words: one token each in most vocabularies, and calibrated where not.
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
]


class Texts(ABC):
    """Makes texts by their length in tokens."""

    @abstractmethod
    def make(self, num_tokens: int, generator: random.Random, *, start: str = "") -> tuple[str, int]:
        """Return a random text that begins with `start`, and how many tokens it has (0 where that is not known)."""

    def count(self, text: str) -> int:
        """Return the tokens of a text; 0 where that is not known."""
        del text
        return 0


class TokenizerTexts(Texts):
    """Texts that the model's own tokenizer has counted.

    They are made of whole words, drawn anew for each text, and trimmed until they encode to exactly the number wanted.
    """

    def __init__(self, tokenizer: Any, *, special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._atoms = self._words()

    def count(self, text: str) -> int:
        """Return the tokens of a text, with those that the tokenizer puts around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=self._special_tokens).ids)

    def make(self, num_tokens: int, generator: random.Random, *, start: str = "") -> tuple[str, int]:
        """Return a text of exactly `num_tokens`, or the nearest that was found, with its count."""
        best, best_count = start, self.count(start)
        for _ in range(_MAX_ATTEMPTS):
            text, count = self._attempt(num_tokens, generator, start)
            if abs(count - num_tokens) < abs(best_count - num_tokens):
                best, best_count = text, count
            if best_count == num_tokens:
                break
        return best, best_count

    def _attempt(self, num_tokens: int, generator: random.Random, start: str) -> tuple[str, int]:
        missing = max(0, num_tokens - self.count(start))
        words = generator.choices(self._atoms, k=missing)
        text, count = start, 0
        # A word may take several tokens: cut off what is too much, add what is missing, in steps that shrink.
        for _ in range(_MAX_ATTEMPTS):
            text = start + "".join(words)
            count = self.count(text)
            if count == num_tokens or not words:
                break
            if count > num_tokens:
                share = max(1, round(len(words) * (count - num_tokens) / count))
                words = words[: len(words) - share]
            else:
                words += generator.choices(self._atoms, k=max(1, (num_tokens - count) // 2))
        return text, count

    def _words(self) -> list[str]:
        """Return words that are one token each, with the space before them; where there are none, plain words."""
        found = []
        vocabulary = self._tokenizer.get_vocab()
        for piece in sorted(vocabulary):
            word = piece[1:]
            if piece[:1] in {"Ġ", "▁"} and word.isalpha() and word.isascii():
                found.append(f" {word}")
        step = max(1, len(found) // _MAX_ATOMS)
        ones = [
            word
            for word in found[::step]
            if len(self._tokenizer.encode(word, add_special_tokens=False).ids) == 1
        ]
        return ones or [f" {word}" for word in _WORDS]


class WordTexts(Texts):
    """Texts without a tokenizer: so many words as `calibrate` has found to make the tokens that the server counts."""

    def __init__(self) -> None:
        self.tokens_per_word = 1.0
        self.overhead_tokens = 0.0

    def make(self, num_tokens: int, generator: random.Random, *, start: str = "") -> tuple[str, int]:
        """Return a text that is about as long as wanted; the report tells how long the server found it."""
        wanted = (num_tokens - self.overhead_tokens) / self.tokens_per_word
        num_words = max(1, round(wanted) - len(start.split()))
        return start + "".join(f" {word}" for word in generator.choices(_WORDS, k=num_words)), 0

    def calibrate(self, counted: Sequence[tuple[int, int]]) -> None:
        """Learn from two prompts, each as (its words, the tokens that the server counted)."""
        (words_a, tokens_a), (words_b, tokens_b) = counted
        if words_b > words_a and tokens_b > tokens_a:
            self.tokens_per_word = (tokens_b - tokens_a) / (words_b - words_a)
            self.overhead_tokens = max(0.0, tokens_a - words_a * self.tokens_per_word)


def open_texts(path: Path | None) -> Texts:
    """Return texts by the tokenizer at `path` (a tokenizer.json or the folder that has one), or by words without one."""
    if path is None:
        return WordTexts()
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise UsageError(
            "prompts of an exact length need the library 'tokenizers'",
            cure="pip install 'modelkit-sdk[bench]'",
        ) from None
    if not file.is_file():
        raise UsageError(f"there is no {file}", cure="name a tokenizer.json, or a folder that has one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"{file} is no tokenizer: {error}", cure="name a tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return TokenizerTexts(tokenizer)
