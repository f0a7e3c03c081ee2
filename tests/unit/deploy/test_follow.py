"""Following what replicas write: streams that break, replicas that come later or start again, and what never works."""

import threading

import pytest

from modelkit.deploy import LogLine
from modelkit.deploy.follow import Source, follow
from modelkit.errors import DeployError

SOON_S = 0.01


def source(key="1", run="0", *, is_running=True):
    return Source(key=key, replica=f"chat-{key}", run=run, is_running=is_running)


def take(lines, number):
    found = [next(lines).text for _ in range(number)]
    lines.close()
    return found


def test_a_stream_that_breaks_is_read_on_from_where_it_was():
    opened = []

    def read(source, after, stop):
        opened.append(after)
        number = int(after or 0)
        yield str(number + 1), f"line {number + 1}"
        raise ConnectionError("it broke")

    assert take(follow(lambda: [source()], read, look_again_s=SOON_S), 3) == ["line 1", "line 2", "line 3"]
    assert opened[:3] == ["", "1", "2"]


def test_replicas_that_come_later_are_read_too_and_those_that_have_ended_once_only():
    looks = iter([[source("1", is_running=False)]])
    found = [source("1", is_running=False), source("2")]

    def read(source, after, stop):
        yield "1", source.key
        stop.wait(30 if source.is_running else 0)

    lines = follow(lambda: next(looks, found), read, look_again_s=SOON_S)
    assert next(lines) == LogLine(replica="chat-1", text="1")
    assert next(lines) == LogLine(replica="chat-2", text="2")
    lines.close()


def test_a_process_that_has_started_and_ended_between_two_looks_is_read():
    looks = iter([[source(run="0")]])

    def read(source, after, stop):
        yield source.run, f"run {source.run} after {after}"

    lines = follow(lambda: next(looks, [source(run="1", is_running=False)]), read, look_again_s=SOON_S)
    assert take(lines, 2) == ["run 0 after ", "run 1 after 0"]


def test_what_never_works_is_said():
    def read(source, after, stop):
        raise DeployError("forbidden")
        yield

    with pytest.raises(DeployError, match="forbidden"):
        next(follow(lambda: [source()], read, look_again_s=SOON_S))
    # Of a replica that has ended, the log may have gone with it.
    ended = iter([[source(is_running=False)]] * 30)

    def find():
        try:
            return next(ended)
        except StopIteration:
            raise DeployError("the cluster is away") from None

    with pytest.raises(DeployError, match="the cluster is away"):
        next(follow(find, read, look_again_s=SOON_S))


def test_whoever_stops_ends_all_readers():
    stopped = threading.Event()

    def read(source, after, stop):
        yield "1", "a"
        assert stop.wait(30)
        stopped.set()

    assert take(follow(lambda: [source()], read, look_again_s=SOON_S), 1) == ["a"]
    assert stopped.is_set()
