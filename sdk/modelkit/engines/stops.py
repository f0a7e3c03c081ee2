"""Find stop strings in a text that arrives in pieces, holding back no more of it than has to be."""

from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Cuts a streamed text before the stop string that is complete first.

    Of two that are complete at the same character, the longer one counts. So the answer does not depend on how the
    text was cut into pieces. What is held back is the longest end of the text that may still become a stop string.

        matcher = StopMatcher(["###"])
        matcher.feed("one #")   # "one "
        matcher.feed("1 ###")   # "#1 ", and matcher.stopped is now true
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop strings, none of them empty (ValueError)."""
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what of the text so far is certain to be part of the answer; nothing more once `stopped`."""
        if self.stopped:
            return ""
        pending = self._held + text
        match = self._first_match(pending)
        if match is not None:
            self.stopped, self._held = True, ""
            return pending[:match]
        safe = len(pending) - self._num_held(pending)
        self._held = pending[safe:]
        return pending[:safe]

    def flush(self) -> str:
        """Return what is held back, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        """Return where the answer ends: the start of the stop string with the least end, None where there is none."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
