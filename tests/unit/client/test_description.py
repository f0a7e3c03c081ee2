import pytest

from modelkit.client.binding import bind, merge_arguments, name_arguments
from modelkit.client.description import Limits, TypeDescription, read_description
from modelkit.codec import encode
from modelkit.errors import InvalidArgumentError, MethodNotFoundError
from modelkit.inference.v1 import inference_pb2 as pb
from unit.client.scripted_server import METHODS

SUMMARIZE, GENERATE, CHAT = read_description(pb.DescribeResponse(methods=METHODS)).methods
STR = TypeDescription("string")
INT = TypeDescription("int")


@pytest.mark.parametrize(
    ("described", "text"),
    [
        (STR, "str"),
        (TypeDescription("list", (STR,)), "list[str]"),
        (TypeDescription("list"), "list"),
        (TypeDescription("tuple", (STR, INT)), "tuple[str, int]"),
        (TypeDescription("map", (STR, TypeDescription("any"))), "dict[str, Any]"),
        (TypeDescription("union", (STR, TypeDescription("null"))), "str | None"),
        (TypeDescription("choice", choices=("a", 1)), "Literal['a', 1]"),
        (TypeDescription("choice", name="Color", choices=("red",)), "Color"),
        (TypeDescription("object", name="Message"), "Message"),
        (TypeDescription("tensor", dtype="float32"), "Tensor[float32]"),
        (TypeDescription("tensor"), "Tensor"),
        (TypeDescription("image"), "Image"),
        (TypeDescription("bytes"), "bytes"),
    ],
)
def test_types_read_like_python(described, text):
    assert str(described) == text


@pytest.mark.parametrize("number", pb.TypeKind.values())
def test_every_kind_of_type_has_a_name(number):
    method = pb.Method(name="m", kind=pb.METHOD_KIND_UNARY, result=pb.Type(kind=number))
    described = read_description(pb.DescribeResponse(methods=[method])).methods[0].result
    assert str(described) or described.kind == "union"
    assert "unspecified" not in str(described)


@pytest.mark.parametrize("number", [*pb.ModelState.values(), 99])
def test_only_a_ready_model_is_ready(number):
    model = read_description(pb.DescribeResponse(state=number))
    assert model.ready == (number == pb.MODEL_STATE_READY)
    known = number not in {pb.MODEL_STATE_UNSPECIFIED, 99}
    assert model.state == (
        pb.ModelState.Name(number).removeprefix("MODEL_STATE_").lower() if known else "unknown"
    )


def test_a_kind_from_a_newer_server_is_any():
    method = pb.Method(name="m", result=pb.Type(kind=99))
    assert str(read_description(pb.DescribeResponse(methods=[method])).methods[0].result) == "Any"


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(), ""),
        (Limits(minimum=1, maximum=500), "1..500"),
        (Limits(maximum=1_000_000), "<=1000000"),
        (Limits(minimum=0.5), ">=0.5"),
        (Limits(exclusive_minimum=0, maximum=2.0), "<=2.0, >0"),
        (Limits(min_length=1, max_length=80), "length 1..80"),
        (Limits(pattern="^a", multiple_of=2), "multiple of 2, /^a/"),
        (Limits(choices=("a", "b")), "'a' | 'b'"),
    ],
)
def test_limits_are_short(limits, text):
    assert str(limits) == text


def test_signatures_read_like_python():
    assert str(SUMMARIZE) == "summarize(text: str, max_words: int = 50 [1..500]) -> str"
    assert str(GENERATE) == "generate(n: int) -> Iterator[int]"
    assert str(CHAT) == "chat(turns: Iterator[str], prefix: str = '') -> Iterator[str]"


def test_a_default_that_only_the_author_knows_is_dots():
    field = pb.Field(name="options", type=pb.Type(kind=pb.TYPE_KIND_ANY))
    none = pb.Field(name="stop", type=pb.Type(kind=pb.TYPE_KIND_STRING), default=encode(None))
    method = read_description(
        pb.DescribeResponse(methods=[pb.Method(name="m", arguments=[field, none])])
    ).methods[0]
    assert str(method).startswith("m(options: Any = ..., stop: str = None)")


def test_positional_arguments_take_their_names_in_order():
    assert bind(SUMMARIZE, ("a", 3), {}) == {"text": "a", "max_words": 3}
    assert bind(SUMMARIZE, ("a",), {"max_words": 3}) == {"text": "a", "max_words": 3}
    assert name_arguments(SUMMARIZE, ("a",), {"unknown": 1}) == {"text": "a", "unknown": 1}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "'text' is missing; its type is str"),
        (("a",), {"max_word": 3}, "'max_word' is not an argument; did you mean 'max_words'?"),
        (("a",), {"zzz": 3}, "'zzz' is not an argument"),
        (("a",), {"text": "b"}, "'text' is given twice"),
        (("a", 1, 2), {}, "takes 2 arguments, 3 were given"),
    ],
)
def test_a_wrong_call_is_refused_with_the_signature(args, kwargs, message):
    with pytest.raises(InvalidArgumentError) as raised:
        bind(SUMMARIZE, args, kwargs)
    assert message in raised.value.message
    assert str(SUMMARIZE) in raised.value.cure


def test_a_long_signature_is_no_hint():
    fields = [
        pb.Field(name=f"argument_{number}", type=pb.Type(kind=pb.TYPE_KIND_STRING)) for number in range(9)
    ]
    method = read_description(pb.DescribeResponse(methods=[pb.Method(name="m", arguments=fields)])).methods[0]
    assert method.hint.startswith("its arguments are argument_0, argument_1")
    assert SUMMARIZE.hint == f"it is {SUMMARIZE}"


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(InvalidArgumentError) as raised:
        bind(SUMMARIZE, (), {"zzz": 1})
    assert [violation.field for violation in raised.value.violations] == ["zzz", "text"]


def test_an_argument_is_given_once():
    assert merge_arguments({"method": 1}, {"a": 2}) == {"method": 1, "a": 2}
    with pytest.raises(InvalidArgumentError, match="'a' is given both"):
        merge_arguments({"a": 1}, {"a": 2})


def test_an_unknown_method_suggests_the_nearest():
    model = read_description(pb.DescribeResponse(methods=METHODS))
    with pytest.raises(MethodNotFoundError, match="did you mean 'summarize'"):
        model.method("sumarize")
