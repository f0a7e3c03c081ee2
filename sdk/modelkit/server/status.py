"""Errors to gRPC statuses: the canonical code, the message, and google.rpc details for programs to read."""

import re
from collections.abc import Sequence

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from modelkit.errors import CallError, Violation

__all__ = ["DETAILS_KEY", "error_reason", "status_code", "status_message", "status_trailer"]

# Where gRPC keeps the google.rpc.Status of a failed call (https://github.com/grpc/proposal/blob/master/L44).
DETAILS_KEY = "grpc-status-details-bin"
# Many clients take 8 KiB of trailers in all and drop a call that has more. In them the message takes up to three bytes
# for each of its own (percent encoding), and the details four for three (base64).
_MAX_MESSAGE_BYTES = 1000
_MAX_CURE_BYTES = 500
_MAX_FIELD_BYTES = 200
_MAX_DETAILS_BYTES = 3000
_ANY_BYTES = 64


def status_code(error: CallError) -> grpc.StatusCode:
    """Return the canonical code of an error."""
    return grpc.StatusCode[error.grpc_status]


def status_message(error: CallError) -> str:
    """Return the error's message as it goes on the wire: one that is too long for a header is cut."""
    return _cut(error.message, _MAX_MESSAGE_BYTES)


def status_trailer(error: CallError, request_id: str) -> tuple[str, bytes]:
    """Return the trailing metadata that carries the details: ErrorInfo, RequestInfo, and what the error has beside."""
    code, _ = status_code(error).value
    status = status_pb2.Status(code=code, message=status_message(error))
    for detail in _details(error, request_id):
        status.details.add().Pack(detail)
    if error.violations:
        room = _MAX_DETAILS_BYTES - status.ByteSize()
        status.details.add().Pack(_bad_request(error.violations, room))
    return DETAILS_KEY, status.SerializeToString()


def _cut(text: str, max_bytes: int) -> str:
    """Return as much of a text as fits, without the lone surrogates that UTF-8 has no place for."""
    data = text.encode(errors="replace")
    if len(data) > max_bytes:
        data = data[: max_bytes - len("…".encode())] + "…".encode()
    return data.decode(errors="ignore")


def _details(error: CallError, request_id: str) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error_reason(error), domain="modelkit")
    if not error.executed:
        info.metadata["executed"] = "false"
    if error.cure:
        info.metadata["cure"] = _cut(error.cure, _MAX_CURE_BYTES)
    details: list[Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _bad_request(violations: Sequence[Violation], max_bytes: int) -> error_details_pb2.BadRequest:
    """Return the violations that there is room for; the first always."""
    request = error_details_pb2.BadRequest()
    for violation in violations:
        field = _cut(violation.field, _MAX_FIELD_BYTES)
        request.field_violations.add(field=field, description=_cut(violation.description, _MAX_CURE_BYTES))
        if request.ByteSize() > max_bytes - _ANY_BYTES and len(request.field_violations) > 1:
            del request.field_violations[-1]
            break
    return request


def error_reason(error: CallError) -> str:
    """Return the class's name as google.rpc spells reasons: MethodNotFoundError is METHOD_NOT_FOUND."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
