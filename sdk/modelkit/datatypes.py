"""Values that cross the boundary of a model's method and have no type in the standard library.

All are small, immutable and made of bytes. numpy and Pillow are imported only by the conversions that need them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PILImage

__all__ = ["Audio", "Image", "Media", "Tensor", "Text", "Video"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of generated text with what is known of its tokens.

    A method that yields `Text` tells its callers the tokens of each piece; one that yields `str` does not need to.
    """

    text: str
    token_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Media:
    """Encoded bytes and their media type; the base of Image, Audio and Video.

    `data` is the file as it lies on disk (PNG, WAV, MP4, ...), never a URL: a server that fetched what a stranger
    names could be sent to fetch from its own network.
    """

    data: bytes = field(repr=False)
    media_type: str = ""

    @classmethod
    def from_path(cls, path: str | Path) -> Self:
        """Read a file; the media type is guessed from its name. Raises OSError when it cannot be read."""
        import mimetypes

        path = Path(path)
        return cls(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Image(Media):
    """An encoded image."""

    @classmethod
    def from_pil(cls, image: "PILImage", encoding: str = "PNG") -> Self:
        """Encode a Pillow image (mode and size are kept; PNG is lossless)."""
        import io

        buffer = io.BytesIO()
        image.save(buffer, format=encoding)
        return cls(buffer.getvalue(), f"image/{encoding.lower()}")

    def pil(self) -> "PILImage":
        """Decode into a Pillow image. Raises ValueError when the bytes are not an image that Pillow knows."""
        import io

        from PIL import Image as PILModule
        from PIL import UnidentifiedImageError

        try:
            image = PILModule.open(io.BytesIO(self.data))
            image.load()
        except UnidentifiedImageError as error:
            raise ValueError("the bytes are not an image of a known format") from error
        except (OSError, SyntaxError, PILModule.DecompressionBombError) as error:
            raise ValueError(f"the image cannot be read: {error}") from error
        return image


@dataclass(frozen=True, slots=True)
class Audio(Media):
    """Encoded audio. `sample_rate_hz` matters for raw PCM; 0 where the container says it."""

    sample_rate_hz: int = 0


@dataclass(frozen=True, slots=True)
class Video(Media):
    """Encoded video."""


# numpy's names of fixed-size types, and bfloat16, which numpy itself lacks (read it with ml_dtypes or torch).
_ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
# What every numpy can hold; an empty array (a size of 0) may have large other sizes, but not any.
_MAX_DIMENSIONS, _MAX_ELEMENTS = 32, 2**58


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense array: `data` is row-major, little-endian, and exactly as long as `shape` and `dtype` say.

    Raises ValueError when it is not, so that a tensor that exists can always be read.
    """

    DTYPES: ClassVar[Sequence[str]] = tuple(_ITEM_BYTES)

    shape: tuple[int, ...]
    dtype: str
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in _ITEM_BYTES:
            raise ValueError(f"unknown dtype '{self.dtype}'; known are {', '.join(_ITEM_BYTES)}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"shape {self.shape} has a negative size")
        if len(self.shape) > _MAX_DIMENSIONS or math.prod(filter(None, self.shape)) > _MAX_ELEMENTS:
            raise ValueError(
                f"a shape of {len(self.shape)} dimensions or this size cannot be an array: {self.shape[:8]}"
            )
        expected = math.prod(self.shape) * _ITEM_BYTES[self.dtype]
        if len(self.data) != expected:
            raise ValueError(
                f"shape {self.shape} of {self.dtype} needs {expected} bytes, the data has {len(self.data)}"
            )

    @classmethod
    def from_numpy(cls, array: "np.ndarray[Any, Any]") -> Self:
        """Copy an array of any layout and byte order. Raises ValueError for object and string arrays."""
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return cls(tuple(array.shape), array.dtype.name, little.tobytes(order="C"))

    def numpy(self) -> "np.ndarray[Any, Any]":
        """View the data as a read-only numpy array (bfloat16 needs the ml_dtypes package)."""
        import numpy as np

        if self.dtype == "bfloat16":
            try:
                import ml_dtypes
            except ImportError as error:
                raise ValueError(
                    "numpy has no bfloat16; install the ml_dtypes package, or send float32"
                ) from error
            return np.frombuffer(self.data, dtype=ml_dtypes.bfloat16).reshape(self.shape)
        little = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self.data, dtype=little).reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "np.ndarray[Any, Any]":
        array = self.numpy()
        if dtype is not None:
            array = array.astype(dtype, copy=False)
        return array.copy() if copy else array
