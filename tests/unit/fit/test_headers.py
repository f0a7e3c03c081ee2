"""Checkpoints are read from their headers alone, and a damaged one says what is wrong with it."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from modelkit.errors import LoadError
from modelkit.fit import LocalReader, SourceReader, read_model, read_tensors
from unit.fit.checkpoints import QWEN2_7B, write_config, write_safetensors

ONE = {"a.weight": ("BF16", (4, 3)), "b.bias": ("F32", (5,))}


def test_every_tensor_of_a_file_is_read(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", ONE)
    tensors = {tensor.name: tensor for tensor in read_tensors(LocalReader(tmp_path))}
    assert {name: (t.dtype, t.shape, t.size_bytes) for name, t in tensors.items()} == {
        "a.weight": ("BF16", (4, 3), 24),
        "b.bias": ("F32", (5,), 20),
    }


def test_the_index_says_which_files_count(tmp_path):
    write_safetensors(tmp_path / "model-1.safetensors", {"a.weight": ("BF16", (4, 3))})
    write_safetensors(
        tmp_path / "model-2.safetensors", {"b.bias": ("F32", (5,)), "a.weight": ("BF16", (4, 3))}
    )
    write_safetensors(tmp_path / "consolidated.safetensors", {"same.again": ("BF16", (400, 300))})
    weight_map = {"a.weight": "model-1.safetensors", "b.bias": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sorted(tensor.name for tensor in read_tensors(LocalReader(tmp_path))) == ["a.weight", "b.bias"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(LoadError, match=r"lacks model-2\.safetensors"):
        read_tensors(LocalReader(tmp_path))


def test_without_an_index_the_usual_names_count(tmp_path):
    write_safetensors(tmp_path / "consolidated.safetensors", {"same.again": ("BF16", (400, 300))})
    assert len(read_tensors(LocalReader(tmp_path))) == 1
    write_safetensors(tmp_path / "model.safetensors", ONE)
    assert {tensor.name for tensor in read_tensors(LocalReader(tmp_path))} == set(ONE)


def _damage(name):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-1])

    def empty(path):
        path.write_bytes(b"")

    def long_header(path):
        path.write_bytes((2**40).to_bytes(8, "little") + b"{}")

    def no_json(path):
        path.write_bytes((4).to_bytes(8, "little") + b"oops")

    def wrong_size(path):
        header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    def no_offsets(path):
        header = json.dumps({"a": {"dtype": "F32", "shape": [3]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)

    def a_list(path):
        path.write_bytes((2).to_bytes(8, "little") + b"[]")

    return locals()[name]


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "long_header", "no_json", "wrong_size", "no_offsets", "a_list"]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, ONE)
    _damage(damage)(path)
    with pytest.raises(LoadError, match=r"model\.safetensors") as caught:
        read_tensors(LocalReader(tmp_path))
    assert caught.value.cure


@dataclass(frozen=True)
class File:
    path: str
    size_bytes: int


@dataclass(frozen=True)
class Listing:
    files: tuple[File, ...]


class FolderSource:
    """A source as modelkit.checkpoints has them, over a folder; it counts what is read and how often it is listed."""

    def __init__(self, folder):
        self.folder, self.num_read, self.num_listed = folder, 0, 0

    def list_files(self):
        self.num_listed += 1
        return Listing(tuple(File(path.name, path.stat().st_size) for path in self.folder.iterdir()))

    @contextmanager
    def open(self, file, start=0, stop=None):
        with (self.folder / file.path).open("rb") as opened:
            opened.seek(start)
            data = opened.read((file.size_bytes if stop is None else stop) - start)
        self.num_read += len(data)
        yield iter([data[:7], data[7:]])


def test_of_a_remote_checkpoint_only_ranges_are_read(tmp_path):
    write_config(tmp_path, QWEN2_7B)
    write_safetensors(tmp_path / "model.safetensors", {"model.embed_tokens.weight": ("BF16", (2**20, 2**10))})
    source = FolderSource(tmp_path)
    model = read_model(SourceReader(source))
    assert model.weights("bfloat16", None, 1).bytes_per_device == 2**31
    assert source.num_read < 2000
    assert source.num_listed == 1
    with pytest.raises(LoadError, match="no such"):
        SourceReader(source).read("no such file", 0, 1)


def test_a_checkpoint_without_config_is_refused(tmp_path):
    with pytest.raises(LoadError, match=r"no config\.json"):
        read_model(LocalReader(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LoadError, match="no JSON object"):
        read_model(LocalReader(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(LoadError, match="num_hidden_layers"):
        read_model(LocalReader(tmp_path))


def test_weights_in_an_older_format_are_counted_by_their_size(tmp_path):
    write_config(tmp_path, QWEN2_7B)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
    weights = read_model(LocalReader(tmp_path)).weights("bfloat16", None, 2)
    assert (weights.bytes_per_device, weights.is_estimate) == (500, True)
