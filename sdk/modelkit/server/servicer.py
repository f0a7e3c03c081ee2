"""The gRPC adapter: protobuf in, the predictor in the middle, protobuf out. It decides nothing about the model."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias

import grpc

from modelkit import codec
from modelkit.computes.endpoint import told_timeout_s
from modelkit.errors import CallError, InternalError, InvalidArgumentError, OverloadedError, Violation
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.model import Request, Usage
from modelkit.server.description import describe_signature
from modelkit.server.logs import REQUEST_ID_HEADER, log_call, request_id_from
from modelkit.server.predictor import Predictor
from modelkit.server.status import status_code, status_message, status_trailer
from modelkit.server.writer import StreamWriter, Totals

__all__ = ["Servicer"]

_log = logging.getLogger("modelkit.server")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
StreamMessage: TypeAlias = type[pb.GenerateResponse] | type[pb.StreamResponse]


class Servicer(pb_grpc.InferenceServiceServicer):
    """Serves one predictor as modelkit.inference.v1.InferenceService."""

    def __init__(
        self,
        predictor: Predictor,
        identity: pb.DescribeResponse,
        *,
        max_message_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._predictor = predictor
        self._max_batch_bytes = max_message_bytes // 2
        self._identity = identity
        methods = [describe_signature(signature) for signature in predictor.signatures.values()]
        self._identity.methods.extend(methods)
        self._num_opening = 0

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: ARG002, N802
        """Say what the model is."""
        response = pb.DescribeResponse()
        response.CopyFrom(self._identity)
        response.state = pb.ModelState.Value(f"MODEL_STATE_{self._predictor.state.name}")  # type: ignore[assignment]
        return response

    async def Predict(self, request: pb.PredictRequest | None, context: Context) -> pb.PredictResponse:  # noqa: N802
        """Call a unary method."""
        if request is None:
            await _refuse_malformed(context)
        call = _begin(request.method or "predict", request.metadata, context)
        started = time.perf_counter()
        try:
            result = await self._predictor.predict(call, _arguments(request.arguments))
            response = pb.PredictResponse(
                result=self._encode(call.method, result),
                usage=_usage(call.usage),
                request_id=call.id,
                finish_reason=call.finish_reason,
            )
            if call.response_metadata:
                response.metadata.update(_strings(call.response_metadata))
        except Exception as error:  # noqa: BLE001 - nothing leaves but a status that is meant to
            await _abort(context, call, error, started)
        except asyncio.CancelledError:
            log_call(call, "CANCELLED", started)
            raise
        log_call(call, "OK", started)
        return response

    async def Generate(self, request: pb.GenerateRequest | None, context: Context) -> None:  # noqa: N802
        """Call a server-streaming method."""
        if request is None:
            await _refuse_malformed(context)
        call = _begin(request.method or "generate", request.metadata, context)

        def start() -> AsyncGenerator[Any, None]:
            return self._predictor.generate(call, _arguments(request.arguments))

        await self._run_stream(call, context, start, pb.GenerateResponse)

    async def Stream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamRequest | None], context: Context
    ) -> None:
        """Call a bidirectional method."""
        first = await self._opening(request_iterator, context)
        if first is None:
            await _refuse_malformed(context)
        opening = first.start
        call = _begin(opening.method or "stream", opening.metadata, context)

        def start() -> AsyncGenerator[Any, None]:
            if not first.HasField("start"):
                raise InvalidArgumentError("the first message of a Stream call must have 'start'")
            incoming = _incoming(call, first, request_iterator)
            return self._predictor.stream(call, _arguments(opening.arguments), incoming)

        await self._run_stream(call, context, start, pb.StreamResponse)

    @staticmethod
    def _encode(method: str, value: Any) -> pb.Value:
        """Encode a result, or one item of it. Raises InternalError where it has no place in the contract."""
        try:
            return codec.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            too_deep = isinstance(error, RecursionError)
            reason = "it is nested too deeply, or contains itself" if too_deep else str(error)
            raise InternalError(
                f"the result of '{method}' cannot be sent: {reason}",
                cure="return a value of the annotated type",
            ) from None

    async def _opening(
        self, request_iterator: AsyncIterator[pb.StreamRequest | None], context: Context
    ) -> pb.StreamRequest | None:
        """Return the first message; a caller that sends none in time is refused, and so is one too many of them."""
        gate = self._predictor.gate
        started = time.perf_counter()
        error: CallError
        if self._num_opening >= gate.max_concurrency + gate.max_queue:
            error = OverloadedError("too many calls of Stream have not said what they call", executed=False)
            await _abort(context, _begin("", None, context), error, started)
        self._num_opening += 1
        try:
            async with asyncio.timeout(_OPENING_TIMEOUT_S):
                return await anext(aiter(request_iterator), _NO_REQUEST)
        except TimeoutError:
            error = InvalidArgumentError(
                f"no first message came within {_OPENING_TIMEOUT_S:g} s", executed=False
            )
            await _abort(context, _begin("", None, context), error, started)
        finally:
            self._num_opening -= 1

    async def _run_stream(
        self,
        call: Request,
        context: Context,
        start: Callable[[], AsyncGenerator[Any, None]],
        message: StreamMessage,
    ) -> None:
        """Write a method's items until it ends, then the totals; however it ends, its generator is closed."""
        started = time.perf_counter()
        sender = _Sender(call, context, message)
        writer = StreamWriter(sender.send, max_bytes=self._max_batch_bytes)
        try:
            async with aclosing(start()) as items:
                async for item in items:
                    await writer.put(self._encode(call.method, item), call.progress)
            await sender.send_last(await writer.flush())
        except asyncio.CancelledError:
            await writer.abort()
            log_call(call, "CANCELLED", started)
            raise
        except Exception as error:  # noqa: BLE001 - nothing leaves but a status that is meant to
            await _deliver_before_error(writer, sender)
            await _abort(context, call, error, started)
        log_call(call, "OK", started)


_NO_REQUEST: Final = pb.StreamRequest()
# How long a caller may take to say what it calls: until then the call is not counted at the gate.
_OPENING_TIMEOUT_S: Final = 10.0
# How long a half-closed stream without an `end` is given to turn out to be a cancelled one.
_CANCELLATION_GRACE_S: Final = 0.05


def _malformed() -> InvalidArgumentError:
    return InvalidArgumentError(
        "the message cannot be read: it is not one of modelkit.inference.v1, or its values are nested too deeply",
        cure=f"nest lists and dicts at most {codec.MAX_DEPTH} deep",
    )


async def _refuse_malformed(context: Context) -> NoReturn:
    await _abort(context, _begin("", None, context), _malformed(), time.perf_counter())


# ------------------------------------------------------------------------------------------------- a call's begin, end


def _begin(method: str, metadata: Any, context: Context) -> Request:
    """Make the Request of a call; its id is the caller's, or a new one."""
    sent = context.invocation_metadata() or ()
    request_id = next(
        (value for key, value in sent if key == REQUEST_ID_HEADER and isinstance(value, str)), ""
    )
    remaining: float | None = context.time_remaining()
    if remaining is None:  # a proxy in between may have kept the deadline to itself
        remaining = told_timeout_s(sent)
    deadline = None if remaining is None else time.monotonic() + remaining
    return Request(request_id_from(request_id), method, dict(metadata) if metadata else {}, deadline)


async def _abort(context: Context, call: Request, error: Exception, started: float) -> NoReturn:
    """Answer with an error. One that is no CallError comes from writing the answer, not from the method."""
    if context.cancelled():  # nobody is there to be told, and writing failed because of it
        log_call(call, "CANCELLED", started)
        raise asyncio.CancelledError
    if not isinstance(error, CallError):
        cause, error = error, InternalError(f"the answer of '{call.method}' cannot be sent")
        error.__cause__ = cause
    log_call(call, error.grpc_status, started, error)
    trailer = status_trailer(error, call.id)
    await context.abort(status_code(error), status_message(error), trailing_metadata=(trailer,))


# ------------------------------------------------------------------------------------------------------------- streams


async def _deliver_before_error(writer: StreamWriter, sender: "_Sender") -> None:
    """What the method yielded before it failed reaches the caller before the error does."""
    try:
        items = await writer.flush()
        if items:
            await sender.send(items, sender.totals())
    except Exception:  # noqa: BLE001 - writing is what failed, or the caller has gone
        _log.debug("items before an error were not delivered", exc_info=True)


class _Sender:
    """Builds the messages of one stream. Totals travel when they have changed, the request's id with the first."""

    def __init__(self, call: Request, context: Context, message: StreamMessage) -> None:
        self._call = call
        self._write: Callable[[Any], Awaitable[None]] = context.write
        self._message = message
        self._sent_usage = (0, 0, 0)
        self._first = True

    def totals(self) -> Totals:
        """Return the usage as it is now."""
        return self._call.usage.totals()

    def send(self, items: list[pb.Value], totals: Totals) -> Awaitable[None]:
        """Send one message with these items."""
        return self._write(self._build(items, totals))

    async def send_last(self, items: list[pb.Value]) -> None:
        """Send what is left with the model's metadata; nothing where there is nothing to say."""
        message = self._build(items, self.totals())
        message.finish_reason = self._call.finish_reason
        if self._call.response_metadata:
            message.metadata.update(_strings(self._call.response_metadata))
        if message.ByteSize():
            await self._write(message)

    def _build(self, items: list[pb.Value], totals: Totals) -> pb.GenerateResponse | pb.StreamResponse:
        message = self._message(items=items)
        if totals != self._sent_usage:
            self._sent_usage = totals
            message.usage.prompt_tokens, message.usage.output_tokens, message.usage.cached_tokens = totals
        if self._first:
            self._first = False
            message.request_id = self._call.id
        return message


async def _incoming(
    call: Request, first: pb.StreamRequest, rest: AsyncIterator[pb.StreamRequest | None]
) -> AsyncGenerator[Any, None]:
    """Yield the caller's items one by one; several may have come in one message."""
    for value in first.items:
        yield _item(call, value)
    if first.end:
        return
    async for message in rest:
        if message is None:
            raise _malformed()
        if message.HasField("start"):
            raise InvalidArgumentError("only the first message of a Stream call may have 'start'")
        for value in message.items:
            yield _item(call, value)
        if message.end:
            return
    # A plain client's end; or the caller has gone, which gRPC tells a moment after it has ended the messages.
    await asyncio.sleep(_CANCELLATION_GRACE_S)


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
