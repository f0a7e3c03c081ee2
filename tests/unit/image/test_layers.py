"""Layers and contexts: what is in them, and that they are the same bytes each time."""

import gzip
import io
import os
import tarfile

import pytest

from modelkit.image.cache import forget_unused, mark_used
from modelkit.image.context import stage
from modelkit.image.layers import Entry, group_by_size, raw_layer, write_layer
from modelkit.image.requirements import ImageFile


def read_tar(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def test_a_layer_is_the_same_for_the_same_files(tmp_path):
    (tmp_path / "a.py").write_text("a")
    layers = []
    for number in (1, 2):
        os.utime(tmp_path / "a.py", (number, number))
        layers.append(
            write_layer("code", [Entry("app/a.py", tmp_path / "a.py")], tmp_path / f"blob-{number}")
        )
    assert layers[0].descriptor == layers[1].descriptor
    assert layers[0].diff_id == layers[1].diff_id


def test_a_layer_has_its_folders_owners_and_long_names(tmp_path):
    name = f"app/{'deep/' * 30}model.py"
    write_layer("code", [Entry(name, b"x"), Entry("app/link", link="model.py")], tmp_path / "blob")
    members = read_tar(gzip.decompress((tmp_path / "blob").read_bytes()))
    assert members[name].size == 1
    assert members["app"].isdir()
    assert members["app"].mode == 0o755
    assert members["app/link"].linkname == "model.py"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}


def test_weights_are_read_once_and_can_be_opened_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "w.bin").write_bytes(b"w" * 3000)
    files = [ImageFile("w.bin", tmp_path / "w.bin")]
    first, second = (raw_layer("weights", "weights", files) for _ in range(2))
    data = b"".join(second.content())
    assert first.descriptor == second.descriptor
    assert len(data) == second.descriptor.size_bytes
    assert read_tar(data)["weights/w.bin"].size == 3000
    (tmp_path / "w.bin").write_bytes(b"v" * 3000)
    os.utime(tmp_path / "w.bin", (1, 1))
    assert raw_layer("weights", "weights", files).descriptor != first.descriptor


@pytest.mark.parametrize("size", [0, 1, 512, 1024])
def test_no_piece_is_empty_which_would_end_a_stream(tmp_path, size, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "w.bin").write_bytes(b"w" * size)
    layer = raw_layer("weights", "weights", [ImageFile("w.bin", tmp_path / "w.bin")])
    pieces = list(layer.content())
    assert all(pieces)
    assert sum(map(len, pieces)) == layer.descriptor.size_bytes


def test_large_files_get_a_layer_of_their_own(tmp_path):
    sizes = {"a": 1, "b": 600 * 1024**2, "c": 1, "d": 1}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # sparse
    groups = group_by_size([ImageFile(name, tmp_path / name) for name in sizes])
    assert [[file.name for file in group] for group in groups] == [["a"], ["b"], ["c", "d"]]


def test_the_context_is_what_was_asked_for_and_nothing_else(tmp_path):
    context = tmp_path / "context"
    large = tmp_path / "large"
    large.write_bytes(b"x" * 5 * 1024**2)
    small = tmp_path / "small"
    small.write_text("s")
    small.chmod(0o600)
    stage(context, {"Dockerfile": "FROM x"}, [ImageFile("w/large", large), ImageFile("app/small", small)])
    assert (context / "w/large").samefile(large)
    assert (context / "app/small").stat().st_mode & 0o777 == 0o644
    stage(context, {"Dockerfile": "FROM y"}, [ImageFile("app/small", small)])
    assert sorted(path.name for path in context.rglob("*")) == ["Dockerfile", "app", "small"]
    assert large.is_file()


def test_a_large_file_that_only_its_owner_may_read_is_copied(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"x" * 5 * 1024**2)
    large.chmod(0o600)
    stage(tmp_path / "context", {}, [ImageFile("large", large)])
    assert (tmp_path / "context/large").stat().st_mode & 0o777 == 0o644
    assert large.stat().st_mode & 0o777 == 0o600


def test_same_size_and_time_but_other_content_gets_another_time(tmp_path):
    path, context = tmp_path / "f", tmp_path / "context"
    times = []
    for text in ("one", "two"):
        path.write_text(text)
        os.utime(path, (1, 1))
        stage(context, {}, [ImageFile("f", path)])
        times.append((context / "f").stat().st_mtime_ns)
    assert times[0] != times[1]


def test_what_was_of_no_use_for_a_month_is_forgotten(tmp_path):
    for name in ("old", "used", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "blob").touch()
    for name in ("old", "used"):
        os.utime(tmp_path / name, (1, 1))
    mark_used(tmp_path / "used")
    forget_unused(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]
