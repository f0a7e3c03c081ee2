"""Python values to JSON and back, for HTTP; the counterpart of `modelkit.codec`, which does it for protobuf.

What JSON has stays as it is. The rest is an object with one key that starts with "$":

    bytes        {"$bytes": "aGk="}                                       base64
    nan, inf     {"$float": "nan"}                                        "nan", "inf" or "-inf"
    Tensor       {"$tensor": {"shape": [2], "dtype": "int64", "data": "..."}}  base64, row-major, little-endian
    Image        {"$image": "data:image/png;base64,..."}                  and so $audio, $video
    Audio        {"$audio": "data:audio/l16;base64,...", "sample_rate_hz": 16000}
    Text         {"$text": "Hi", "token_ids": [1, 2]}                     a plain string where it has no token ids
    a dict with a key that starts with "$"    {"$map": {"$bytes": 1}}

Where a signature says what an argument is, plainer spellings are taken too (`decode`): nested lists for a tensor, a
data URL for media and bytes.
"""

import base64
import binascii
import dataclasses
import enum
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from modelkit.codec import MAX_DEPTH
from modelkit.datatypes import Audio, Image, Media, Tensor, Text, Video
from modelkit.model import TypeKind, TypeSpec

__all__ = ["decode", "dumps", "media", "to_json", "value_type"]

_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1
_ANY: Final = TypeSpec(TypeKind.ANY)


def dumps(value: Any) -> bytes:
    """Return a value as JSON text. Raises TypeError and ValueError as `to_json`."""
    if isinstance(value, str):  # most of what streams
        try:
            return orjson.dumps(value)
        except TypeError as error:
            raise ValueError(f"not a valid Unicode string ({error})") from error
    return orjson.dumps(to_json(value))


def to_json(value: Any, depth: int = 0) -> Any:
    """Turn a value into what JSON has.

    Raises TypeError for a type that cannot be sent, ValueError for a value that cannot (an integer beyond 64 bits, a
    lone surrogate, more than MAX_DEPTH containers in each other).
    """
    encoder = _ENCODERS.get(type(value))
    if encoder is not None:
        return encoder(value)
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep, or it contains itself")
    return _encode_other(value, depth)


def decode(value: Any, spec: TypeSpec = _ANY, depth: int = 0) -> Any:
    """Turn parsed JSON into a value; `spec` is what the signature says it is. Raises ValueError."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    spec = value_type(spec)
    if isinstance(value, dict):
        return _decode_dict(value, spec, depth)
    plain = _PLAIN.get(spec.kind)
    if plain is not None:
        return plain(value, spec)
    if isinstance(value, list):
        return [decode(item, _item_spec(spec, index), depth + 1) for index, item in enumerate(value)]
    return value


def media(kind: TypeKind, data: bytes, media_type: str) -> Media:
    """Return an Image, Audio or Video of a file's bytes."""
    return _MEDIA[kind](data, media_type)


# ---------------------------------------------------------------------------------------------------------- encoding


def _encode_str(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not a valid Unicode string ({error.reason})") from error
    return str(value)  # a subclass becomes what orjson takes


def _encode_int(value: int) -> int:
    if not _MIN_INT <= value <= _MAX_INT:
        raise ValueError(f"the integer {value} does not fit into 64 bits; send it as a string or a float")
    return int(value)


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return float(value)
    return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _encode_bytes(value: bytes) -> Any:
    return {"$bytes": base64.b64encode(value).decode()}


def _encode_tensor(value: Tensor) -> Any:
    data = base64.b64encode(value.data).decode()
    return {"$tensor": {"shape": list(value.shape), "dtype": value.dtype, "data": data}}


def _encode_media(key: str, value: Media) -> dict[str, Any]:
    media_type = value.media_type or "application/octet-stream"
    return {key: f"data:{media_type};base64,{base64.b64encode(value.data).decode()}"}


def _encode_audio(value: Audio) -> Any:
    encoded = _encode_media("$audio", value)
    return encoded | {"sample_rate_hz": value.sample_rate_hz} if value.sample_rate_hz else encoded


def _encode_text(value: Text) -> Any:
    if not value.token_ids:
        return _encode_str(value.text)
    return {"$text": _encode_str(value.text), "token_ids": list(value.token_ids)}


_ENCODERS: dict[type, Callable[[Any], Any]] = {
    str: _encode_str,
    bool: lambda value: value,
    int: _encode_int,
    float: _encode_float,
    type(None): lambda value: value,
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    memoryview: _encode_bytes,
    Text: _encode_text,
    Tensor: _encode_tensor,
    Image: lambda value: _encode_media("$image", value),
    Audio: _encode_audio,
    Video: lambda value: _encode_media("$video", value),
}


def _encode_other(value: Any, depth: int) -> Any:
    """Encode a container, a subclass of a type in the table, or an object of a library."""
    if isinstance(value, enum.Enum):
        return to_json(value.value, depth)
    if isinstance(value, Mapping):
        return _encode_dict(value, depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [to_json(item, depth + 1) for item in items]
    for base, encoder in _ENCODERS.items():
        if isinstance(value, base):
            return encoder(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _encode_dict(members, depth)
    return to_json(_convert_foreign(value), depth)


def _encode_dict(value: Mapping[Any, Any], depth: int) -> Any:
    entries = {_encode_key(key): to_json(item, depth + 1) for key, item in value.items()}
    if any(key.startswith("$") for key in entries):
        return {"$map": entries}
    return entries


def _encode_key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return _encode_str(key)
    if isinstance(key, (bool, int, float)):
        return str(key)
    raise TypeError(f"cannot send a dict key of type {type(key).__name__}; keys are strings or numbers")


def _convert_foreign(value: Any) -> Any:
    """Turn an object of a library into one that `to_json` knows. Raises TypeError where no library claims it.

    A value of a library's type can only exist when that library is imported, so nothing is imported here.
    """
    pydantic = sys.modules.get("pydantic")
    if pydantic and isinstance(value, pydantic.BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.ndarray):
        return Tensor.from_numpy(value)
    if numpy and isinstance(value, numpy.generic) and not isinstance(item := value.item(), numpy.generic):
        return item
    pil = sys.modules.get("PIL.Image")
    if pil and isinstance(value, pil.Image):
        return Image.from_pil(value)
    raise TypeError(f"cannot send a value of type {type(value).__module__}.{type(value).__qualname__}")


# ---------------------------------------------------------------------------------------------------------- decoding

_DATA_URL = re.compile(r"data:(?P<type>[^,;]*)(?:;[^,;]*)*;base64,", re.IGNORECASE)
_FLOATS: Final[Mapping[str, float]] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MEDIA: Final[Mapping[TypeKind, type[Media]]] = {
    TypeKind.IMAGE: Image,
    TypeKind.AUDIO: Audio,
    TypeKind.VIDEO: Video,
}


def _decode_dict(value: dict[str, Any], spec: TypeSpec, depth: int) -> Any:
    marker = next((key for key in value if key.startswith("$")), None)
    if marker is None:
        return _decode_members(value, spec, depth)
    decoder = _MARKERS.get(marker)
    if decoder is None:
        raise ValueError(
            f"'{marker}' stands for no kind of value; known are {', '.join(_MARKERS)}. "
            'A dict with such a key is sent as {"$map": {...}}'
        )
    rest = {key: item for key, item in value.items() if key != marker}
    if marker == "$map":
        _take(rest)
        return _decode_members(_dict(value[marker]), spec, depth)
    return decoder(value[marker], rest)


def _decode_members(value: dict[str, Any], spec: TypeSpec, depth: int) -> dict[str, Any]:
    return {key: decode(item, _member_spec(spec, key), depth + 1) for key, item in value.items()}


def _take(rest: dict[str, Any], name: str = "", default: Any = None) -> Any:
    """Take the one key that may stand beside a marker."""
    taken = rest.pop(name, default)
    if rest:
        raise ValueError(f"'{next(iter(rest))}' cannot stand beside a key that starts with '$'")
    return taken


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("'$map' must have an object")
    return value


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64: {error}") from error


def _data_url(value: Any) -> tuple[bytes, str]:
    """Read "data:TYPE;base64,...". Any other URL is refused: a server that fetches what strangers name is a hole."""
    found = _DATA_URL.match(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a data URL: data:image/png;base64,...")
    return _base64(value[found.end() :]), found["type"]


def _read_bytes(value: Any, rest: dict[str, Any]) -> bytes:
    _take(rest)
    return _base64(value)


def _read_float(value: Any, rest: dict[str, Any]) -> float:
    _take(rest)
    if not isinstance(value, str) or value not in _FLOATS:
        raise ValueError(f"'$float' must be one of {', '.join(_FLOATS)}")
    return _FLOATS[value]


def _read_tensor(value: Any, rest: dict[str, Any]) -> Tensor:
    _take(rest)
    if not isinstance(value, dict) or set(value) != {"shape", "dtype", "data"}:
        raise ValueError("'$tensor' must have shape, dtype and data")
    shape = value["shape"]
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ValueError("the shape of a tensor must be a list of integers")
    if isinstance(value["data"], list):
        return _tensor_of_list(value["data"], str(value["dtype"]), tuple(shape))
    return Tensor(tuple(shape), value["dtype"], _base64(value["data"]))


def _read_text(value: Any, rest: dict[str, Any]) -> Text:
    token_ids = _take(rest, "token_ids", [])
    if not isinstance(value, str) or not isinstance(token_ids, list):
        raise ValueError("'$text' must be a string, and 'token_ids' a list")
    if not all(type(token) is int for token in token_ids):
        raise ValueError("'token_ids' must be a list of integers")
    return Text(value, tuple(token_ids))


def _read_audio(value: Any, rest: dict[str, Any]) -> Audio:
    sample_rate_hz = _take(rest, "sample_rate_hz", 0)
    if type(sample_rate_hz) is not int:
        raise ValueError("'sample_rate_hz' must be an integer")
    return Audio(*_data_url(value), sample_rate_hz)


def _read_media(kind: type[Media]) -> Callable[[Any, dict[str, Any]], Media]:
    def read(value: Any, rest: dict[str, Any]) -> Media:
        _take(rest)
        return kind(*_data_url(value))

    return read


_MARKERS: Final[Mapping[str, Callable[[Any, dict[str, Any]], Any]]] = {
    "$bytes": _read_bytes,
    "$float": _read_float,
    "$tensor": _read_tensor,
    "$image": _read_media(Image),
    "$audio": _read_audio,
    "$video": _read_media(Video),
    "$text": _read_text,
    "$map": lambda value, _: _dict(value),
}


def _tensor_of_list(value: list[Any] | float, dtype: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """Read nested lists of numbers as a tensor; where no dtype is named it is float32, or int64 for integers."""
    try:
        import numpy as np
    except ImportError as error:
        raise ValueError(
            'reading lists as a tensor needs numpy on the server; send {"$tensor": ...}'
        ) from error
    try:
        array = np.array(value, dtype=dtype or None)
        array = array if shape is None else array.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"the lists do not make a tensor: {error}") from error
    if not dtype and array.dtype == np.float64:
        array = array.astype(np.float32)
    return Tensor.from_numpy(array)


def _plain_tensor(value: Any, spec: TypeSpec) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return _tensor_of_list(value, spec.dtype) if isinstance(value, list) or is_number else value


def _media_of_url(value: Any, spec: TypeSpec) -> Any:
    return _MEDIA[spec.kind](*_data_url(value)) if isinstance(value, str) else value


# How values of a kind may be written where the signature asks for that kind.
_PLAIN: Final[Mapping[TypeKind, Callable[[Any, TypeSpec], Any]]] = {
    TypeKind.TENSOR: _plain_tensor,
    TypeKind.BYTES: lambda value, _: _data_url(value)[0] if isinstance(value, str) else value,
    TypeKind.IMAGE: _media_of_url,
    TypeKind.AUDIO: _media_of_url,
    TypeKind.VIDEO: _media_of_url,
}


def _item_spec(spec: TypeSpec, index: int) -> TypeSpec:
    if spec.kind is TypeKind.LIST:
        return spec.args[0]
    if spec.kind is TypeKind.TUPLE and index < len(spec.args):
        return spec.args[index]
    return _ANY


def _member_spec(spec: TypeSpec, key: str) -> TypeSpec:
    if spec.kind is TypeKind.MAP:
        return spec.args[1]
    return next((member.type for member in spec.fields if member.name == key), _ANY)


def value_type(spec: TypeSpec) -> TypeSpec:
    """Return the T of `T | None`; of a wider union nothing can be said before the value is checked."""
    if spec.kind is not TypeKind.UNION:
        return spec
    members = [member for member in spec.args if member.kind is not TypeKind.NULL]
    return members[0] if len(members) == 1 else _ANY
