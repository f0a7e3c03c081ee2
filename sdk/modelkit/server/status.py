"""Errors to gRPC statuses: the canonical code, the message, and google.rpc details for programs to read."""

import re

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from modelkit.errors import CallError

__all__ = ["DETAILS_KEY", "error_reason", "status_code", "status_message", "status_trailer"]

# Where gRPC keeps the google.rpc.Status of a failed call (https://github.com/grpc/proposal/blob/master/L44).
DETAILS_KEY = "grpc-status-details-bin"
# The trailer travels as one HTTP/2 header; many clients take 8 KiB of headers in all.
_MAX_VIOLATIONS = 16
_MAX_MESSAGE_CHARS = 2000


def status_code(error: CallError) -> grpc.StatusCode:
    """Return the canonical code of an error."""
    return grpc.StatusCode[error.grpc_status]


def status_message(error: CallError) -> str:
    """Return the error's message as it goes on the wire: one that is too long for a header is cut."""
    text = error.message
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"


def status_trailer(error: CallError, request_id: str) -> tuple[str, bytes]:
    """Return the trailing metadata that carries the details: ErrorInfo, RequestInfo, and what the error has beside."""
    code, _ = status_code(error).value
    status = status_pb2.Status(code=code, message=status_message(error))
    for detail in _details(error, request_id):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return DETAILS_KEY, status.SerializeToString()


def _details(error: CallError, request_id: str) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error_reason(error), domain="modelkit")
    if error.cure:
        info.metadata["cure"] = error.cure[:_MAX_MESSAGE_CHARS]
    details: list[Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if error.violations:
        request = error_details_pb2.BadRequest()
        for violation in error.violations[:_MAX_VIOLATIONS]:
            description = violation.description[:_MAX_MESSAGE_CHARS]
            request.field_violations.add(field=violation.field, description=description)
        details.append(request)
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def error_reason(error: CallError) -> str:
    """Return the class's name as google.rpc spells reasons: MethodNotFoundError is METHOD_NOT_FOUND."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
