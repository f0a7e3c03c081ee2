import pytest
from google.rpc import error_details_pb2, status_pb2

from modelkit import errors
from modelkit.errors import InvalidArgumentError, NotFoundError, Violation
from modelkit.server.status import status_code, status_message, status_trailer


def details(error):
    key, data = status_trailer(error, "r1")
    assert key == "grpc-status-details-bin"
    return status_pb2.Status.FromString(data)


@pytest.mark.parametrize("text", ["a" * 9999, "я" * 9999, "\U0001f600" * 9999, "\ud800" * 9999, "a\nb\0c"])
def test_what_travels_in_trailers_is_small_and_valid(text):
    violations = [Violation(text, text) for _ in range(500)]
    error = InvalidArgumentError(text, cure=text, violations=violations, retry_after_s=1.0)
    message = status_message(error).encode()
    _, data = status_trailer(error, "r" * 128)
    # grpc-message is percent-encoded, the details are base64; many clients take 8 KiB in all.
    assert len(message) * 3 + len(data) * 4 / 3 < 8000


def test_short_texts_are_not_touched():
    assert status_message(NotFoundError("niño\n")) == "niño\n"


def test_violations_that_fit_are_all_there():
    status = details(
        InvalidArgumentError("m", violations=[Violation(f"f{i}", "is required") for i in range(20)])
    )
    found = error_details_pb2.BadRequest()
    assert status.details[-1].Unpack(found)
    assert [violation.field for violation in found.field_violations] == [f"f{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MethodNotFoundError", "METHOD_NOT_FOUND"),
        ("OverloadedError", "OVERLOADED"),
        ("InternalError", "INTERNAL"),
    ],
)
def test_the_reason_is_the_class(name, reason):
    cls = getattr(errors, name)
    error = cls("x", []) if name == "MethodNotFoundError" else cls("x")
    info = error_details_pb2.ErrorInfo()
    assert details(error).details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "modelkit")
    assert details(error).code == status_code(error).value[0]
