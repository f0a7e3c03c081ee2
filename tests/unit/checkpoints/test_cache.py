import json
import os
import subprocess
import sys
import time

import pytest

from modelkit.checkpoints.cache import Cache, cache_dir
from modelkit.checkpoints.lock import LockedCheckpoint, LockedFile
from modelkit.cli.app import main
from modelkit.errors import LoadError

DAY_S = 86_400


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(cache.root))


def add(cache, name, **contents):
    """Put a checkpoint of these files into the cache."""
    import hashlib

    files = []
    for path, text in contents.items():
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        draft = cache.partial(sha256)
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        cache.add_blob(draft, sha256)
        files.append(LockedFile(path=path.replace("__", "/"), size_bytes=len(text), sha256=sha256))
    checkpoint = LockedCheckpoint(type="huggingface", repo_id=name, commit="c" * 40, files=tuple(files))
    return checkpoint, cache.add_checkpoint(checkpoint)


def run(*arguments):
    return main(["cache", *arguments])


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MODELKIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "modelkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert str(cache_dir()) == "/home/x/.cache/modelkit"
    monkeypatch.setenv("MODELKIT_CACHE_DIR", "~/own")
    assert str(cache_dir()) == "/home/x/own"


def test_a_folder_is_links_to_contents_and_can_be_moved_with_the_cache(cache, tmp_path):
    checkpoint, folder = add(cache, "org/a", a="1", sub__deep__b="2")
    assert (folder / "sub" / "deep" / "b").read_text() == "2"
    assert cache.find_checkpoint(checkpoint) == folder
    cache.root.rename(tmp_path / "moved")
    moved = Cache(tmp_path / "moved")
    found = moved.find_checkpoint(checkpoint)
    assert (found / "sub" / "deep" / "b").read_text() == "2"


@pytest.mark.parametrize("damage", ["blob gone", "blob short", "no record", "no folder"])
def test_a_folder_that_is_not_whole_is_not_found(cache, damage):
    checkpoint, folder = add(cache, "org/a", a="1", b="22")
    blob = (folder / "b").resolve()
    if damage == "blob gone":
        blob.unlink()
    elif damage == "blob short":
        blob.chmod(0o644)
        blob.write_text("2")
    elif damage == "no record":
        folder.with_name(f"{folder.name}.json").unlink()
    else:
        folder.rename(folder.with_name("other"))
    assert cache.find_checkpoint(checkpoint) is None


def test_ls_shows_size_use_and_what_is_shared(cache, capsys):
    add(cache, "org/a", config="{}", model="x" * 3_000_000)
    _, folder = add(cache, "org/b", config="{}")
    os.utime(folder.with_name(f"{folder.name}.json"), (0, time.time() - 3.2 * DAY_S))
    cache.partial("x").write_bytes(b"12345")
    assert run("ls") == 0
    out = capsys.readouterr().out
    assert (
        "huggingface: org/a at cccccccccccc\n  2 files, 3.0 MB, 2 bytes of it shared; last used within" in out
    )
    assert "last used 3 days ago" in out
    assert f"2 checkpoints, 3.0 MB in {cache.root}; 5 bytes more is used by none" in out
    run("ls", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert [(each["where"], each["shared_bytes"]) for each in shown["checkpoints"]] == [
        ("org/a", 2),
        ("org/b", 2),
    ]
    assert (shown["total_bytes"], shown["unused_bytes"]) == (3_000_002, 5)
    assert run() == 0


def test_dir_prints_the_folder(cache, capsys):
    assert run("dir") == 0
    assert capsys.readouterr().out == f"{cache.root}\n"


def test_prune_deletes_what_no_checkpoint_uses(cache, capsys):
    checkpoint, folder = add(cache, "org/a", a="1")
    _, gone = add(cache, "org/b", b="22", a="1")
    gone.with_name(f"{gone.name}.json").unlink()
    cache.partial("x").write_bytes(b"123")
    cache.note_sha256("v1", checkpoint.files[0].sha256)
    cache.note_sha256("v2", "0" * 64)
    assert run("prune", "--dry-run") == 0
    assert "3 unused files: 70 bytes" in capsys.readouterr().err
    assert gone.exists()
    assert run("prune", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoints": [], "versions": [], "freed_bytes": 70}
    assert cache.find_checkpoint(checkpoint) == folder
    assert not gone.exists()
    assert [path.name for path in (cache.root / "versions").iterdir()] == ["v1"]
    assert len(list((cache.root / "blobs").rglob("*/*/*"))) == 1
    assert run("prune", "--yes") == 0
    assert "nothing to delete" in capsys.readouterr().err


def test_prune_by_age_and_all(cache, capsys):
    old, folder = add(cache, "org/old", a="1")
    new, _ = add(cache, "org/new", b="2")
    os.utime(folder.with_name(f"{folder.name}.json"), (0, time.time() - 31 * DAY_S))
    assert run("prune", "--older-than", "30d", "--yes") == 0
    assert "org/old, last used 31 days ago" in capsys.readouterr().err
    assert cache.find_checkpoint(old) is None
    assert cache.find_checkpoint(new)
    assert run("prune", "--all", "--yes") == 0
    assert cache.list_checkpoints() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--older-than", "soon"], "'soon' is no age"),
        (["--all", "--older-than", "1d"], "--all takes every checkpoint"),
        (["--all"], "nobody is there to be asked"),
    ],
)
def test_prune_does_nothing_by_mistake(cache, capsys, arguments, message):
    checkpoint, _ = add(cache, "org/a", a="1")
    assert run("prune", *arguments) == 2
    assert message in capsys.readouterr().err
    assert cache.find_checkpoint(checkpoint)


HOLD = """
import sys
from pathlib import Path
from modelkit.checkpoints.cache import Cache
Cache().hold(Path(sys.argv[1]))
print("holding", flush=True)
sys.stdin.read()
"""


def test_what_a_process_serves_from_is_not_pruned(cache, capsys):
    checkpoint, folder = add(cache, "org/a", a="1")
    server = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout.readline() == "holding\n"
        assert run("prune", "--all", "--yes") == 0
        assert "org/a stays: a process serves from it" in capsys.readouterr().err
        assert cache.find_checkpoint(checkpoint)
        server.stdin.close()
    assert run("prune", "--all", "--yes") == 0
    assert cache.find_checkpoint(checkpoint) is None


def test_a_folder_that_another_process_serves_from_stays_as_it_is(cache, capsys):
    checkpoint, folder = add(cache, "org/a", a="1")
    inode = folder.stat().st_ino
    server = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout.readline() == "holding\n"
        # A process that began to fetch the same at the same time comes to its end.
        assert cache.add_checkpoint(checkpoint) == folder
        assert folder.stat().st_ino == inode
        assert run("prune", "--all", "--yes") == 0
        assert "org/a stays" in capsys.readouterr().err
        server.stdin.close()


def test_what_another_process_has_pruned_meanwhile_is_gone(cache):
    add(cache, "org/a", a="1")
    (kept,) = cache.list_checkpoints()
    assert cache.remove_checkpoint(kept)
    assert cache.remove_checkpoint(kept)


def test_pruning_waits_for_a_fetch(cache):
    import threading

    waited, done = threading.Event(), threading.Event()

    def prune():
        with cache.pruning(waited.set):
            done.set()

    thread = threading.Thread(target=prune)
    with cache.fetching(), cache.fetching():
        thread.start()
        assert waited.wait(10)
        assert not done.is_set()
    thread.join(10)
    assert done.is_set()


def test_a_cache_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match="cannot be written") as caught, Cache(tmp_path / "file").fetching():
        pass
    assert "MODELKIT_CACHE_DIR" in caught.value.cure


@pytest.mark.parametrize("verb", [["cache"], ["cache", "prune", "--yes"]])
def test_a_file_in_the_place_of_the_cache_is_no_empty_cache(tmp_path, monkeypatch, capsys, verb):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(tmp_path / "file"))
    assert main(verb) == 1
    said = capsys.readouterr()
    assert f"the cache {tmp_path / 'file'} cannot be read: Not a directory" in said.err
    assert "let MODELKIT_CACHE_DIR name a folder" in said.err
    assert "0 checkpoints" not in said.out
