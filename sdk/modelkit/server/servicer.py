"""The gRPC adapter: protobuf in, the predictor in the middle, protobuf out. It decides nothing about the model."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from modelkit import codec
from modelkit.errors import CallError, InternalError, InvalidArgumentError, Violation
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.model import REQUEST, Request, Usage
from modelkit.server.description import describe_signature
from modelkit.server.logs import REQUEST_ID_HEADER, log_call, request_id_from
from modelkit.server.predictor import Predictor, State
from modelkit.server.status import status_code, status_message, status_trailer
from modelkit.server.writer import StreamWriter

__all__ = ["Servicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
StreamMessage: TypeAlias = type[pb.GenerateResponse] | type[pb.StreamResponse]


class Servicer(pb_grpc.InferenceServiceServicer):
    """Serves one predictor as modelkit.inference.v1.InferenceService."""

    def __init__(self, predictor: Predictor, identity: pb.DescribeResponse) -> None:
        self._predictor = predictor
        self._identity = identity
        methods = [describe_signature(signature) for signature in predictor.signatures.values()]
        self._identity.methods.extend(methods)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: ARG002, N802
        """Say what the model is."""
        response = pb.DescribeResponse()
        response.CopyFrom(self._identity)
        response.ready = self._predictor.state is State.READY
        return response

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:  # noqa: N802
        """Call a unary method."""
        call = _begin(request.method or "predict", request.metadata, context)
        started = time.perf_counter()
        try:
            result = await self._predictor.predict(call, _arguments(request.arguments))
            response = pb.PredictResponse(
                result=_result(call.method, result), usage=_usage(call.usage), request_id=call.id
            )
            if call.response_metadata:
                response.metadata.update(_strings(call.response_metadata))
        except CallError as error:
            await _abort(context, call, error, started)
        except asyncio.CancelledError:
            log_call(call, "CANCELLED", started)
            raise
        log_call(call, "OK", started)
        return response

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """Call a server-streaming method."""
        call = _begin(request.method or "generate", request.metadata, context)

        def start() -> AsyncGenerator[Any, None]:
            return self._predictor.generate(call, _arguments(request.arguments))

        await _run_stream(call, context, start, pb.GenerateResponse)

    async def Stream(self, request_iterator: AsyncIterator[pb.StreamRequest], context: Context) -> None:  # noqa: N802
        """Call a bidirectional method."""
        first: pb.StreamRequest | None = await anext(aiter(request_iterator), None)
        opening = first.start if first else pb.StreamStart()
        call = _begin(opening.method or "stream", opening.metadata, context)

        def start() -> AsyncGenerator[Any, None]:
            if not first or not first.HasField("start"):
                raise InvalidArgumentError("the first message of a Stream call must have 'start'")
            incoming = _incoming(call, first, request_iterator)
            return self._predictor.stream(call, _arguments(opening.arguments), incoming)

        await _run_stream(call, context, start, pb.StreamResponse)


# ------------------------------------------------------------------------------------------------- a call's begin, end


def _begin(method: str, metadata: Any, context: Context) -> Request:
    """Make the Request of a call; its id is the caller's, or a new one."""
    request_id = ""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str):
            request_id = value
    remaining = context.time_remaining()
    call = Request(
        id=request_id_from(request_id),
        method=method,
        metadata=dict(metadata) if metadata else {},
        deadline=None if remaining is None else time.monotonic() + remaining,
    )
    REQUEST.set(call)
    return call


async def _abort(context: Context, call: Request, error: CallError, started: float) -> None:
    log_call(call, error.grpc_status, started, error)
    trailer = status_trailer(error, call.id)
    await context.abort(status_code(error), status_message(error), trailing_metadata=(trailer,))


# ------------------------------------------------------------------------------------------------------------- streams


async def _run_stream(
    call: Request, context: Context, start: Callable[[], AsyncGenerator[Any, None]], message: StreamMessage
) -> None:
    """Write a method's items until it ends, then the totals; however it ends, its generator is closed."""
    started = time.perf_counter()
    sender = _Sender(call, context, message)
    writer = StreamWriter(sender.send)
    try:
        async with aclosing(start()) as items:
            async for item in items:
                await writer.put(_result(call.method, item))
        await sender.send_last(await writer.flush())
    except CallError as error:
        await _deliver_before_error(writer, sender)
        await _abort(context, call, error, started)
    except asyncio.CancelledError:
        await writer.abort()
        log_call(call, "CANCELLED", started)
        raise
    log_call(call, "OK", started)


async def _deliver_before_error(writer: StreamWriter, sender: "_Sender") -> None:
    """What the method yielded before it failed reaches the caller before the error does."""
    items = await writer.flush()
    if items:
        await sender.send(items)


class _Sender:
    """Builds the messages of one stream. Totals travel when they have changed, the request's id with the first."""

    def __init__(self, call: Request, context: Context, message: StreamMessage) -> None:
        self._call = call
        self._write: Callable[[Any], Awaitable[None]] = context.write
        self._message = message
        self._sent_usage = (0, 0, 0)
        self._first = True

    def send(self, items: list[pb.Value]) -> Awaitable[None]:
        """Send one message with these items."""
        return self._write(self._build(items))

    async def send_last(self, items: list[pb.Value]) -> None:
        """Send what is left with the model's metadata; nothing where there is nothing to say."""
        message = self._build(items)
        if self._call.response_metadata:
            message.metadata.update(_strings(self._call.response_metadata))
        if message.ByteSize():
            await self._write(message)

    def _build(self, items: list[pb.Value]) -> pb.GenerateResponse | pb.StreamResponse:
        message = self._message(items=items)
        usage = self._call.usage
        totals = (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
        if totals != self._sent_usage:
            self._sent_usage = totals
            message.usage.prompt_tokens, message.usage.output_tokens, message.usage.cached_tokens = totals
        if self._first:
            self._first = False
            message.request_id = self._call.id
        return message


async def _incoming(
    call: Request, first: pb.StreamRequest, rest: AsyncIterator[pb.StreamRequest]
) -> AsyncGenerator[Any, None]:
    """Yield the caller's items one by one; several may have come in one message."""
    for value in first.items:
        yield _item(call, value)
    async for message in rest:
        if message.HasField("start"):
            raise InvalidArgumentError("only the first message of a Stream call may have 'start'")
        for value in message.items:
            yield _item(call, value)


# -------------------------------------------------------------------------------------------------------------- values


def _arguments(arguments: Any) -> dict[str, Any]:
    try:
        return codec.decode_arguments(arguments)
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        raise InvalidArgumentError(f"bad argument {error}", violations=[Violation(name, reason)]) from error


def _item(call: Request, value: pb.Value) -> Any:
    try:
        return codec.decode(value)
    except ValueError as error:
        raise InvalidArgumentError(f"bad item in the stream of '{call.method}': {error}") from error


def _result(method: str, value: Any) -> pb.Value:
    try:
        return codec.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        reason = (
            str(error)
            if not isinstance(error, RecursionError)
            else "it is nested too deeply, or contains itself"
        )
        raise InternalError(
            f"the result of '{method}' cannot be sent: {reason}", cure="return a value of the annotated type"
        ) from None


def _usage(usage: Usage) -> pb.Usage | None:
    if not (usage.prompt_tokens or usage.output_tokens or usage.cached_tokens):
        return None
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _strings(metadata: dict[str, Any]) -> Iterable[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in metadata.items()]
