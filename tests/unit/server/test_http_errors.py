import json

import pytest

from modelkit import errors
from modelkit.engines.upstream import _ERRORS as UPSTREAM_CLASSES
from modelkit.errors import (
    CallError,
    CancelledCallError,
    InvalidArgumentError,
    MethodNotFoundError,
    NotFoundError,
    OverloadedError,
    Violation,
)
from modelkit.server.http.errors import _TABLE, error_body, error_response, http_status


def subclasses(cls):
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


CLASSES = [cls for cls in subclasses(CallError) if cls is not CallError and cls.__module__ == errors.__name__]


def make(cls):
    return cls("predict", ["generate"]) if cls is MethodNotFoundError else cls("it broke")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_status_and_openais_shape(cls):
    assert cls.grpc_status in _TABLE
    content = error_body(make(cls))["error"]
    assert {"message", "type", "param", "code"} <= set(content)
    assert content["code"].isidentifier()
    assert content["code"] == content["code"].lower()


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not CancelledCallError])
def test_a_modelkit_server_behind_another_keeps_the_class(cls):
    expected = NotFoundError if issubclass(cls, NotFoundError) else cls
    found = UPSTREAM_CLASSES.get(http_status(make(cls)), errors.InternalError)
    assert found is expected


def test_the_table_has_nothing_that_no_error_uses():
    assert set(_TABLE) == {cls.grpc_status for cls in CLASSES}


def test_an_authors_own_error_is_that_of_its_parent():
    class TooLongError(InvalidArgumentError):
        """The prompt is too long."""

    response = error_response(TooLongError("12 tokens too many"))
    assert response.status == 400
    assert json.loads(response.body)["error"]["code"] == "too_long"


def test_violations_name_the_parameter():
    error = InvalidArgumentError("bad", cure="mend it", violations=[Violation("top_p", "must be at most 1")])
    content = error_body(error)["error"]
    assert content["param"] == "top_p"
    assert content["violations"] == [{"field": "top_p", "description": "must be at most 1"}]
    assert content["cure"] == "mend it"


@pytest.mark.parametrize("cls", CLASSES)
def test_clients_are_told_whether_to_try_again(cls):
    repeat = cls.grpc_status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
    assert error_response(make(cls)).headers["x-should-retry"] == ("true" if repeat else "false")


def test_when_to_try_again_is_told_in_whole_seconds():
    assert error_response(OverloadedError("busy", retry_after_s=0.2)).headers["Retry-After"] == "1"
