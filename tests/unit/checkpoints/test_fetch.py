"""The fetcher against a real file server on loopback, through the source `http`."""

import errno
import hashlib
import random
import shutil
from collections import Counter

import pytest

from hub_server import Content
from modelkit.checkpoints import fetch as module
from modelkit.checkpoints import open_source, partial
from modelkit.checkpoints.base import BrokenTransferError, ChangedFileError
from modelkit.checkpoints.cache import disk_error
from modelkit.checkpoints.fetch import fetch
from modelkit.config import CheckpointConfig, CheckpointFileConfig
from modelkit.errors import LoadError

BIG = random.Random(4).randbytes(3_000_000)


class Recorder:
    """A TransferProgress that remembers."""

    def __init__(self):
        self.begun, self.done, self.ended, self.taken_up = [], Counter(), [], {}

    def begin(self, num_files, total_bytes):
        self.begun.append((num_files, total_bytes))

    def started(self, name, size_bytes, done_bytes=0):
        self.taken_up[name] = done_bytes

    def advanced(self, name, num_bytes):
        self.done[name] += num_bytes

    def finished(self, name):
        self.ended.append(name)


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    monkeypatch.setattr(partial, "PART_BYTES", 500_000)
    monkeypatch.setattr(module, "BACKOFF_S", 0.01)


@pytest.fixture
def repo(hub):
    return hub.add_repo("org/big", {"big.safetensors": BIG, "small.json": b"{}", "copy.json": b"{}"})


@pytest.fixture
def source(hub, repo, tmp_path):
    files = tuple(
        CheckpointFileConfig(url=hub.url_of("org/big", path), sha256=content.sha256)
        for path, content in repo.commits[repo.branches["main"]].items()
    )
    with open_source(CheckpointConfig(type="http", files=files), tmp_path) as source:
        yield source


def listed(source, *paths):
    files = source.list_files().files
    return [file for file in files if not paths or file.path in paths]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def leftovers(cache):
    return sorted(path.name for path in (cache.root / "partial").glob("*"))


def test_files_arrive_verified_in_ranges_and_once(hub, source, cache):
    progress = Recorder()
    files = listed(source)
    hub.sent.clear()
    assert fetch(source, files, cache, progress) == {
        "big.safetensors": sha(BIG),
        "small.json": sha(b"{}"),
        "copy.json": sha(b"{}"),
    }
    assert cache.blob(sha(BIG)).read_bytes() == BIG
    assert cache.blob(sha(BIG)).stat().st_mode & 0o777 == 0o444
    assert hub.sent["big.safetensors"] == len(BIG)
    assert hub.sent["small.json"] + hub.sent["copy.json"] == 2  # the same content
    assert progress.done["big.safetensors"] == len(BIG)
    assert progress.begun == [(2, len(BIG) + 2)]
    assert len([each for each in hub.requests if "big.safetensors" in each]) > 6
    assert leftovers(cache) == []
    hub.requests.clear()
    fetch(source, files, cache)
    assert hub.requests == []


def test_a_cut_connection_is_no_end(hub, source, cache):
    files, notes = listed(source), []
    hub.faults.cuts = 9
    hub.sent.clear()
    assert fetch(source, files, cache, on_note=notes.append)["big.safetensors"] == sha(BIG)
    assert hub.sent["big.safetensors"] == len(BIG)  # every range goes on where it was cut
    assert any("trying again" in note for note in notes)


def test_a_busy_server_is_asked_again(hub, source, cache):
    files = listed(source)
    hub.faults.busy = 5
    assert fetch(source, files, cache)["big.safetensors"] == sha(BIG)


def test_a_server_that_stays_busy_is_an_error_and_what_arrived_is_kept(hub, source, cache):
    files = listed(source, "big.safetensors")
    hub.faults.busy = 10_000
    hub.requests.clear()
    with pytest.raises(BrokenTransferError, match="503") as caught:
        fetch(source, files, cache)
    assert "what has arrived is kept" in caught.value.cure
    assert len(hub.requests) > module.MAX_FAILURES
    hub.faults.busy = 0
    assert fetch(source, files, cache)["big.safetensors"] == sha(BIG)


def test_the_next_fetch_goes_on(hub, source, cache, monkeypatch):
    files = listed(source, "big.safetensors")
    monkeypatch.setattr(module, "MAX_FAILURES", 0)
    hub.faults.cuts = 100
    with pytest.raises(BrokenTransferError):
        fetch(source, files, cache)
    hub.faults.cuts = 0
    progress = Recorder()
    assert fetch(source, files, cache, progress)["big.safetensors"] == sha(BIG)
    had = progress.taken_up["big.safetensors"]
    assert 0 < had < len(BIG)
    assert progress.done["big.safetensors"] == len(BIG) - had


@pytest.mark.parametrize("path", ["big.safetensors", "small.json"])
def test_a_flipped_bit_is_fetched_once_more(hub, source, cache, path):
    files, notes, progress = listed(source, path), [], Recorder()
    hub.faults.flips[path] = 1
    assert fetch(source, files, cache, progress, notes.append)[path] == cache.blob(files[0].sha256).name
    assert notes == [f"{path} arrived damaged: fetching it once more"]
    assert progress.done[path] == files[0].size_bytes


def test_flipped_twice_is_an_error_and_nothing_is_kept(hub, source, cache):
    hub.faults.flips["big.safetensors"] = 1_000
    with pytest.raises(LoadError, match="is not what it should be") as caught:
        fetch(source, listed(source, "big.safetensors"), cache)
    assert "modelkit lock --check" in caught.value.cure
    assert leftovers(cache) == []
    assert not cache.blob(sha(BIG)).exists()


def test_a_file_that_changes_under_way_is_no_mixture(hub, source, cache):
    files = listed(source, "big.safetensors")
    other = Content.of(random.Random(5).randbytes(len(BIG)))
    hub.faults.changes_after = {"big.safetensors": (2, other)}
    with pytest.raises(ChangedFileError, match="changed at 127"):
        fetch(source, files, cache)
    assert not list((cache.root / "blobs").rglob("*"))


def test_a_file_of_another_size_is_not_the_one_that_was_listed(hub, source, cache):
    files = listed(source, "big.safetensors")
    hub.faults.changed["big.safetensors"] = Content.of(BIG[:-1])
    with pytest.raises(ChangedFileError):
        fetch(source, files, cache)


def test_a_server_without_ranges_sends_it_whole(hub, source, cache):
    hub.faults.has_ranges = False
    files = listed(source)
    assert fetch(source, files, cache)["big.safetensors"] == sha(BIG)


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub, source, cache, monkeypatch):
    files = listed(source)
    usage = shutil.disk_usage(cache.root.parent)._replace(free=1_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    hub.requests.clear()
    with pytest.raises(LoadError, match=r"3\.0 MB have to be fetched, and .* has 1\.0 MB free") as caught:
        fetch(source, files, cache)
    assert "modelkit cache prune" in caught.value.cure
    assert hub.requests == []


def test_a_disk_that_fills_up_says_so():
    error = disk_error(OSError(errno.ENOSPC, "No space left on device"), module.Path("/x"))
    assert error.message == "the disk is full: /x could not be written"


def test_a_cache_that_cannot_be_written_says_so(source, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LoadError, match="cannot be written") as caught:
        fetch(source, listed(source), module.Cache(tmp_path / "cache"))
    assert "MODELKIT_CACHE_DIR" in caught.value.cure


def test_an_absent_file_is_named(hub, source, cache):
    files = listed(source, "small.json")
    hub.repos.clear()
    with pytest.raises(LoadError, match=r"127\.0\.0\.1 has no small\.json") as caught:
        fetch(source, files, cache)
    assert "checkpoints.files" in caught.value.cure


def test_a_server_that_is_gone_is_a_broken_connection(source, cache, hub, monkeypatch):
    files = listed(source, "small.json")
    for server, _ in hub._servers:
        server.close_connections()
        server.socket.close()
    monkeypatch.setattr(module, "MAX_FAILURES", 1)
    with pytest.raises(BrokenTransferError, match="broke"):
        fetch(source, files, cache)


@pytest.mark.parametrize("num_ranges", [1, 3, 7])
def test_a_server_that_sends_ranges_only_sometimes(hub, source, cache, num_ranges):
    """Threads that are in the middle of a part learn that another one has begun the file anew."""
    files = listed(source, "big.safetensors")
    progress = Recorder()
    hub.faults.ranges_left = num_ranges
    assert fetch(source, files, cache, progress)["big.safetensors"] == sha(BIG)
    assert progress.done["big.safetensors"] == len(BIG)
    assert leftovers(cache) == []
