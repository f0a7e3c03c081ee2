"""Results for the terminal, for JSON and for files."""

import base64
import json
from math import isfinite
from pathlib import Path
from typing import Any

from modelkit.cli import console
from modelkit.datatypes import Media, Tensor, Text
from modelkit.errors import UsageError

__all__ = ["plain", "render", "save_value"]


def render(value: Any) -> str:
    """Return what a person reads of a value. Bytes never reach a terminal."""
    if isinstance(value, (str, Text)):
        return str(value)
    if isinstance(value, (bytes, Media, Tensor)):
        return f"<{_describe(value)}; --save FILE writes it to a file>"
    if isinstance(value, float):
        return str(value) if not isfinite(value) else json.dumps(value)
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: bytes, media and tensors as an object with their bytes in base64.

    NaN and infinity, which JSON lacks, are null.
    """
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Text):
        return value.text
    if isinstance(value, (bytes, Media, Tensor)):
        return _plain_binary(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def save_value(value: Any, path: Path) -> None:
    """Write a result to a file: bytes as they are, a tensor as .npy, the rest as text. Raises UsageError."""
    try:
        path.write_bytes(_file_bytes(value))
    except OSError as error:
        raise UsageError(
            f"cannot write '{path}': {error.strerror}", cure="give --save another file"
        ) from error
    console.success(f"wrote {path}")


def _describe(value: bytes | Media | Tensor) -> str:
    if isinstance(value, Tensor):
        return f"tensor of {value.dtype}, shape {value.shape}"
    kind = value.media_type if isinstance(value, Media) else ""
    return f"{kind or 'data'}, {len(value):,} bytes"


def _plain_binary(value: bytes | Media | Tensor) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"shape": value.shape, "dtype": value.dtype, "base64": _base64(value.data)}
    if isinstance(value, Media):
        return {"media_type": value.media_type, "base64": _base64(value.data)}
    return {"base64": _base64(value)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _file_bytes(value: Any) -> bytes:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        return value
    if isinstance(value, Media):
        return value.data
    if isinstance(value, Tensor):
        return _npy(value)
    return (render(value) + "\n").encode()


def _npy(value: Tensor) -> bytes:
    from io import BytesIO

    try:
        import numpy as np
    except ImportError:
        raise UsageError(
            "a tensor needs numpy to be written", cure="pip install numpy, or use -o json"
        ) from None
    buffer = BytesIO()
    np.save(buffer, value.numpy())
    return buffer.getvalue()
