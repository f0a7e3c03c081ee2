"""What is in a checkpoint's safetensors files, read from their headers alone: a few kilobytes of many gigabytes.

A file begins with the length of its header, eight bytes, little-endian, and the header: JSON that gives each tensor's
dtype, shape and place (https://huggingface.co/docs/safetensors/index#format). A remote checkpoint answers range reads,
so nothing else of it is fetched.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol

from modelkit.checkpoints.base import CheckpointSource, SourceFile
from modelkit.errors import LoadError

__all__ = [
    "CheckpointReader",
    "LocalReader",
    "SourceReader",
    "Tensor",
    "pickle_bytes",
    "read_json",
    "read_tensors",
]

INDEX = "model.safetensors.index.json"
_LENGTH_BYTES = 8
# The limit of the format itself.
_MAX_HEADER_BYTES = 100_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Bits, for the formats of fewer than eight are packed.
_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


class CheckpointReader(Protocol):
    """A checkpoint's files, wherever they are. Every method raises LoadError where they cannot be had."""

    def paths(self) -> Sequence[str]:
        """Return the name of each file, with / between folders; those in folders are not needed."""
        ...

    def size_bytes(self, path: str) -> int:
        """Return the size of a file."""
        ...

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a file from `start` up to `stop`, fewer where it ends before."""
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """A checkpoint that is a folder."""

    folder: Path

    def paths(self) -> Sequence[str]:
        """Return the files of the folder itself: weights and config.json lie nowhere deeper."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.is_file())
        except OSError as error:
            raise _unreadable(str(self.folder), error) from error

    def size_bytes(self, path: str) -> int:
        """Return the size of a file."""
        try:
            return (self.folder / path).stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return a part of a file."""
        try:
            with (self.folder / path).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise _unreadable(path, error) from error


class SourceReader:
    """A checkpoint in a remote place, of which only ranges are read. The listing is asked for once."""

    def __init__(self, source: CheckpointSource) -> None:
        self._source = source

    @cached_property
    def _files(self) -> dict[str, SourceFile]:
        return {file.path: file for file in self._source.list_files().files}

    def paths(self) -> Sequence[str]:
        """Return the name of each file."""
        return sorted(self._files)

    def size_bytes(self, path: str) -> int:
        """Return the size of a file."""
        return self._file(path).size_bytes

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return a part of a file."""
        with self._source.open(self._file(path), start, min(stop, self.size_bytes(path))) as blocks:
            return b"".join(blocks)

    def _file(self, path: str) -> SourceFile:
        try:
            return self._files[path]
        except KeyError:
            raise LoadError(
                f"the checkpoint has no {path}", cure="see which files the repository has"
            ) from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its dtype as safetensors spells it, its shape, its size in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def num_elements(self) -> int:
        """The product of the shape; 1 for a scalar."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds ordinary numbers, which an engine converts to the dtype it runs in."""
        return self.dtype in {"F64", "F32", "F16", "BF16"}


def read_tensors(reader: CheckpointReader) -> tuple[Tensor, ...]:
    """Return every tensor of a checkpoint, each once; none where it has no safetensors files.

    Raises LoadError for a file that is no safetensors file, or is cut short.
    """
    tensors: dict[str, Tensor] = {}
    index, names = _files(reader)
    for name in names:
        for tensor in _read_header(reader, name):
            if index is None or index.get(tensor.name, name) == name:
                tensors.setdefault(tensor.name, tensor)
    return tuple(tensors.values())


def read_json(reader: CheckpointReader, path: str) -> dict[str, Any] | None:
    """Return a JSON file of the checkpoint; None where there is none. Raises LoadError where it holds no object."""
    if path not in reader.paths():
        return None
    content = _parse(reader.read(path, 0, reader.size_bytes(path)), path)
    if not isinstance(content, dict):
        raise LoadError(f"{path} of the checkpoint holds no JSON object", cure="fetch the checkpoint again")
    return content


def pickle_bytes(reader: CheckpointReader) -> int:
    """Return the size of the weights in older formats, which tell nothing of themselves without being run."""
    return sum(
        reader.size_bytes(path) for path in reader.paths() if path.endswith(_PICKLES) and "/" not in path
    )


def _files(reader: CheckpointReader) -> tuple[dict[str, str] | None, list[str]]:
    """Return the index, where there is one, and the files with the weights.

    A repository may hold the same weights twice, under names such as consolidated.safetensors: the index says which
    count, and without one the usual name does. Engines choose in the same way.
    """
    top = [path for path in reader.paths() if path.endswith(".safetensors") and "/" not in path]
    index = read_json(reader, INDEX)
    if index is not None and isinstance(weights := index.get("weight_map"), dict):
        wanted = sorted(set(weights.values()))
        missing = [name for name in wanted if name not in top]
        if missing:
            raise LoadError(
                f"the checkpoint lacks {missing[0]}, which {INDEX} names", cure="fetch the checkpoint again"
            )
        return weights, wanted
    usual = [path for path in top if path.startswith("model")]
    return None, usual or top


def _read_header(reader: CheckpointReader, path: str) -> list[Tensor]:
    size_bytes = reader.size_bytes(path)
    length = int.from_bytes(reader.read(path, 0, _LENGTH_BYTES), "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, size_bytes - _LENGTH_BYTES):
        raise LoadError(f"{path} is no safetensors file, or cut short", cure="fetch the checkpoint again")
    header = _parse(reader.read(path, _LENGTH_BYTES, _LENGTH_BYTES + length), path)
    try:
        tensors = [_tensor(name, entry) for name, entry in header.items() if name != "__metadata__"]
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(f"the header of {path} is damaged", cure="fetch the checkpoint again") from error
    if _LENGTH_BYTES + length + end > size_bytes:
        raise LoadError(
            f"{path} is cut short: {size_bytes:,} bytes of {_LENGTH_BYTES + length + end:,}",
            cure="fetch the checkpoint again",
        )
    return tensors


def _tensor(name: str, entry: dict[str, Any]) -> Tensor:
    start, stop = entry["data_offsets"]
    shape = tuple(int(side) for side in entry["shape"])
    tensor = Tensor(name, str(entry["dtype"]), shape, int(stop) - int(start))
    bits = _BITS.get(tensor.dtype)
    if bits is not None and tensor.size_bytes != (tensor.num_elements * bits + 7) // 8:
        raise ValueError(name)
    return tensor


def _parse(data: bytes, path: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"{path} of the checkpoint is no JSON: {error}", cure="fetch the checkpoint again"
        ) from error


def _unreadable(path: str, error: OSError) -> LoadError:
    return LoadError(
        f"cannot read {path} of the checkpoint: {error.strerror}", cure="see that the file is there"
    )
