import inspect
import re
import subprocess
import sys

import grpc
import pytest

from modelkit import errors
from modelkit.errors import CallError, ConfigError, MethodNotFoundError, ModelkitError, Problem, closest

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, ModelkitError) and value is not ModelkitError
]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_drawing_at_the_top_says_the_truth(cls):
    line = next(line for line in errors.__doc__.splitlines() if re.search(rf"\b{cls.__name__}\b", line))
    if cls is not CallError:
        assert cls.grpc_status in line
    exit_codes = re.findall(r" ([12])  ", line)
    assert all(int(code) == cls.exit_code for code in exit_codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_each_status_is_a_canonical_code(cls):
    assert cls.grpc_status in grpc.StatusCode.__members__


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_is_public_and_documented(cls):
    assert cls.__name__ in errors.__all__
    assert inspect.getdoc(cls)


def test_an_error_carries_its_cure():
    error = CallError("it broke", cure="mend it", retry_after_s=2.0, request_id="r")
    assert (str(error), error.cure, error.retry_after_s, error.request_id) == (
        "it broke",
        "mend it",
        2.0,
        "r",
    )


def test_several_problems_are_counted_and_the_first_is_named():
    assert str(ConfigError([Problem("a"), Problem("b")])) == "2 problems, the first: a"
    assert str(ConfigError([Problem("a")])) == "a"


def test_a_method_that_does_not_exist_suggests_one_that_does():
    error = MethodNotFoundError("summarise", ["summarize", "translate"])
    assert "did you mean 'summarize'?" in str(error)
    assert error.cure == "call one of: summarize, translate"
    assert MethodNotFoundError("x", []).cure == ""


@pytest.mark.parametrize(
    ("name", "expected"), [("GENERATE", "generate"), ("genrate", "generate"), ("zebra", None), ("", None)]
)
def test_the_closest_name(name, expected):
    assert closest(name, ["generate", "predict"]) == expected


def test_importing_errors_imports_nothing_else_of_modelkit():
    code = "import sys, modelkit.errors; print([m for m in sys.modules if m.startswith('modelkit')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['modelkit', 'modelkit.errors']"
