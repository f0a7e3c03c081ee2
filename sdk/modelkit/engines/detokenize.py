"""Token ids to text, one at a time, never splitting a character.

A character may be spread over several byte-level tokens, and what a token looks like may depend on the one before it
(a leading space). So text is given out only when what was decoded can no longer change.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

__all__ = ["Detokenizer", "FastDetokenizer", "SlowDetokenizer", "detokenizer_factory"]

# What decoders put in place of bytes that are not (yet) valid UTF-8.
REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """Turns the output tokens of one request into text; special tokens have none."""

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes; empty where a character is not complete yet."""
        ...


class FastDetokenizer:
    """For tokenizers written in Rust: the `tokenizers` library's own DecodeStream.

    Source: https://huggingface.co/docs/tokenizers/api/decoders
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a `tokenizers.Tokenizer`, such as a fast tokenizer's `backend_tokenizer`."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes; empty where a character is not complete yet."""
        text: str | None = self._stream.step(self._tokenizer, token_id)
        return text or ""


class SlowDetokenizer:
    """For every other tokenizer: decode a short window twice, without and with the new token, and take the difference.

    The window starts at the last text given out, so that its beginning has the same context both times.
    Source: the same method in text-generation-inference and vLLM (`detokenize_incrementally`).
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take any object with transformers' `decode(ids, skip_special_tokens=...)`."""
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_done = 0  # tokens of the window whose text has been given out

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes; empty where a character is not complete yet."""
        self._window.append(token_id)
        done, text = self._decode(self._window[: self._num_done]), self._decode(self._window)
        if len(text) <= len(done) or text.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._num_done :]
        self._num_done = len(self._window)
        return text[len(done) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def detokenizer_factory(tokenizer: Any) -> Callable[[], Detokenizer]:
    """Return what makes a detokenizer for each request, given a transformers tokenizer.

    The Rust tokenizer refuses to be used in one thread while another changes it, and encoding may change its padding
    and truncation. So decoding has a copy of its own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return partial(SlowDetokenizer, tokenizer)
    return partial(FastDetokenizer, copy.deepcopy(backend))
