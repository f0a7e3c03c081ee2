import dataclasses
import enum
import math

import numpy as np
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkit.datatypes import Audio, Image, Tensor, Text, Video
from modelkit.model import TypeKind, TypeSpec
from modelkit.server.http.json_codec import decode, dumps


def there_and_back(value):
    return decode(orjson.loads(dumps(value)))


class Colour(enum.Enum):
    RED = "red"


class Number(int):
    pass


@dataclasses.dataclass
class Point:
    x: int
    tags: list


class Box(pydantic.BaseModel):
    width: float


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(2**63), 2**63 - 1, 1.5, "", "déjà vu 🙂", b"", b"\x00\xff"),
        *([], [1, [2, {}]], {"a": {"b": [None]}}, {"$bytes": 1}, {"a": {"$": {"$map": {}}}}),
        *(Image(b"png", "image/png"), Audio(b"pcm", "audio/l16", 16_000), Audio(b"wav", "audio/wav")),
        *(Video(b"mp4", "video/mp4"), Text("hi", (1, 2)), Tensor((2, 1), "int64", bytes(16))),
        *(Tensor((0,), "float32", b""), math.inf, -math.inf, [math.inf]),
    ],
)
def test_what_goes_out_comes_back(value):
    assert there_and_back(value) == value
    assert type(there_and_back(value)) is type(value)


def test_nan_comes_back():
    assert math.isnan(there_and_back(math.nan))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, 2), [1, 2]),
        ({3, 1}, [1, 3]),
        (Colour.RED, "red"),
        (Number(3), 3),
        (Point(1, ["a"]), {"x": 1, "tags": ["a"]}),
        (Box(width=2.0), {"width": 2.0}),
        (np.float64(1.5), 1.5),
        (np.int32(3), 3),
        (Text("no ids"), "no ids"),
        ({1: "a", Colour.RED: "b"}, {"1": "a", "red": "b"}),
        (bytearray(b"a"), {"$bytes": "YQ=="}),
    ],
)
def test_what_has_a_plain_form_takes_it(value, plain):
    assert orjson.loads(dumps(value)) == plain


def test_an_array_is_a_tensor():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(there_and_back(array).numpy(), array)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_value_comes_back(value):
    assert there_and_back(value) == value


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**63, "64 bits"),
        ("\ud800", "Unicode"),
        (["\ud800"], "Unicode"),
        (object(), "cannot send a value of type builtins.object"),
        (nested(40), "nested more than"),
        ({(1, 2): 3}, "dict key of type tuple"),
        (np.array([object()]), "unknown dtype"),
    ],
)
def test_what_cannot_be_sent_says_why(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dumps(value)


def test_a_list_that_contains_itself_ends():
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        dumps(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$bytes": "a"}, "base64"),
        ({"$bytes": 1}, "base64"),
        ({"$bytes": "", "more": 1}, "cannot stand beside"),
        ({"$byte": ""}, r"\$bytes"),
        ({"$float": "1"}, "nan, inf, -inf"),
        ({"$float": []}, "nan, inf, -inf"),
        ({"$image": "http://169.254.169.254/latest"}, "data URL"),
        ({"$image": "file:///etc/passwd"}, "data URL"),
        ({"$image": None}, "data URL"),
        ({"$audio": "data:audio/wav;base64,", "sample_rate_hz": "x"}, "integer"),
        ({"$tensor": {"shape": [2], "dtype": "int64", "data": ""}}, "16 bytes"),
        ({"$tensor": {"shape": [-1], "dtype": "int64", "data": ""}}, "negative"),
        ({"$tensor": {"shape": ["a"], "dtype": "int64", "data": ""}}, "list of integers"),
        ({"$tensor": {"shape": [1], "dtype": "object", "data": ["x"]}}, "unknown dtype"),
        ({"$tensor": {"shape": [1], "dtype": [], "data": [1]}}, "tensor"),
        ({"$tensor": {"shape": [3], "dtype": "int64", "data": [1]}}, "do not make a tensor"),
        ({"$tensor": []}, "shape, dtype and data"),
        ({"$text": 1}, "must be a string"),
        ({"$text": "a", "token_ids": ["b"]}, "list of integers"),
        ({"$map": 1}, "must have an object"),
        (nested(40), "nested more than"),
    ],
)
def test_what_cannot_be_read_says_why(value, message):
    with pytest.raises(ValueError, match=message):
        decode(value)


def test_no_depth_of_json_breaks_the_reader():
    with pytest.raises(ValueError, match="nested"):
        decode(orjson.loads("[" * 1000 + "]" * 1000))


OPTIONAL_IMAGE = TypeSpec(TypeKind.UNION, args=(TypeSpec(TypeKind.IMAGE), TypeSpec(TypeKind.NULL)))


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        ("data:image/png;base64,cG5n", TypeSpec(TypeKind.IMAGE), Image(b"png", "image/png")),
        ("data:audio/wav;base64,", TypeSpec(TypeKind.AUDIO), Audio(b"", "audio/wav")),
        ("data:image/png;base64,cG5n", OPTIONAL_IMAGE, Image(b"png", "image/png")),
        (None, OPTIONAL_IMAGE, None),
        ("data:;base64,YQ==", TypeSpec(TypeKind.BYTES), b"a"),
        (["data:;base64,YQ=="], TypeSpec(TypeKind.LIST, args=(TypeSpec(TypeKind.BYTES),)), [b"a"]),
        ("data:;base64,YQ==", TypeSpec(TypeKind.STRING), "data:;base64,YQ=="),
    ],
)
def test_a_signature_lets_values_be_written_plainly(value, spec, expected):
    assert decode(value, spec) == expected


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [([[1, 2], [3, 4]], "", "int64"), ([0.5], "", "float32"), ([1], "float16", "float16"), (3, "", "int64")],
)
def test_lists_are_tensors_where_the_signature_asks_for_one(value, dtype, expected):
    tensor = decode(value, TypeSpec(TypeKind.TENSOR, dtype=dtype))
    assert tensor.dtype == expected
    assert tensor.numpy().tolist() == value


def test_ragged_lists_are_no_tensor():
    with pytest.raises(ValueError, match="do not make a tensor"):
        decode([[1], [1, 2]], TypeSpec(TypeKind.TENSOR))
