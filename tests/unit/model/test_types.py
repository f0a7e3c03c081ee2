"""Every annotation an author may write: what callers are told of it, what it takes, what it refuses."""

import collections.abc
import dataclasses
import datetime as dt
import enum
import typing
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, Union

import annotated_types
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import typing_extensions
from PIL import Image as PILImage

from modelkit import Field
from modelkit.datatypes import Audio, Image, Tensor, Text, Video
from modelkit.errors import InvalidArgumentError
from modelkit.model import Limits, Model, SignatureError, TypeKind, describe_type, method
from modelkit.model.signature import read_signature
from modelkit.model.types import UnsupportedTypeError, wire_type

# ruff: noqa: UP007, UP045, B006, B008 - every spelling of an annotation is the point here


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: int = 7


@dataclasses.dataclass
class Frame:
    pixels: np.ndarray
    picture: PILImage.Image
    corner: Point
    tags: list[str] = dataclasses.field(default_factory=list)


class Message(pydantic.BaseModel):
    role: Literal["user", "assistant"]
    content: str = pydantic.Field(min_length=1, description="what was said")
    when: dt.date | None = None


class Options(TypedDict, total=False):
    depth: typing.Required[int]
    color: str


class MoreOptions(Options):
    must: bool


class Tree(pydantic.BaseModel):
    name: str
    children: list["Tree"] = []


class Numbers(pydantic.RootModel[list[int]]):
    pass


UserId = NewType("UserId", str)
Score = typing_extensions.TypeAliasType("Score", Annotated[float, Field(ge=0, le=1)])
PIXEL = Image.from_pil(PILImage.new("RGB", (2, 1), "red"))
VECTOR = Tensor.from_numpy(np.array([1.5, 2.5], np.float32))


def bind(annotation, value):
    """Send a value to a method whose argument has the annotation; return what the method would get."""

    class Echo(Model):
        @method
        def echo(self, x) -> Any: ...

    Echo.echo.__annotations__["x"] = annotation
    return read_signature(Echo, "echo").bind({"x": value})["x"]


TAKEN = [
    (str, "a", "a"),
    (bytes, b"a", b"a"),
    (int, 3, 3),
    (float, 2.5, 2.5),
    (float, 2, 2.0),
    (bool, True, True),
    (None, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (object, 5, 5),
    (Optional[int], None, None),
    (int | None, 4, 4),
    (Union[int, str], "4", "4"),
    (int | float, 4, 4),
    (int | float, 4.0, 4.0),
    (bool | int, True, True),
    (pydantic.JsonValue, {"a": [1, None]}, {"a": [1, None]}),
    (Literal["a", 1], 1, 1),
    (Literal[Color.RED], "red", Color.RED),
    (Color, "red", Color.RED),
    (Level, 2, Level.HIGH),
    (list[int], [1, 2], [1, 2]),
    (list, [1, "a"], [1, "a"]),
    (collections.abc.Sequence[str], ["a"], ["a"]),
    (collections.abc.MutableSequence[str], ["a"], ["a"]),
    (set[int], [1, 1, 2], {1, 2}),
    (frozenset[int], [1], frozenset({1})),
    (collections.abc.Set[int], [1], frozenset({1})),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple, [1, "a"], (1, "a")),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[int, float], {"1": 2.0}, {1: 2.0}),
    (dict[Color, int], {"red": 2}, {Color.RED: 2}),
    (dict, {"a": 1}, {"a": 1}),
    (collections.abc.Mapping[str, Any], {"a": None}, {"a": None}),
    (UserId, "u", "u"),
    (Score, 0.5, 0.5),
    (list[Score], [0.5], [0.5]),
    (Point, {"x": 1}, Point(1, 7)),
    (list[Point], [{"x": 1, "y": 2}], [Point(1, 2)]),
    (Message, {"role": "user", "content": "hi"}, Message(role="user", content="hi")),
    (Options, {"depth": 1}, {"depth": 1}),
    (MoreOptions, {"depth": 1, "must": True}, {"depth": 1, "must": True}),
    (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree(name="a", children=[Tree(name="b")])),
    (Numbers, [1, 2], Numbers([1, 2])),
    (Text, "a", Text("a")),
    (Text, Text("a", (1,)), Text("a", (1,))),
    (Image, PIXEL, PIXEL),
    (Audio, Audio(b"x"), Audio(b"x")),
    (Video, Video(b"x"), Video(b"x")),
    (Tensor, VECTOR, VECTOR),
]


@pytest.mark.parametrize(("annotation", "sent", "received"), TAKEN)
def test_a_value_arrives_as_the_annotated_type(annotation, sent, received):
    value = bind(annotation, sent)
    assert value == received
    assert type(value) is type(received)


REFUSED = [
    (str, 1, "must be a valid string"),
    (str, b"a", "must be a valid string"),
    (int, "1", "must be a valid integer"),
    (int, True, "must be a valid integer"),
    (int, 1.5, "must be a valid integer"),
    (float, "1.5", "must be a valid number"),
    (float, True, "must be a valid number"),
    (bool, 1, "must be a valid boolean"),
    (bytes, "a", "must be a valid bytes"),
    (int, None, "must be a valid integer"),
    (Optional[int], "x", "must be a valid integer"),
    (Union[int, list[int]], "x", "must be int | list[int]"),
    (Literal["a", "b"], "c", "must be 'a' or 'b'"),
    (Color, "green", "must be 'red' or 'blue'"),
    (list[int], "12", "must be a valid list"),
    (list[int], [1, "a"], "x[1]: must be a valid integer"),
    (tuple[int, str], [1], "is required"),
    (dict[str, int], {"a": "b"}, "x.a: must be a valid integer"),
    (Point, {"x": 1, "z": 2}, "x.z:"),
    (Point, {"y": 1}, "x.x: is required"),
    (
        list[Message],
        [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}],
        "x[1].role: must be",
    ),
    (Message, {"role": "user", "content": ""}, "x.content: string should have at least 1 character"),
    (Options, {"color": "a"}, "x.depth: is required"),
    (MoreOptions, {"depth": 1}, "x.must: is required"),
    (Image, b"x", "must be an image, got a bytes"),
    (Image, VECTOR, "must be an image, got a tensor"),
    (Tensor, [1.0], "must be a tensor, got a list"),
    (Audio, None, "must be an audio, got null"),
    (Score, 1.5, "must be less than or equal to 1"),
    (PILImage.Image, Image(b"not an image"), "not an image of a known format"),
]


@pytest.mark.parametrize(("annotation", "sent", "reason"), REFUSED)
def test_a_wrong_value_is_refused_with_its_path(annotation, sent, reason):
    with pytest.raises(InvalidArgumentError) as caught:
        bind(annotation, sent)
    shown = "; ".join(f"{violation.field}: {violation.description}" for violation in caught.value.violations)
    assert reason in shown
    assert caught.value.violations[0].field.startswith("x")


@pytest.mark.parametrize("annotation", [annotation for annotation, *_ in TAKEN])
def test_every_annotation_can_be_described_in_words(annotation):
    spec = wire_type(annotation).spec
    assert spec.kind in TypeKind
    assert describe_type(spec)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (dict[str, list[int | None]], "dict[str, list[int | None]]"),
        (Literal["a", 2], "'a' | 2"),
        (tuple[int, str], "tuple[int, str]"),
        (tuple[int, ...], "list[int]"),
        (Point, "Point"),
        (npt.NDArray[np.float32], "tensor"),
        (Color, "'red' | 'blue'"),
    ],
)
def test_a_type_in_words(annotation, words):
    assert describe_type(wire_type(annotation).spec) == words


# ------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    "annotation", [np.ndarray, npt.NDArray[Any], npt.NDArray[np.floating], npt.NDArray[np.float32]]
)
def test_a_numpy_array_arrives_and_may_be_written_to(annotation):
    array = bind(annotation, VECTOR)
    array[0] = 9
    assert array.tolist() == [9, 2.5]
    assert VECTOR.numpy()[0] == 1.5


def test_a_named_element_type_is_checked_and_never_converted():
    assert wire_type(npt.NDArray[np.int64]).spec.dtype == "int64"
    with pytest.raises(InvalidArgumentError, match="must be a tensor of int64, got one of float32"):
        bind(npt.NDArray[np.int64], VECTOR)


def test_a_pillow_image_arrives_decoded_and_says_that_this_takes_long():
    image = bind(PILImage.Image, PIXEL)
    assert (image.size, image.getpixel((0, 0))) == ((2, 1), (255, 0, 0))

    class Sees(Model):
        @method
        def deep(self, frames: list[Frame]) -> int: ...
        @method
        def plain(self, x: int) -> int: ...

    assert read_signature(Sees, "deep").binds_slowly
    assert not read_signature(Sees, "plain").binds_slowly


def test_a_dataclass_with_arrays_images_and_dataclasses_inside():
    frame = bind(Frame, {"pixels": VECTOR, "picture": PIXEL, "corner": {"x": 1}})
    assert frame.pixels.tolist() == [1.5, 2.5]
    assert frame.picture.size == (2, 1)
    assert (frame.corner, frame.tags) == (Point(1, 7), [])


# -------------------------------------------------------------------------------------------------------- descriptions


def test_a_pydantic_model_is_described_member_by_member():
    role, content, when = wire_type(Message).spec.fields
    assert (role.name, role.required, role.type.choices) == ("role", True, ("user", "assistant"))
    assert (content.limits.min_length, content.description) == (1, "what was said")
    assert (when.required, when.default) == (False, None)


def test_a_pydantic_alias_is_the_name_that_callers_use():
    class Aliased(pydantic.BaseModel):
        inner: int = pydantic.Field(alias="outer")

    assert wire_type(Aliased).spec.fields[0].name == "outer"
    assert bind(Aliased, {"outer": 3}).inner == 3


def test_limits_that_are_no_numbers_are_left_to_pydantic():
    class Dated(pydantic.BaseModel):
        day: dt.date = pydantic.Field(ge=dt.date(2020, 1, 1))
        size: int = pydantic.Field(default_factory=lambda data: 1)

    fields = wire_type(Dated).spec.fields
    assert fields[0].limits == Limits()
    assert not fields[1].required


def test_a_type_may_contain_itself_where_pydantic_reads_it():
    children = wire_type(Tree).spec.fields[1]
    assert children.type.args[0].name == "Tree"
    assert children.type.args[0].fields == ()


def test_required_keys_of_typed_dicts_follow_each_base():
    required = {field.name: field.required for field in wire_type(MoreOptions).spec.fields}
    assert required == {"depth": True, "color": False, "must": True}


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[int, Field(ge=1, lt=5)],
        Annotated[int, pydantic.Field(ge=1, lt=5)],
        Annotated[int, annotated_types.Ge(1), annotated_types.Lt(5)],
        Annotated[int, annotated_types.Interval(ge=1, lt=5)],
        Annotated[int | None, Field(ge=1, lt=5)],
        Annotated[int | None, pydantic.Field(ge=1), annotated_types.Lt(5)],
    ],
)
def test_limits_of_every_spelling_are_described_and_enforced(annotation):
    assert wire_type(annotation).limits == Limits(minimum=1, exclusive_maximum=5)
    assert bind(annotation, 4) == 4
    for wrong in (0, 5):
        with pytest.raises(InvalidArgumentError):
            bind(annotation, wrong)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (Annotated[str, Field(min_length=2, max_length=3)], ["ab", "abc"], ["a", "abcd"]),
        (Annotated[str, pydantic.StringConstraints(pattern="^a+$")], ["aa"], ["b"]),
        (Annotated[str, Field(pattern=r"\d")], ["x1"], ["x"]),
        (Annotated[list[int], annotated_types.Len(1, 2)], [[1]], [[], [1, 2, 3]]),
        (Annotated[list[Annotated[int, Field(gt=0)]], Field(max_length=1)], [[1]], [[0], [1, 1]]),
        (Annotated[dict[str, int], Field(max_length=1)], [{}], [{"a": 1, "b": 2}]),
        (Annotated[float, Field(gt=0, multiple_of=0.5)], [0.5], [0.0, 0.3, float("nan")]),
        (Annotated[str, Field(choices=("a", "b"))], ["a"], ["c", "A"]),
        (Annotated[str | None, Field(choices=("a", "b"))], [None, "a"], ["c"]),
        (Annotated[int | None, Field(ge=1, choices=(1, 2), default=None)], [None, 2], [0, 3]),
    ],
)
def test_limits_are_enforced(annotation, right, wrong):
    for value in right:
        assert bind(annotation, value) == value
    for value in wrong:
        with pytest.raises(InvalidArgumentError):
            bind(annotation, value)


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, Field(ge=1)],
        Annotated[int, Field(min_length=1)],
        Annotated[int, Field(pattern="a")],
        Annotated[int | str, Field(ge=1)],
        Annotated[Image, Field(max_length=1)],
        Annotated[str, annotated_types.Ge(1)],
        Annotated[list[int], pydantic.Field(gt=1)],
        Annotated[Literal["a"], Field(ge=1)],
    ],
)
def test_a_limit_that_does_not_fit_is_refused_when_it_is_read(annotation):
    with pytest.raises(UnsupportedTypeError, match="does not fit the type") as caught:
        wire_type(annotation)
    assert "are for numbers" in caught.value.cure


# ---------------------------------------------------------------------------------------------------------- unsupported


class Strange(enum.Enum):
    OBJECT = object()


@dataclasses.dataclass
class Ring:
    next: "Ring | None"


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (complex, "values of type complex cannot be sent"),
        (dt.datetime, "values of type datetime cannot be sent"),
        (collections.abc.Callable[[], int], "cannot be sent"),
        (typing.TypeVar("T"), "type variable ~T has no value"),
        (PILImage, "'PIL.Image' is a module, not a type"),
        (np, "'numpy' is a module"),
        (list[collections.abc.Iterator[int]], "cannot stand inside another type"),
        (dict[tuple[int, int], str], "keys of a dict cannot be of type tuple"),
        (Strange, "cannot be sent"),
        (Ring, "contains itself"),
        (3, "values of type 3 cannot be sent"),
    ],
)
def test_an_annotation_that_cannot_be_served_says_why(annotation, reason):
    with pytest.raises(UnsupportedTypeError, match=reason) as caught:
        wire_type(annotation)
    assert "/" not in str(caught.value), "no path of this machine"


def test_defaults_stand_in_every_place():
    class Defaults(Model):
        @method
        def all_of_them(
            self,
            a: int,
            d: Annotated[int, Field(3)],
            b: int = 1,
            c: int = Field(2, ge=0),
            *,
            e: Annotated[int, Field(ge=0)] = 4,
            f: Annotated[int, pydantic.Field(default=5)],
            g: int = pydantic.Field(6, le=9),
        ) -> int: ...

    signature = read_signature(Defaults, "all_of_them")
    assert {spec.name: spec.default for spec in signature.arguments if not spec.required} == {
        "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6
    }  # fmt: skip
    assert [spec.name for spec in signature.arguments if spec.required] == ["a"]
    assert signature.bind({"a": 0})["f"] == 5


def test_a_default_list_is_new_for_each_call():
    class Collects(Model):
        @method
        def collect(
            self,
            a: list[int] = [],
            b: list[int] = pydantic.Field(default_factory=list),
        ) -> int: ...

    signature = read_signature(Collects, "collect")
    signature.bind({})["a"].append(1)
    signature.bind({})["b"].append(1)
    assert signature.bind({}) == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (int, "a"),
        (int, None),
        (Annotated[int, Field(ge=1)], 0),
        (Literal["a", "b"], "c"),
        (Annotated[str, Field(choices=("a",))], "b"),
        (tuple[int, int], (1,)),
    ],
)
def test_a_default_that_breaks_its_own_rules_is_refused(annotation, default):
    class Breaks(Model):
        @method
        def run(self, x=default) -> int: ...

    Breaks.run.__annotations__["x"] = annotation
    with pytest.raises(
        SignatureError, match="the default of argument 'x' of method 'run' breaks its own rules"
    ):
        read_signature(Breaks, "run")


@pytest.mark.parametrize("pattern", ["(", "(?<x"])
def test_a_pattern_that_is_none_is_refused(pattern):
    class Patterned(Model):
        @method
        def run(self, x: str) -> int: ...

    Patterned.run.__annotations__["x"] = Annotated[str, Field(pattern=pattern)]
    with pytest.raises(SignatureError, match="argument 'x'"):
        read_signature(Patterned, "run")
