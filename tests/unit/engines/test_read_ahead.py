"""Weights are read into the page cache while an engine starts, where that is worth it."""

import os
import threading
import time

import pytest

from modelkit.engines import read_ahead
from modelkit.engines.read_ahead import ReadAhead, reading_ahead

SIZE_BYTES = 40 * 2**20


@pytest.fixture
def checkpoint(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(SIZE_BYTES // 2))
    return tmp_path


@pytest.fixture
def begun(monkeypatch):
    """What has been begun to be read."""
    found = []
    start = ReadAhead.start
    monkeypatch.setattr(ReadAhead, "start", lambda self: (found.append(self), start(self)))
    monkeypatch.setattr(read_ahead, "_LEAST_BYTES", SIZE_BYTES)
    return found


def test_every_byte_is_read_once(checkpoint, begun, monkeypatch):
    read, preadv = [], os.preadv
    monkeypatch.setattr(read_ahead, "_is_cached", lambda _: False)
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(preadv(*arguments)))
    with reading_ahead(checkpoint):
        begun[0].wait()
    assert sum(read) == SIZE_BYTES


def test_what_is_in_the_page_cache_is_not_read_again(checkpoint, begun, monkeypatch):
    monkeypatch.setattr(os, "preadv", lambda *_: 1)  # no place of the file has to wait for the disk
    with reading_ahead(checkpoint):
        assert not begun

    def wait(*_):
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", wait)
    with reading_ahead(checkpoint):
        assert begun


def test_it_ends_with_the_start(checkpoint, begun, monkeypatch):
    reached, released = threading.Event(), threading.Event()

    def slow(*_):
        reached.set()
        released.wait(30)
        return 0

    monkeypatch.setattr(read_ahead, "_is_cached", lambda _: False)
    monkeypatch.setattr(os, "preadv", slow)
    with reading_ahead(checkpoint):
        assert reached.wait(30)
    released.set()
    begun[0].wait()
    assert not [each for each in threading.enumerate() if each.name.startswith("read-ahead")]


@pytest.mark.parametrize("change", ["small", "no memory", "no files", "no checkpoint"])
def test_what_is_not_worth_it_is_left_alone(checkpoint, begun, monkeypatch, change):
    monkeypatch.setattr(read_ahead, "_is_cached", lambda _: False)
    if change == "small":
        monkeypatch.setattr(read_ahead, "_LEAST_BYTES", SIZE_BYTES + 1)
    elif change == "no memory":
        monkeypatch.setattr(read_ahead, "_free_bytes", lambda: 2 * SIZE_BYTES - 1)
    elif change == "no files":
        for path in checkpoint.iterdir():
            path.unlink()
    with reading_ahead(None if change == "no checkpoint" else checkpoint):
        assert not begun


def test_a_file_that_goes_away_ends_the_reading_and_nothing_else(checkpoint, begun, monkeypatch):
    monkeypatch.setattr(read_ahead, "_is_cached", lambda _: False)
    ahead = ReadAhead([checkpoint / "away.safetensors"])
    ahead.start()
    ahead.wait()
    with reading_ahead(checkpoint):
        time.sleep(0)
    assert read_ahead._free_bytes() > 0
