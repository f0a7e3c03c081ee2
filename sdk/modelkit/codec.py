"""Python values to protobuf and back; the only file that knows both.

`encode` takes every value a method may return and a client may send; `decode` gives plain Python values (None, bool,
int, float, str, bytes, list, dict) and the types of `datatypes`. Reading them as an author's own types (a dataclass, a
numpy array, an Enum) is the work of the method's signature.
"""

import dataclasses
import enum
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from modelkit.datatypes import Audio, Image, Tensor, Text, Video
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["MAX_DEPTH", "decode", "decode_arguments", "encode", "encode_arguments"]

_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1

# How deep lists and dicts may stand in each other. Every reader of protobuf stops at 100 nested messages, and a dict
# takes three of them (Value, MapValue, MapEntry); a sender that went on would only be told "error parsing message".
MAX_DEPTH: Final = 31


def encode(value: Any, depth: int = 0) -> pb.Value:
    """Turn a Python value into a Value; `depth` is how many containers it stands in already.

    Raises TypeError for a type that has no place in the contract and ValueError for a value that does not fit (an
    integer beyond 64 bits, a lone surrogate, an object array, more than MAX_DEPTH containers in each other); both
    messages say where inside the value it is.
    """
    encoder = _ENCODERS.get(type(value))
    return encoder(value) if encoder else _encode_other(value, depth)


def decode(message: pb.Value) -> Any:
    """Turn a Value into a Python value. Raises ValueError when it is empty, of an unknown kind, or malformed."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ValueError(_without_kind(message))
    return _DECODERS[kind](message)


def encode_arguments(arguments: Mapping[str, Any]) -> dict[str, pb.Value]:
    """Encode the arguments of a call by name. Errors as `encode`, each naming the argument."""
    return {name: _encode_member(name, value, 0) for name, value in arguments.items()}


def decode_arguments(arguments: Mapping[str, pb.Value]) -> dict[str, Any]:
    """Decode the arguments of a call by name. Errors as `decode`, each naming the argument."""
    try:
        return {name: decode(value) for name, value in arguments.items()}
    except ValueError:
        return {name: _decode_member(name, value) for name, value in arguments.items()}


# ---------------------------------------------------------------------------------------------------------- encoding


def _encode_int(value: int) -> pb.Value:
    if not _MIN_INT <= value <= _MAX_INT:
        raise ValueError(f"the integer {value} does not fit into 64 bits; send it as a string or a float")
    return pb.Value(int_value=value)


def _encode_str(value: str) -> pb.Value:
    try:
        return pb.Value(string_value=value)
    except UnicodeEncodeError as error:
        raise ValueError(f"not a valid Unicode string ({error.reason})") from error


def _encode_list(value: Any, depth: int) -> pb.Value:
    items = [_encode_member(f"[{index}]", item, depth) for index, item in enumerate(value)]
    return pb.Value(list_value=pb.ListValue(items=items))


def _encode_set(value: Any, depth: int) -> pb.Value:
    return _encode_list(sorted(value, key=repr), depth)


def _encode_dict(value: Mapping[Any, Any], depth: int) -> pb.Value:
    entries = [
        pb.MapEntry(key=_encode_key(key), value=_encode_member(f".{key}", item, depth))
        for key, item in value.items()
    ]
    if len({entry.key for entry in entries}) < len(entries):
        raise ValueError("two keys are the same as text, such as 1 and '1'")
    return pb.Value(map_value=pb.MapValue(entries=entries))


def _encode_key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return _encode_str(key).string_value
    if isinstance(key, (bool, int, float)):
        return str(key)
    raise TypeError(f"cannot send a dict key of type {type(key).__name__}; keys are strings or numbers")


def _encode_tensor(value: Tensor) -> pb.Value:
    return pb.Value(tensor_value=pb.Tensor(shape=value.shape, dtype=value.dtype, data=value.data))


def _encode_member(place: str, value: Any, depth: int) -> pb.Value:
    """Encode a part of a larger value; an error says which part."""
    try:
        return encode(value, depth)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_join(place, str(error))) from error


def _join(place: str, message: str) -> str:
    """Put a place in front of a message that may start with the rest of the path: `.a` + `[0]: bad` = `.a[0]: bad`."""
    return place + message if message.startswith((".", "[")) else f"{place}: {message}"


def _encode_other(value: Any, depth: int) -> pb.Value:
    """Encode a container, a subclass of a type in the table, or an object of a library."""
    if isinstance(value, enum.Enum):
        return encode(value.value, depth)
    for base, encoder in _ENCODERS.items():
        if isinstance(value, base):
            return encoder(value)
    for kind, container in _CONTAINERS.items():
        if isinstance(value, kind):
            return _encode_container(container, value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _encode_container(_encode_dict, members, depth)
    converted = _convert_foreign(value)
    if converted is None:
        raise TypeError(f"cannot send a value of type {type(value).__module__}.{type(value).__qualname__}")
    return encode(converted, depth)


def _encode_container(encoder: Callable[[Any, int], pb.Value], value: Any, depth: int) -> pb.Value:
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep, or it contains itself")
    return encoder(value, depth + 1)


def _convert_foreign(value: Any) -> Any:
    """Turn an object of a library into one that `encode` knows; None when no library claims it.

    A value of a library's type can only exist when that library is imported, so nothing is imported here.
    """
    pydantic = sys.modules.get("pydantic")
    if pydantic and isinstance(value, pydantic.RootModel):
        return value.root
    if pydantic and isinstance(value, pydantic.BaseModel):
        # By alias, as the model reads itself back.
        fields = type(value).model_fields.items()
        return {info.serialization_alias or name: getattr(value, name) for name, info in fields}
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.ndarray):
        return Tensor.from_numpy(value)
    if numpy and isinstance(value, numpy.generic):
        item = value.item()
        return None if isinstance(item, numpy.generic) else item  # longdouble stays what it is
    pil = sys.modules.get("PIL.Image")
    if pil and isinstance(value, pil.Image):
        return Image.from_pil(value)
    return _as_text(value)


_TEXT_MODULES = frozenset({"datetime", "decimal", "ipaddress", "pathlib", "uuid"})


def _as_text(value: Any) -> str | None:
    """Write a date, UUID, path or the like as pydantic does, which reads it back where a field has that type."""
    core = sys.modules.get("pydantic_core")
    if core is None or type(value).__module__.partition(".")[0] not in _TEXT_MODULES:
        return None
    try:
        text = core.to_jsonable_python(value)
    except core.PydanticSerializationError:
        return None
    return text if isinstance(text, str) else None


# The base of another (int of bool) comes after it: subclasses are looked up in this order.
_ENCODERS: dict[type, Callable[[Any], pb.Value]] = {
    str: _encode_str,
    bool: lambda value: pb.Value(bool_value=value),
    int: _encode_int,
    float: lambda value: pb.Value(float_value=value),
    bytes: lambda value: pb.Value(bytes_value=value),
    bytearray: lambda value: pb.Value(bytes_value=bytes(value)),
    memoryview: lambda value: pb.Value(bytes_value=bytes(value)),
    type(None): lambda _: pb.Value(null_value=pb.NULL_VALUE_UNSPECIFIED),
    Text: lambda value: pb.Value(text_value=pb.Text(text=value.text, token_ids=value.token_ids)),
    Tensor: _encode_tensor,
    Image: lambda value: pb.Value(image_value=pb.Image(data=value.data, media_type=value.media_type)),
    Audio: lambda value: pb.Value(
        audio_value=pb.Audio(
            data=value.data, media_type=value.media_type, sample_rate_hz=value.sample_rate_hz
        )
    ),
    Video: lambda value: pb.Value(video_value=pb.Video(data=value.data, media_type=value.media_type)),
}

_CONTAINERS: dict[type, Callable[[Any, int], pb.Value]] = {
    dict: _encode_dict,
    list: _encode_list,
    tuple: _encode_list,
    set: _encode_set,
    frozenset: _encode_set,
    Mapping: _encode_dict,
}


# ---------------------------------------------------------------------------------------------------------- decoding


def _without_kind(message: pb.Value) -> str:
    """Say why a value has none of the kinds that the contract had when this was written."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(message)):
        return "a kind of value that this version does not know; is the other side newer?"
    return "the value is empty: none of its kinds is set"


def _decode_list(message: pb.Value) -> list[Any]:
    return [_decode_member(f"[{index}]", item) for index, item in enumerate(message.list_value.items)]


def _decode_map(message: pb.Value) -> dict[str, Any]:
    return {entry.key: _decode_member(f".{entry.key}", entry.value) for entry in message.map_value.entries}


def _decode_tensor(message: pb.Value) -> Tensor:
    tensor = message.tensor_value
    return Tensor(tuple(tensor.shape), tensor.dtype, tensor.data)


def _decode_member(place: str, message: pb.Value) -> Any:
    try:
        return decode(message)
    except ValueError as error:
        raise ValueError(_join(place, str(error))) from error


_DECODERS: dict[str, Callable[[pb.Value], Any]] = {
    "null_value": lambda _: None,
    "bool_value": lambda message: message.bool_value,
    "int_value": lambda message: message.int_value,
    "float_value": lambda message: message.float_value,
    "string_value": lambda message: message.string_value,
    "bytes_value": lambda message: message.bytes_value,
    "list_value": _decode_list,
    "map_value": _decode_map,
    "tensor_value": _decode_tensor,
    "image_value": lambda message: Image(message.image_value.data, message.image_value.media_type),
    "audio_value": lambda message: Audio(
        message.audio_value.data,
        message.audio_value.media_type,
        message.audio_value.sample_rate_hz,
    ),
    "video_value": lambda message: Video(message.video_value.data, message.video_value.media_type),
    "text_value": lambda message: Text(message.text_value.text, tuple(message.text_value.token_ids)),
}
