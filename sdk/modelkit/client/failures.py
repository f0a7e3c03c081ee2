"""From a gRPC status to the same error that the server raised.

The one place where the statuses of gRPC (`STATUSES`; a test walks them all) and the google.rpc details beside them
become the classes of `modelkit.errors`.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc

from modelkit.client.retry import Deadline
from modelkit.computes.locate import SCHEME
from modelkit.errors import (
    CallError,
    CancelledCallError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    MethodNotFoundError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)

__all__ = ["STATUSES", "from_rpc_error"]

STATUSES: Final[dict[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.CANCELLED: CancelledCallError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: FailedPreconditionError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: CallError,  # worth repeating, but by somebody who knows what it was about
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}

_DETAILS_KEY = "grpc-status-details-bin"

_START_A_SERVER = (
    "start a server with `modelkit serve PATH --local`, or name another with --address or MODELKIT_ADDRESS"
)

_NAME_THE_SERVER = (
    "name the gRPC port of a server with --address or MODELKIT_ADDRESS; its HTTP port is another"
)

_SEE_THE_REPLICAS = "`modelkit ps` shows the replicas; a firewall may keep this machine from their ports"

_LOST = "see whether the server is still up; the call may have run, so repeat it only where that does no harm"

_DRAINED = "Cancelling all calls"
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")

# What gRPC says of a connection (its own words; the first that matches counts), what that means, and the cure.
_CONNECTION_FAULTS: Final = (
    ("CERTIFICATE_VERIFY_FAILED", "the certificate of {address} is not trusted", "name its authority: tls=TLS(ca_path=...), or --ca"),
    ("Hostname Verification", "the certificate of {address} is for another name", "pass tls=TLS(server_name=...)"),
    ("is not in peer certificate", "the certificate of {address} is for another name", "pass tls=TLS(server_name=...)"),
    ("WRONG_VERSION_NUMBER", "{address} does not speak TLS", "connect without TLS"),
    ("andshake failed", "cannot set up TLS with {address}", "check that the server speaks TLS and trusts this client"),
    (": Socket closed", "{address} hung up at once", "if it speaks TLS, connect with TLS (and a certificate where it asks for one)"),
    ("DNS resolution failed", "cannot find the host of {address}", "check the address"),
    ("errors resolving", "cannot find the host of {address}", "check the address"),
    ("Failed parsing HTTP/2", "what listens at {address} does not speak gRPC", _NAME_THE_SERVER),
    ("Trying to connect an http1.x server", "what listens at {address} does not speak gRPC", _NAME_THE_SERVER),
    ("onnection refused", "cannot connect to {address}: no server listens there", _START_A_SERVER),
    ("ailed to connect", "cannot connect to {address}", _START_A_SERVER),
    ("Socket closed", "the connection to {address} was lost", _LOST),
    ("reset by peer", "the connection to {address} was lost", _LOST),
    (_DRAINED, "{address} ended before it had answered", _LOST),
)  # fmt: skip

# What gRPC's account begins with where no connection came up, so that the call never left. Any other is taken for one
# that may have run, which is the harmless mistake.
_NEVER_SENT: Final = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "errors resolving",
)


# Ray Serve names each call in its trailers. What fails there without a word of modelkit's has not failed in the model,
# and Ray's own words for it are a traceback. Status, meaning, cure, and whether the model may have seen the call.
_RAY_KEY: Final = "request_id"
# A replica that is called directly refuses a call before it has named it.
_RAY_BUSY: Final = "Request dropped due to backpressure"
_RAY_FAULTS: Final = {
    grpc.StatusCode.INTERNAL: (grpc.StatusCode.UNAVAILABLE, "the replica that had the call has ended", _LOST, True),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the deployment is busy: as many calls wait as may wait",
        "try again later, or raise server.max_queue or deployment.max_replicas in config.yaml",
        False,
    ),
}  # fmt: skip


def from_rpc_error(error: Any, *, address: str, deadline: Deadline, request_id: str) -> CallError:
    """Return the error that a failed call means: `error` is what `grpc` or `grpc.aio` raised."""
    code, message = error.code(), error.details() or ""
    trailers = tuple(error.trailing_metadata() or ())
    facts = _read_details(trailers)
    from_server = "request_id" in facts
    facts.setdefault("request_id", request_id)
    cure = facts.pop("cure", "")
    if code is grpc.StatusCode.UNAVAILABLE and not from_server:
        facts["executed"] = not message.startswith(_NEVER_SENT)
        message, cure = _explain_connection(message, cure, address)
    elif _DRAINED in message and not from_server:  # gRPC sends it with several statuses
        code = grpc.StatusCode.UNAVAILABLE
        message, cure = _explain_connection(message, cure, address)
    elif not from_server and code in _RAY_FAULTS and _is_rays(trailers, message):
        code, message, cure, facts["executed"] = _RAY_FAULTS[code]
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and (sizes := _TOO_LARGE.search(message)):
        size, limit = (f"{int(number):,}" for number in sizes.groups())
        message = f"a message of {size} bytes is larger than the {limit} bytes that {address} allows"
        cure = cure or "send less at once, or raise server.max_message_bytes in the model's config.yaml"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline.timeout_s is not None:
        message = f"no answer from {address} within {deadline.timeout_s:g} s"
        cure = cure or "give it more time: timeout_s=..., or --timeout"
    elif not message:
        message = f"the call failed with {code.name}"
    return _build(STATUSES[code], facts.pop("reason", ""), message, cure=cure, **facts)


def _is_rays(trailers: Iterable[tuple[str, Any]], message: str) -> bool:
    return message.startswith(_RAY_BUSY) or any(key == _RAY_KEY for key, _ in trailers)


def _build(kind: type[CallError], reason: str, message: str, **facts: Any) -> CallError:
    if kind is NotFoundError and reason == "METHOD_NOT_FOUND":
        # Its constructor writes the message from the model's methods; here the server has written it already.
        failure = MethodNotFoundError.__new__(MethodNotFoundError)
        CallError.__init__(failure, message, **facts)
        return failure
    if kind is NotFoundError and reason == "MODEL_NOT_FOUND":
        kind = ModelNotFoundError
    return kind(message, **facts)


def _explain_connection(message: str, cure: str, address: str) -> tuple[str, str]:
    """Replace gRPC's account of a connection, written for its own developers, by what it means here."""
    for sign, meaning, remedy in _CONNECTION_FAULTS:
        if sign in message:
            if address.startswith(SCHEME) and remedy in {_START_A_SERVER, _NAME_THE_SERVER}:
                remedy = _SEE_THE_REPLICAS  # noqa: PLW2901
            return meaning.format(address=address), cure or remedy
    return message, cure


def _read_details(trailers: Iterable[tuple[str, str | bytes]]) -> dict[str, Any]:
    """Return the arguments of CallError that the server sent as google.rpc details.

    Read by hand and not by grpc_status, which knows the synchronous API only.
    """
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return _parse_details(value)
    return {}


def _parse_details(value: bytes) -> dict[str, Any]:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    try:
        status = status_pb2.Status.FromString(value)
    except DecodeError:  # from a proxy; the status itself is still good
        return {}
    facts: dict[str, Any] = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            facts["violations"] = [Violation(each.field, each.description) for each in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            facts["retry_after_s"] = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            facts["request_id"] = error_details_pb2.RequestInfo.FromString(detail.value).request_id
        elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            if info.domain == "modelkit":
                facts |= {"reason": info.reason, "cure": info.metadata.get("cure", "")}
                facts["executed"] = info.metadata.get("executed") != "false"
    return facts
