"""What goes over the wire comes back the same, and what cannot go says where it is."""

import dataclasses
import enum
import functools
import json
import math
import types
from collections import OrderedDict, namedtuple

import numpy as np
import pydantic
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PILImage

from modelkit import codec
from modelkit.datatypes import _ITEM_BYTES, Audio, Image, Text, Video
from modelkit.inference.v1 import inference_pb2 as pb

WHOLE = st.integers(-(2**63), 2**63 - 1)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    WHOLE,
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(Text, st.text(), st.lists(st.integers(0, 2**32 - 1)).map(tuple)),
    st.builds(Image, st.binary(), st.text(max_size=8)),
    st.builds(Audio, st.binary(), st.text(max_size=8), st.integers(0, 2**32 - 1)),
    st.builds(Video, st.binary(), st.text(max_size=8)),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


def through_the_wire(value):
    return codec.decode(pb.Value.FromString(codec.encode(value).SerializeToString()))


def same(left, right):
    """Equal and of equal types, all the way down; 1, 1.0 and True are three things."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=False)
        return len(left) == len(right) and all(k == k2 and same(v, v2) for (k, v), (k2, v2) in pairs)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(VALUES)
def test_a_value_comes_back_the_same(value):
    assert same(through_the_wire(value), value)


@given(st.dictionaries(st.text(min_size=1), VALUES, max_size=4))
def test_arguments_come_back_the_same(arguments):
    message = pb.PredictRequest(arguments=codec.encode_arguments(arguments))
    decoded = codec.decode_arguments(pb.PredictRequest.FromString(message.SerializeToString()).arguments)
    assert decoded.keys() == arguments.keys()
    assert all(same(decoded[name], value) for name, value in arguments.items())


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1])
def test_an_integer_stays_that_integer(value):
    assert through_the_wire(value) == value
    assert type(through_the_wire(value)) is int


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_is_refused_with_a_cure(value):
    with pytest.raises(ValueError, match=r"does not fit into 64 bits; send it as a string or a float"):
        codec.encode(value)


@pytest.mark.parametrize("value", [True, False])
def test_a_bool_stays_a_bool(value):
    assert through_the_wire(value) is value


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
def test_a_float_keeps_every_bit(value):
    back = through_the_wire(value)
    assert type(back) is float
    assert math.copysign(1, back) == math.copysign(1, value)
    assert back == value


def test_nan_stays_nan():
    assert math.isnan(through_the_wire(math.nan))


def test_a_dict_keeps_its_order():
    keys = ["z", "a", "m", "", "é"]
    assert list(through_the_wire(dict.fromkeys(keys, 1))) == keys


def test_keys_that_are_not_strings_travel_as_text():
    class Color(enum.Enum):
        RED = "red"

    assert through_the_wire({1: "a", 2.5: "b", False: "c", Color.RED: "d"}) == {
        "1": "a",
        "False": "c",
        "2.5": "b",
        "red": "d",
    }


@pytest.mark.parametrize("key", [None, (1, 2), b"k"])
def test_a_key_of_another_type_is_refused(key):
    with pytest.raises(TypeError, match="keys are strings or numbers"):
        codec.encode({key: 1})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("\ud800", "not a valid"),
        ({"\ud800": 1}, "not a valid"),
        ({"a": ["x", "\ud800"]}, r"\.a\[1\]: not a valid"),
        (Text("\ud800"), "surrogates not allowed"),
    ],
)
def test_a_lone_surrogate_is_refused_with_its_place(value, place):
    with pytest.raises(ValueError, match=place):
        codec.encode(value)


def nested(depth, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@dataclasses.dataclass
class Node:
    child: object


CONTAINERS = [lambda v: [v], lambda v: {"key": v}, lambda v: (v,), Node]


@pytest.mark.parametrize("wrap", CONTAINERS)
def test_the_deepest_value_that_is_encoded_can_be_read_in_every_message(wrap):
    value = codec.encode(nested(codec.MAX_DEPTH, wrap))
    for message in (
        pb.PredictRequest(arguments={"x": value}),
        pb.StreamRequest(start=pb.StreamStart(arguments={"x": value})),
        pb.StreamRequest(items=[value]),
        pb.PredictResponse(result=value),
        pb.GenerateResponse(items=[value]),
    ):
        assert type(message).FromString(message.SerializeToString()) == message


@pytest.mark.parametrize("wrap", CONTAINERS)
@pytest.mark.parametrize("depth", [codec.MAX_DEPTH + 1, 60, 5000])
def test_a_value_nested_too_deeply_is_refused_by_the_sender(wrap, depth):
    with pytest.raises(ValueError, match=f"nested more than {codec.MAX_DEPTH} levels deep"):
        codec.encode(nested(depth, wrap))


def test_the_limit_is_needed():
    """Without it sender and reader would only know that protobuf could not parse."""

    def wrap(value):
        return pb.Value(list_value=pb.ListValue(items=[value]))

    with pytest.raises(DecodeError):
        functools.reduce(lambda value, _: wrap(value), range(60), pb.Value(int_value=1))


def test_a_value_that_contains_itself_is_refused():
    ring = []
    ring.append(ring)
    with pytest.raises(ValueError, match="contains itself"):
        codec.encode({"ring": ring})


def test_an_error_says_where_inside_the_value_it_is():
    with pytest.raises(
        TypeError, match=r"^messages\[1\]\.content: cannot send a value of type builtins\.object$"
    ):
        codec.encode_arguments({"messages": [{"content": "a"}, {"content": object()}]})
    with pytest.raises(ValueError, match=r"^x\[0\]: the integer"):
        codec.encode_arguments({"x": [2**64]})


def test_an_error_raised_inside_a_property_keeps_its_kind():
    class Broken(pydantic.BaseModel):
        inner: object

    class OddError(ValueError):
        def __init__(self, one, two):
            super().__init__(one, two)

    class Raises(dict):
        def items(self):
            raise OddError(1, 2)

    with pytest.raises(ValueError, match=r"\.inner: "):
        codec.encode(Broken(inner=Raises(a=1)))


# ---------------------------------------------------------------------------------------- authors' and libraries' types


def test_subclasses_travel_as_what_they_are():
    class Word(str):
        __slots__ = ()

    Point = namedtuple("Point", "x y")  # noqa: PYI024

    class Level(enum.IntEnum):
        HIGH = 3

    class Photo(Image):
        pass

    class Kind(enum.StrEnum):
        CAT = "cat"

    assert same(through_the_wire(Word("a")), "a")
    assert same(through_the_wire(Point(1, 2)), [1, 2])
    assert same(through_the_wire(Level.HIGH), 3)
    assert same(through_the_wire(Kind.CAT), "cat")
    assert same(through_the_wire(Photo(b"x", "image/png")), Image(b"x", "image/png"))
    assert same(through_the_wire(OrderedDict(a=1)), {"a": 1})
    assert same(through_the_wire(types.MappingProxyType({"a": 1})), {"a": 1})
    assert same(through_the_wire(bytearray(b"ab")), b"ab")
    assert same(through_the_wire(memoryview(b"abcd")[::2]), b"ac")
    assert same(through_the_wire(frozenset({2, 1})), [1, 2])


def test_objects_travel_by_their_members():
    @dataclasses.dataclass
    class Box:
        left: int
        image: object

    class Label(pydantic.BaseModel):
        name: str
        boxes: list[Box]

    pixel = PILImage.new("RGB", (1, 1), "red")
    back = through_the_wire(Label(name="cat", boxes=[Box(1, pixel)]))
    assert back["name"] == "cat"
    assert back["boxes"][0]["left"] == 1
    assert back["boxes"][0]["image"].pil().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("scalar", [np.int8(-3), np.uint16(7), np.bool_(True), np.float32(0.5), np.str_("a")])
def test_numpy_scalars_become_plain_values(scalar):
    assert same(through_the_wire(scalar), scalar.item())


@pytest.mark.parametrize(
    "value",
    [object(), print, 1j, np.longdouble(1), np.array([object()]), np.array(["a"]), (i for i in "ab"), int],
)
def test_what_has_no_place_on_the_wire_is_refused(value):
    with pytest.raises((TypeError, ValueError), match=r"cannot send|unknown dtype"):
        codec.encode(value)


# ----------------------------------------------------------------------------------------------------------- tensors

NUMPY_DTYPES = sorted(set(_ITEM_BYTES) - {"bfloat16"})


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_an_array_of_every_type_order_and_shape_comes_back(dtype, order, shape):
    array = (
        np.arange(math.prod(shape), dtype="float64")
        .reshape(shape)
        .astype(np.dtype(dtype).newbyteorder(order))
    )
    tensor = through_the_wire(array)
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == np.dtype(dtype)


@given(
    hnp.arrays(
        st.sampled_from([np.int32, np.float32, np.complex64]), hnp.array_shapes(max_dims=4, max_side=4)
    )
)
def test_an_array_of_any_layout_comes_back(array):
    for view in (array, array.T, array[::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(through_the_wire(view).numpy(), view)


def test_little_endian_is_what_travels():
    message = codec.encode(np.array([1], dtype=">u2"))
    assert message.tensor_value.data == b"\x01\x00"


@pytest.mark.parametrize(
    ("shape", "dtype", "data", "reason"),
    [
        ([2], "float32", b"1234567", "needs 8 bytes, the data has 7"),
        ([2], "float32", b"123456789", "needs 8 bytes, the data has 9"),
        ([2**63, 2], "float64", b"", "cannot be an array"),
        ([0, 2**63], "uint8", b"", "cannot be an array"),
        ([1] * 65, "uint8", b"x", "cannot be an array"),
        ([1], "float128", bytes(16), "unknown dtype 'float128'"),
        ([1], "object", bytes(8), "unknown dtype 'object'"),
        ([1], "", b"1", "unknown dtype ''"),
    ],
)
def test_a_malformed_tensor_from_the_wire_is_refused(shape, dtype, data, reason):
    message = pb.Value(tensor_value=pb.Tensor(shape=shape, dtype=dtype, data=data))
    with pytest.raises(ValueError, match=reason):
        codec.decode(message)
    with pytest.raises(ValueError, match=rf"x\[0\]: .*{reason}"):
        codec.decode_arguments({"x": pb.Value(list_value=pb.ListValue(items=[message]))})


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=40), st.sampled_from(NUMPY_DTYPES), st.binary(max_size=64)
)
def test_a_tensor_that_exists_can_be_read(shape, dtype, data):
    message = pb.Value(tensor_value=pb.Tensor(shape=shape, dtype=dtype, data=data))
    try:
        tensor = codec.decode(message)
    except ValueError:
        return
    assert tensor.numpy().shape == tuple(shape)


def test_many_megabytes_come_back():
    data = bytes(range(256)) * (64 * 1024)
    assert through_the_wire(data) == data
    tensor = through_the_wire(np.frombuffer(data, np.uint8))
    assert tensor.data == data


# ---------------------------------------------------------------------------------------------------------- decoding


def test_a_value_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="none of its kinds is set"):
        codec.decode(pb.Value())
    entries = [pb.MapEntry(key="a")]
    with pytest.raises(ValueError, match=r"x\.a: the value is empty"):
        codec.decode_arguments({"x": pb.Value(map_value=pb.MapValue(entries=entries))})


def test_a_kind_of_a_later_version_is_refused_not_guessed():
    later = pb.Value.FromString(b"\x9a\x06\x01x")  # field 99
    with pytest.raises(ValueError, match="a kind of value that this version does not know; is the other"):
        codec.decode(later)
    with pytest.raises(ValueError, match=r"^\[0\]: a kind of value that this version does not know"):
        codec.decode(pb.Value(list_value=pb.ListValue(items=[later])))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_a_clean_error(garbage):
    try:
        message = pb.Value.FromString(garbage)
    except DecodeError:
        return
    try:
        value = codec.decode(message)
    except ValueError:
        return
    assert codec.encode(value).WhichOneof("kind") == message.WhichOneof("kind")


def test_plain_values_are_json_in_all_but_name():
    """What a JSON document can hold needs no signature to be read back."""
    document = {"a": [1, 2.5, None, True, {"b": "c"}], "d": {}}
    assert through_the_wire(json.loads(json.dumps(document))) == document
