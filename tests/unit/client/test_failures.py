import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from modelkit import errors
from modelkit.client import AsyncClient, Client
from modelkit.client.failures import STATUSES, from_rpc_error
from modelkit.client.retry import Deadline


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


class Failure:
    """What gRPC raises, without a server."""

    def __init__(self, code, details):
        self.code, self.details = lambda: code, lambda: details

    def trailing_metadata(self):
        return ()


def translated(code, details):
    return from_rpc_error(
        Failure(grpc.StatusCode[code], details), address="here:1", deadline=Deadline(None), request_id="r"
    )


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"])
def test_the_end_of_a_drain_is_an_unavailable_server(code):
    failure = translated(code, "Cancelling all calls")
    assert type(failure) is errors.UnavailableError
    assert failure.message == "here:1 ended before it had answered"
    assert failure.executed
    assert failure.cure


def test_a_message_that_is_too_large_names_the_setting():
    failure = translated(
        "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (70000000 vs. 67108864)"
    )
    assert type(failure) is errors.OverloadedError
    assert (
        failure.message
        == "a message of 70,000,000 bytes is larger than the 67,108,864 bytes that here:1 allows"
    )
    assert "server.max_message_bytes" in failure.cure


def test_a_server_of_something_else_is_said_not_to_speak_grpc():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        client = Client(f"127.0.0.1:{other.server_port}", retry=None)
        with client, pytest.raises(errors.UnavailableError, match="does not speak gRPC") as raised:
            client.predict(text="hi", timeout_s=20)
        other.shutdown()
    assert raised.value.cure.startswith("name the gRPC port")


def test_a_closed_client_says_so(server):
    client = Client(server.address)
    stream = client.generate(n=1)
    client.close()
    client.close()
    assert repr(client.methods)
    for call in (lambda: client.predict(a=1), client.describe, client.wait_ready, lambda: next(stream)):
        with pytest.raises(errors.FailedPreconditionError, match="the client is closed"):
            call()


async def test_a_closed_asynchronous_client_says_so(server):
    client = AsyncClient(server.address)
    assert await client.predict(a=1) == {"a": 1}
    await client.close()
    await client.close()
    with pytest.raises(errors.FailedPreconditionError, match="the client is closed"):
        await client.predict(a=1)


class RayFailure(Failure):
    """As Ray Serve fails a call: with its name for it, and words of its own."""

    def trailing_metadata(self):
        return (("request_id", "5e2b"),)


@pytest.mark.parametrize(
    ("code", "kind", "executed"),
    [
        (grpc.StatusCode.INTERNAL, errors.UnavailableError, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.OverloadedError, False),
    ],
)
def test_what_ray_says_of_a_replica_is_no_fault_of_the_model(code, kind, executed):
    error = RayFailure(code, "ray::ServeReplica Traceback: ActorDiedError")
    failure = from_rpc_error(error, address="head:9000", deadline=Deadline(None), request_id="x")
    assert type(failure) is kind
    assert failure.executed is executed
    assert "Traceback" not in failure.message
    assert failure.cure


def test_a_replica_of_rays_that_refuses_a_call_has_not_run_it():
    """Called directly, it refuses before it gives the call a name."""
    error = Failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "Request dropped due to backpressure (num_queued_requests=1)."
    )
    failure = from_rpc_error(error, address="10.0.0.2:40000", deadline=Deadline(None), request_id="x")
    assert type(failure) is errors.OverloadedError
    assert not failure.executed
    assert "busy" in failure.message
