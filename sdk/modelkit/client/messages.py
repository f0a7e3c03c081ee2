"""Requests built and responses read: pure functions between Python values and the contract's messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelkit.codec import decode, encode, encode_arguments
from modelkit.errors import InternalError, InvalidArgumentError
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = [
    "Chunk",
    "Invocation",
    "Response",
    "StreamReader",
    "Usage",
    "encode_item",
    "end_of_items",
    "read_response",
]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call so far. `cached_tokens` are those of the prompt found in a prefix cache."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """The answer of a unary method with what came beside it; `usage` is None where the model reports none.

    `finish_reason` is why a language model ended it ("stop", "length", ...), empty where the model does not say.
    """

    value: Any
    usage: Usage | None
    request_id: str
    metadata: Mapping[str, str]
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message of a stream: the items that came together, and the usage so far (None until the model reports it)."""

    items: tuple[Any, ...]
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call, ready to send."""

    method: str
    arguments: Mapping[str, pb.Value]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, method: str, arguments: Mapping[str, Any], metadata: Mapping[str, str]) -> "Invocation":
        """Encode the arguments. Raises InvalidArgumentError, naming the argument, for one that cannot be sent."""
        try:
            return cls(method, encode_arguments(arguments), metadata)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(str(error)) from error
        except RecursionError:
            raise InvalidArgumentError("an argument is nested too deep to be sent") from None

    def predict_request(self) -> pb.PredictRequest:
        """Build the request of a unary method."""
        return pb.PredictRequest(method=self.method, arguments=self.arguments, metadata=self.metadata)

    def generate_request(self) -> pb.GenerateRequest:
        """Build the request of a server-streaming method."""
        return pb.GenerateRequest(method=self.method, arguments=self.arguments, metadata=self.metadata)

    def stream_start(self) -> pb.StreamRequest:
        """Build the first message of a bidirectional method; it goes out before the first item exists."""
        start = pb.StreamStart(method=self.method, arguments=self.arguments, metadata=self.metadata)
        return pb.StreamRequest(start=start)


def end_of_items() -> pb.StreamRequest:
    """Build the last message of a bidirectional call: what it says of the items before, a half-close alone does not."""
    return pb.StreamRequest(end=True)


def encode_item(item: Any) -> pb.StreamRequest:
    """Build a message with one item of a bidirectional call. Raises InvalidArgumentError."""
    try:
        return pb.StreamRequest(items=[encode(item)])
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"an item of the stream: {error}") from error


def read_response(message: pb.PredictResponse, request_id: str) -> Response:
    """Read the answer of a unary method. Raises InternalError when it breaks the contract."""
    usage = _read_usage(message.usage) if message.HasField("usage") else None
    value = _decode(message.result, request_id)
    return Response(
        value, usage, message.request_id or request_id, dict(message.metadata), message.finish_reason
    )


@dataclass(slots=True)
class StreamReader:
    """Reads the messages of a stream and keeps what they say of the call as a whole."""

    request_id: str
    usage: Usage | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    finish_reason: str = ""
    started: bool = False

    def read(self, message: pb.GenerateResponse | pb.StreamResponse) -> Chunk:
        """Take in one message. Raises InternalError when it breaks the contract."""
        self.started = True
        if message.request_id:
            self.request_id = message.request_id
        if message.HasField("usage"):
            self.usage = _read_usage(message.usage)
        if message.metadata:
            self.metadata.update(message.metadata)
        if message.finish_reason:
            self.finish_reason = message.finish_reason
        return Chunk(tuple(_decode(item, self.request_id) for item in message.items), self.usage)


def _read_usage(message: pb.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.output_tokens, message.cached_tokens)


def _decode(value: pb.Value, request_id: str) -> Any:
    try:
        return decode(value)
    except ValueError as error:
        raise InternalError(f"the server's answer cannot be read: {error}", request_id=request_id) from error
