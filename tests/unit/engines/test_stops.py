import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit.engines.stops import StopMatcher

# Two letters make overlaps and near misses likely.
texts = st.text("ab#", max_size=40)
stop_lists = st.lists(st.text("ab#", min_size=1, max_size=5), max_size=4)


def answer_at_once(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read one character after the other until the text ends with a stop string; the longest counts."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))], True
    return text, False


@given(texts, stop_lists, st.data())
def test_streamed_answer_is_the_answer_at_once_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)
    streamed = "".join([matcher.feed(piece) for piece in pieces])
    streamed += matcher.flush()
    assert (streamed, matcher.stopped) == answer_at_once(text, stops)


@given(texts, stop_lists)
def test_holds_back_no_more_than_may_become_a_stop_string(text: str, stops: list[str]):
    matcher = StopMatcher(stops)
    seen = ""
    for end, character in enumerate(text, 1):
        seen += matcher.feed(character)
        if matcher.stopped:
            return
        held = text[len(seen) : end]
        longest = max(
            (
                n
                for n in range(1, end + 1)
                if any(s != text[end - n : end] and s.startswith(text[end - n : end]) for s in stops)
            ),
            default=0,
        )
        assert len(held) == longest


def test_says_when_it_stopped_and_gives_no_more():
    matcher = StopMatcher(["###"])
    assert matcher.feed("one #") == "one "
    assert matcher.feed("1 ### two") == "#1 "
    assert matcher.stopped
    assert matcher.feed("three") == ""
    assert matcher.flush() == ""


def test_refuses_an_empty_stop_string():
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
