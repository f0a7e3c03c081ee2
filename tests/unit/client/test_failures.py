import grpc
import pytest

from modelkit import errors
from modelkit.client import Client
from modelkit.client.failures import STATUSES


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_a_class(code):
    assert issubclass(STATUSES[code], errors.CallError)


def test_the_table_agrees_with_the_error_tree():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.CallError) and kind is not errors.CallError:
            assert issubclass(kind, STATUSES[grpc.StatusCode[kind.grpc_status]])


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_status_and_details_come_back_as_the_same_error(server, code):
    with Client(server.address, retry=None) as client, pytest.raises(errors.CallError) as raised:
        client.predict(method="refuse", code=code)
    assert type(raised.value) is STATUSES[grpc.StatusCode[code]]
    assert raised.value.message == "refused"
    assert raised.value.violations == (errors.Violation("text", "is too long"),)
    assert raised.value.request_id == "r1"


def test_an_unknown_method_is_the_same_error_as_on_the_server(client):
    with pytest.raises(errors.MethodNotFoundError, match="did you mean 'generate'") as raised:
        client.predict(method="unknown")
    assert raised.value.cure == "call one of: generate"


def test_a_refused_connection_names_the_address_and_the_cure():
    with Client("localhost:1", retry=None) as client, pytest.raises(errors.UnavailableError) as raised:
        client.predict(text="hi")
    assert raised.value.message == "cannot connect to localhost:1: no server listens there"
    assert "modelkit serve PATH --local" in raised.value.cure
    assert raised.value.request_id


def test_an_unknown_host_is_not_called_a_missing_server():
    with Client("nowhere.invalid:1", retry=None) as client, pytest.raises(errors.UnavailableError) as raised:
        client.predict(text="hi", timeout_s=20)
    assert raised.value.message == "cannot find the host of nowhere.invalid:1"


def test_a_deadline_says_how_long_it_was(client):
    with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.1 s") as raised:
        client.predict(method="slow", timeout_s=0.1)
    assert raised.value.request_id


def test_an_answer_that_breaks_the_contract_is_an_internal_error(client):
    with pytest.raises(errors.InternalError, match="cannot be read"):
        client.predict(method="broken")


def test_details_that_cannot_be_read_leave_the_status(client):
    with pytest.raises(errors.PermissionDeniedError, match="no entry"):
        client.predict(method="garbled")
