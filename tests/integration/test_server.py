"""The real server over a real channel: kinds of method, errors, cancellation, flow control, admission, drain."""

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpc_server import details_of, eventually, read, serving
from modelkit import Field, Model, codec, errors, method
from modelkit.inference.v1 import inference_pb2 as pb

MEGABYTE = b"x" * 1_000_000
# The requirement: cancellation reaches the model within this time.
CANCELLATION_S = 0.1


class Zoo(Model):
    """One method of every kind, and what the tests want to know of their ends."""

    def __init__(self):
        self.ended = {}
        self.produced = 0
        self.started = asyncio.Event()
        self.release = threading.Event()

    def end(self, name):
        self.ended[name] = time.monotonic()

    @method
    def unary(self, text: str, times: Annotated[int, Field(ge=1, le=9)] = 1) -> str:
        self.report_usage(prompt_tokens=3, output_tokens=times)
        self.request.response_metadata["kind"] = "sync"
        return text * times

    @method
    async def unary_async(self, text: str) -> dict[str, Any]:
        return {"text": text, "id": self.request.id, "metadata": dict(self.request.metadata)}

    @method
    def count(self, to: int, fail_at: int = -1) -> Iterator[int]:
        for number in range(to):
            if number == fail_at:
                raise ValueError("secret in /home/author/model.py")
            self.report_usage(output_tokens=number + 1)
            yield number

    @method
    async def count_async(self, to: int, fail_at: int = -1) -> AsyncIterator[int]:
        for number in range(to):
            if number == fail_at:
                raise errors.NotFoundError("no such number")
            self.report_usage(output_tokens=number + 1)
            yield number

    @method
    def double(self, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield number * 2

    @method
    async def double_async(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield number * 2

    @method
    async def first_only(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        yield await anext(aiter(numbers))

    @method
    def first_only_sync(self, numbers: Iterator[int]) -> Iterator[int]:
        yield next(numbers)

    @method
    def fail(self, how: str) -> None:
        if how == "exit":
            sys.exit(3)
        if how == "surrogate":
            raise errors.NotFoundError("\ud800")
        raise getattr(errors, how)("on purpose", cure="do better", retry_after_s=1.5)

    @method
    async def fail_async(self, how: str) -> int:
        if how == "exit":
            sys.exit(3)
        if how == "cancelled":
            raise asyncio.CancelledError
        raise RuntimeError("password in /etc/secret")

    @method
    async def wait(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.end("wait")

    @method
    def wait_sync(self) -> None:
        while not self.request.cancelled:
            time.sleep(0.002)
        self.end("wait_sync")

    @method
    async def drip(self) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # a `finally` may await
            self.end("drip")

    @method
    def drip_sync(self) -> Iterator[int]:
        try:
            for number in range(100_000):
                yield number
                time.sleep(0.002)
        finally:
            self.end("drip_sync")

    @method
    async def listen(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for number in numbers:
                yield number
        finally:
            self.end("listen")

    @method
    def listen_sync(self, numbers: Iterator[int]) -> Iterator[int]:
        try:
            yield from numbers
        finally:
            self.end("listen_sync")

    @method
    def heavy(self, num: int) -> Iterator[bytes]:
        for _ in range(num):
            self.produced += 1
            yield MEGABYTE

    @method
    async def heavy_async(self, num: int) -> AsyncIterator[bytes]:
        for _ in range(num):
            self.produced += 1
            yield MEGABYTE

    @method
    def stop_iteration(self) -> int:
        return next(iter(()))

    @method
    def poll(self) -> Iterator[int]:
        yield 1
        while not self.request.cancelled:
            time.sleep(0.002)
        self.end("poll")

    @method
    def promise(self, value: Any) -> float:
        return value

    @method
    def hidden_coroutine(self) -> int:
        async def answer():
            return 7

        return answer()

    @method
    async def drain_all(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        total = 0
        async for number in numbers:
            total += number
        self.end("took the cancellation for the end" if total == 1 else "ended")
        yield total

    @method
    def drain_all_sync(self, numbers: Iterator[int]) -> Iterator[int]:
        total = sum(numbers)
        self.end("took the cancellation for the end" if total == 1 else "ended")
        yield total

    @method
    def why(self) -> Iterator[int]:
        yield 1
        self.request.finish_reason = "length"

    @method
    def blocked(self) -> str:
        self.release.wait(30)
        return "released"

    @method
    def take(self, value: Any) -> Any:
        return value

    @method
    def odd(self, how: str) -> Any:
        if how == "usage":
            self.report_usage(output_tokens=-1)
        if how == "metadata":
            self.request.response_metadata["\ud800"] = "x"
        if how == "deep":
            value: Any = 1
            for _ in range(60):
                value = [value]
            return value
        return object() if how == "object" else 1


# --------------------------------------------------------------------------------------------------------------- kinds


async def test_unary_methods_answer_with_usage_metadata_and_the_given_request_id():
    async with serving(Zoo) as peer:
        request = pb.PredictRequest(
            method="unary", arguments=codec.encode_arguments({"text": "ab", "times": 2})
        )
        response = await peer.stub.Predict(request, metadata=(("x-request-id", "mine"),))
        assert codec.decode(response.result) == "abab"
        assert (response.usage.prompt_tokens, response.usage.output_tokens) == (3, 2)
        assert dict(response.metadata) == {"kind": "sync"}
        assert response.request_id == "mine"


async def test_a_request_id_is_made_up_and_given_to_the_model():
    async with serving(Zoo) as peer:
        request = pb.PredictRequest(method="unary_async", metadata={"user": "ada"})
        request.arguments["text"].CopyFrom(codec.encode("x"))
        answers = [await peer.stub.Predict(request) for _ in range(2)]
        ids = [answer.request_id for answer in answers]
        assert len(set(ids)) == 2
        assert all(len(request_id) == 16 for request_id in ids)
        assert codec.decode(answers[0].result) == {"text": "x", "id": ids[0], "metadata": {"user": "ada"}}


@pytest.mark.parametrize("name", ["count", "count_async"])
async def test_streams_arrive_in_order_with_running_totals(name):
    async with serving(Zoo) as peer:
        messages = [message async for message in peer.generate(name, to=500)]
        items = [codec.decode(item) for message in messages for item in message.items]
        assert items == list(range(500))
        assert len(messages[0].items) == 1
        assert [bool(message.request_id) for message in messages] == [True] + [False] * (len(messages) - 1)
        num_items = 0
        for (
            message
        ) in messages:  # a message's totals are those of its own items, however far ahead the generator is
            num_items += len(message.items)
            assert message.usage.output_tokens == (num_items if message.items else 0)


@pytest.mark.parametrize("name", ["double", "double_async"])
async def test_bidirectional_calls_interleave_strictly(name):
    async with serving(Zoo) as peer:
        call = await peer.stream(name)
        for number in range(50):
            await call.write(pb.StreamRequest(items=[codec.encode(number)]))
            assert await read(call) == [number * 2]
        await call.done_writing()
        assert await read(call) is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_why_an_answer_ended_comes_with_the_last_message():
    async with serving(Zoo) as peer:
        messages = [message async for message in peer.generate("why")]
        assert [message.finish_reason for message in messages][-1] == "length"
        assert not any(message.finish_reason for message in messages[:-1])


async def test_an_escaped_stop_iteration_is_an_error_and_not_a_hang():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await peer.stub.Predict(pb.PredictRequest(method="stop_iteration"), timeout=5)
        assert failure.value.code() is grpc.StatusCode.INTERNAL
        assert peer.server.predictor.gate.num_running == 0


@pytest.mark.parametrize(("value", "sent"), [(3, 3.0), (2.5, 2.5)])
async def test_a_whole_number_is_sent_as_the_float_that_the_annotation_promises(value, sent):
    async with serving(Zoo) as peer:
        response = await peer.stub.Predict(
            pb.PredictRequest(method="promise", arguments={"value": codec.encode(value)})
        )
        assert response.result.WhichOneof("kind") == "float_value"
        assert response.result.float_value == sent


@pytest.mark.parametrize("value", ["3", True, None, [1.0]])
async def test_a_result_that_breaks_its_annotation_is_the_models_fault(value):
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError, match="promises float and gave") as failure:
            await peer.stub.Predict(
                pb.PredictRequest(method="promise", arguments={"value": codec.encode(value)})
            )
        assert failure.value.code() is grpc.StatusCode.INTERNAL


async def test_a_coroutine_behind_a_plain_function_is_awaited():
    async with serving(Zoo) as peer:
        response = await peer.stub.Predict(pb.PredictRequest(method="hidden_coroutine"))
        assert codec.decode(response.result) == 7


@pytest.mark.parametrize("name", ["drain_all", "drain_all_sync"])
async def test_a_cancelled_call_is_never_taken_for_the_end_of_its_items(name):
    async with serving(Zoo) as peer:
        call = await peer.stream(name, 1)
        await asyncio.sleep(0.1)
        call.cancel()
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)
        assert peer.server.predictor.model.ended == {}


@pytest.mark.parametrize("name", ["drain_all", "drain_all_sync"])
@pytest.mark.parametrize("says_so", [True, False])
async def test_the_end_of_the_items_is_said_or_is_the_half_close(name, says_so):
    async with serving(Zoo) as peer:
        call = await peer.stream(name, 1)
        await call.write(pb.StreamRequest(items=[codec.encode(2)], end=says_so))
        if not says_so:
            await call.done_writing()
        assert await read(call) == [3]


async def test_callers_that_never_say_what_they_call_are_bounded_and_refused(monkeypatch):
    monkeypatch.setattr("modelkit.server.servicer._OPENING_TIMEOUT_S", 0.3)
    async with serving(Zoo, max_concurrency=1, max_queue=1) as peer:
        calls = [peer.stub.Stream() for _ in range(3)]
        codes = await asyncio.gather(*(call.code() for call in calls))
        assert sorted(code.name for code in codes) == [
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "RESOURCE_EXHAUSTED",
        ]


@pytest.mark.parametrize("name", ["double", "double_async"])
async def test_items_of_the_first_message_count_and_several_may_come_in_one(name):
    async with serving(Zoo) as peer:
        call = await peer.stream(name, 1, 2)
        await call.write(pb.StreamRequest(items=[codec.encode(3), codec.encode(4)]))
        await call.done_writing()
        assert [codec.decode(item) async for message in call for item in message.items] == [2, 4, 6, 8]


@pytest.mark.parametrize("name", ["first_only", "first_only_sync"])
async def test_a_model_may_end_before_its_caller(name):
    async with serving(Zoo) as peer:
        call = await peer.stream(name, 5)
        assert await read(call) == [5]
        assert await read(call) is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


async def test_describe_answers_before_the_model_is_ready_and_predict_does_not():
    async with serving(Zoo, load=False) as peer:
        description = await peer.stub.Describe(pb.DescribeRequest())
        assert description.state == pb.MODEL_STATE_LOADING
        assert [each.name for each in description.methods] == sorted(
            each.name for each in description.methods
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", text="x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(caught.value)["RetryInfo"].retry_delay.seconds == 1
        await peer.server.load()
        assert (await peer.stub.Describe(pb.DescribeRequest())).state == pb.MODEL_STATE_READY
        assert await peer.predict("unary", text="x") == "x"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (cls.__name__, cls.grpc_status)
        for cls in vars(errors).values()
        if isinstance(cls, type)
        and issubclass(cls, errors.CallError)
        and cls not in (errors.CallError, errors.MethodNotFoundError)
    ],
)
async def test_each_error_class_has_its_code_and_details(how, code):
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("fail", how=how, metadata=(("x-request-id", "r7"),))
        assert caught.value.code().name == code
        assert caught.value.details() == "on purpose"
        details = details_of(caught.value)
        assert details["ErrorInfo"].domain == "modelkit"
        assert details["ErrorInfo"].metadata["cure"] == "do better"
        assert details["RequestInfo"].request_id == "r7"
        assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize(("name", "how"), [("fail", "exit"), ("fail_async", "exit"), ("fail_async", "other")])
async def test_an_error_of_the_author_tells_its_class_and_no_more_and_the_server_lives(name, how):
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict(name, how=how)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "raised" in caught.value.details()
        said = caught.value.details() + str(caught.value.trailing_metadata())
        assert "secret" not in said
        assert ".py" not in said.replace("model.py", "")
        assert "Traceback" not in said
        assert await peer.predict("unary", text="still here") == "still here"


async def test_a_cancelled_error_of_the_authors_own_is_an_error_not_a_cancellation():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("fail_async", how="cancelled")
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_bad_arguments_are_all_named():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", texts="a", times=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        fields = {v.field: v.description for v in details_of(caught.value)["BadRequest"].field_violations}
        assert fields.keys() == {"texts", "times", "text"}
        assert "did you mean 'text'?" in fields["texts"]
        assert fields["text"] == "is required"


@pytest.mark.parametrize(
    ("method_name", "rpc", "code", "words"),
    [
        ("unari", "Predict", "NOT_FOUND", "did you mean 'unary'?"),
        ("x" * 50_000, "Predict", "NOT_FOUND", "the model has no method"),
        ("", "Predict", "NOT_FOUND", "no method 'predict'"),
        ("load", "Predict", "NOT_FOUND", "no method 'load'"),
        ("__class__", "Predict", "NOT_FOUND", "no method '__class__'"),
        ("count", "Predict", "UNIMPLEMENTED", "called with Generate, not Predict"),
        ("unary", "Generate", "UNIMPLEMENTED", "called with Predict, not Generate"),
    ],
)
async def test_a_method_that_cannot_be_called_so(method_name, rpc, code, words):
    async with serving(Zoo) as peer:
        call = peer.predict if rpc == "Predict" else peer.items
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(method_name)
        assert caught.value.code().name == code
        assert words in caught.value.details()
        assert details_of(caught.value)["RequestInfo"].request_id


@pytest.mark.parametrize(
    ("name", "code"), [("count", grpc.StatusCode.INTERNAL), ("count_async", grpc.StatusCode.NOT_FOUND)]
)
@pytest.mark.parametrize("fail_at", [0, 1, 200])
async def test_items_before_an_error_arrive_before_it(name, code, fail_at):
    async with serving(Zoo) as peer:
        call = peer.generate(name, to=1000, fail_at=fail_at)
        items = []

        async def read_on():
            async for message in call:
                items.extend(codec.decode(item) for item in message.items)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on()
        assert items == list(range(fail_at))
        assert caught.value.code() is code
        assert "secret" not in caught.value.details()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", ["double", "double_async"])
async def test_answers_to_earlier_items_arrive_before_the_error_of_a_bad_one(name, at_once):
    values = [codec.encode(value) for value in (1, 2, "x", 4)]
    start = pb.StreamStart(method=name)
    if at_once:
        requests = [pb.StreamRequest(start=start, items=values, end=True)]
    else:
        requests = [pb.StreamRequest(start=start), *(pb.StreamRequest(items=[value]) for value in values)]
    async with serving(Zoo) as peer:
        call = peer.stub.Stream(iter(requests))
        answers = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in call:
                answers += [codec.decode(item) for item in message.items]
        assert answers == [2, 4]
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["double", "double_async"])
@pytest.mark.parametrize("bad", [pb.Value(string_value="x"), pb.Value()])
async def test_a_bad_item_ends_a_bidirectional_call_with_its_name(name, bad):
    async with serving(Zoo) as peer:
        call = await peer.stream(name, 1)
        assert await read(call) == [2]
        await call.write(pb.StreamRequest(items=[bad]))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


@pytest.mark.parametrize("starts", [0, 2])
async def test_start_comes_once_and_first(starts):
    async with serving(Zoo) as peer:
        call = peer.stub.Stream()
        start = pb.StreamStart(method="double_async")
        for index in range(max(starts, 1)):
            await call.write(
                pb.StreamRequest(start=start if index < starts else None, items=[codec.encode(1)])
            )
        with pytest.raises(grpc.aio.AioRpcError, match="'start'") as caught:
            [message async for message in call]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["object", "deep", "usage", "metadata"])
async def test_an_answer_that_cannot_be_sent_is_the_models_fault_and_said_plainly(how):
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("odd", how=how)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "'odd' cannot be sent" in caught.value.details()


async def test_an_error_with_a_lone_surrogate_arrives():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("fail", how="surrogate")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_hundreds_of_violations_still_fit_into_the_trailers():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", **{f"ключ{index}" * 20: "я" * 100 for index in range(300)})
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(details_of(caught.value)["BadRequest"].field_violations) >= 1


# ------------------------------------------------------------------------------------------------------ hostile input


@pytest.fixture
def garbage():
    return [b"\xff" * 10, b"\x0a\xff\xff\xff\xff\xff\x0f", b"\x12\x02\x08\x01" * 3, os.urandom(64), b"\x00"]


def raw_unary(peer, name, kind="unary_unary"):
    path = f"/modelkit.inference.v1.InferenceService/{name}"
    return getattr(peer.channel, kind)(path, request_serializer=None, response_deserializer=None)


async def test_a_message_that_cannot_be_read_is_the_callers_fault(garbage):
    async with serving(Zoo) as peer:
        for data in (garbage[0], garbage[1]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw_unary(peer, "Predict")(data)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "the message cannot be read" in caught.value.details()
            assert details_of(caught.value)["RequestInfo"].request_id
            stream = raw_unary(peer, "Generate", "unary_stream")(data)
            assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
            both = raw_unary(peer, "Stream", "stream_stream")()
            await both.write(data)
            assert await both.code() is grpc.StatusCode.INVALID_ARGUMENT
            later = raw_unary(peer, "Stream", "stream_stream")()
            start = pb.StreamStart(method="listen")
            await later.write(pb.StreamRequest(start=start).SerializeToString())
            await later.write(data)
            assert await later.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await peer.predict("unary", text="alive") == "alive"


async def test_a_foreign_client_that_nests_too_deeply_gets_a_clear_error():
    data = pb.Value(int_value=1).SerializeToString()

    def field(number, payload):
        size, length = len(payload), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + payload

    for _ in range(60):
        data = field(7, field(1, data))
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw_unary(peer, "Predict")(
                field(1, b"take") + field(2, field(1, b"value") + field(2, data))
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"at most {codec.MAX_DEPTH} deep" in details_of(caught.value)["ErrorInfo"].metadata["cure"]


async def test_random_bytes_never_kill_the_server():
    async with serving(Zoo) as peer:
        call = raw_unary(peer, "Predict")

        async def send(data):
            try:
                await call(data, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return None

        @settings(max_examples=1, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(st.binary(max_size=80), min_size=150, max_size=150))
        def collect(batch):
            batches.append(batch)

        batches = []
        collect()
        codes = {await send(data) for data in batches[0]}
        assert codes <= {
            None,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNIMPLEMENTED,
        }
        assert await peer.predict("unary", text="alive") == "alive"


async def test_odd_metadata_is_no_trouble():
    async with serving(Zoo) as peer:
        metadata = (("x-request-id", "a" * 500), ("trace-bin", os.urandom(32)), ("x-request-id-bin", b"\x00"))
        answer = await peer.stub.Predict(
            pb.PredictRequest(method="unary", arguments={"text": codec.encode("x")}), metadata=metadata
        )
        assert answer.request_id == "a" * 128


async def test_an_rpc_that_does_not_exist():
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw_unary(peer, "Nothing" * 100)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_message_size_limits_hold_in_both_directions():
    async with serving(Zoo, max_message_bytes=100_000) as peer:
        for arguments in ({"value": b"x" * 200_000},):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await peer.predict("take", **arguments)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", text="x" * 50_000, times=9)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.items("heavy_async", num=3)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)
        assert await peer.predict("unary", text="alive") == "alive"


# -------------------------------------------------------------------------------------------- deadlines, cancellation


@pytest.mark.parametrize("name", ["wait", "wait_sync"])
async def test_a_deadline_ends_a_unary_call_and_its_method(name):
    async with serving(Zoo) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict(name, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        model = peer.server.predictor.model
        await eventually(lambda: name in model.ended)
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


@pytest.mark.parametrize("name", ["drip", "drip_sync"])
async def test_a_deadline_ends_a_stream_and_its_generator(name):
    async with serving(Zoo) as peer:
        call = peer.generate(name, timeout=0.2)
        assert (await read(call))[0] == 0
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: name in peer.server.predictor.model.ended)
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


async def cancel_and_measure(peer, name):
    """Start a call, cancel it, and return how long the news took to the model's code, in seconds."""
    model = peer.server.predictor.model
    model.ended.clear()
    if name.startswith("listen"):
        call = await peer.stream(name, 1)
        await read(call)
    elif name.startswith(("drip", "poll")):
        call = peer.generate(name)
        await read(call)
    else:
        call = peer.stub.Predict(pb.PredictRequest(method=name))
        await eventually(lambda: peer.server.predictor.gate.num_running == 1)
        await asyncio.sleep(0.05)
    cancelled = time.monotonic()
    call.cancel()
    await eventually(lambda: name in model.ended)
    await eventually(lambda: peer.server.predictor.gate.num_running == 0)
    return model.ended[name] - cancelled


@pytest.mark.parametrize("name", ["wait", "wait_sync", "drip", "drip_sync", "poll", "listen", "listen_sync"])
async def test_cancellation_reaches_the_method_and_frees_its_place(name):
    async with serving(Zoo, max_concurrency=1) as peer:
        took_s = sorted([await cancel_and_measure(peer, name) for _ in range(5)])
        assert took_s[2] < CANCELLATION_S
        assert await asyncio.wait_for(peer.predict("unary", text="next"), 5) == "next"
        assert not peer.server.predictor._running_threads


async def test_a_caller_that_vanishes_while_queued_leaves_the_queue():
    async with serving(Zoo, max_concurrency=1, max_queue=1) as peer:
        gate = peer.server.predictor.gate
        first = asyncio.ensure_future(peer.predict("blocked"))
        await eventually(lambda: gate.num_running == 1)
        queued = peer.stub.Predict(pb.PredictRequest(method="wait"))
        await eventually(lambda: gate.num_waiting == 1)
        queued.cancel()
        await eventually(lambda: gate.num_waiting == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", text="x", timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: gate.num_waiting == 0)
        peer.server.predictor.model.release.set()
        assert await first == "released"
        assert not peer.server.predictor.model.ended


# --------------------------------------------------------------------------------------------------------- flow control


@pytest.mark.parametrize("name", ["heavy", "heavy_async"])
async def test_a_reader_that_does_not_read_stops_the_model(name):
    async with serving(Zoo) as peer:
        model = peer.server.predictor.model
        call = peer.generate(name, num=500)
        assert await read(call) == [MEGABYTE]
        before = -1
        while before != model.produced:
            before = model.produced
            await asyncio.sleep(0.3)
        assert model.produced < 40
        call.cancel()
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


@pytest.mark.parametrize("name", ["heavy", "heavy_async"])
async def test_large_items_arrive_one_a_message(name):
    async with serving(Zoo) as peer:
        sizes = [len(message.items) async for message in peer.generate(name, num=20)]
        assert sum(sizes) == 20
        assert max(sizes) == 1


async def test_small_items_share_messages_and_the_first_is_alone():
    async with serving(Zoo) as peer:
        sizes = [len(message.items) async for message in peer.generate("count_async", to=5000)]
        assert sizes[0] == 1
        assert sum(sizes) == 5000
        assert len(sizes) < 2500
        assert max(sizes) <= 64


async def test_a_generator_that_never_awaits_does_not_starve_another_stream():
    async with serving(Zoo) as peer:
        endless = peer.generate("count_async", to=10_000_000)
        await read(endless)
        await asyncio.wait_for(peer.items("count_async", to=20), 10)
        endless.cancel()
        await eventually(lambda: peer.server.predictor.gate.num_running == 0)


# ------------------------------------------------------------------------------------------------------------ admission


async def test_beyond_the_queue_a_call_is_refused_and_told_when_to_retry():
    async with serving(Zoo, max_concurrency=1, max_queue=1) as peer:
        gate, model = peer.server.predictor.gate, peer.server.predictor.model
        calls = [asyncio.ensure_future(peer.predict("blocked"))]
        await eventually(lambda: gate.num_running == 1)
        calls.append(asyncio.ensure_future(peer.predict("unary", text="queued")))
        await eventually(lambda: gate.num_waiting == 1)
        for refused in (peer.predict("unary", text="x"), peer.items("count", to=1)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await refused
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details_of(caught.value)["RetryInfo"].retry_delay.seconds == 1
        model.release.set()
        assert await asyncio.gather(*calls) == ["released", "queued"]


# ------------------------------------------------------------------------------------------------------- drain and load


async def test_a_drain_lets_running_calls_end_and_refuses_new_ones():
    async with serving(Zoo, drain_timeout_s=20.0) as peer:
        running = asyncio.ensure_future(peer.predict("blocked"))
        await eventually(lambda: peer.server.predictor.gate.num_running == 1)
        stopping = asyncio.ensure_future(peer.server.shutdown())
        await asyncio.sleep(0.2)
        assert not stopping.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("unary", text="x", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        peer.server.predictor.model.release.set()
        assert await running == "released"
        assert await stopping == 0


async def test_a_drain_that_takes_too_long_cancels_what_runs():
    async with serving(Zoo, drain_timeout_s=0.2) as peer:
        call = peer.generate("drip")
        await read(call)
        assert await peer.server.shutdown() == 0
        assert "drip" in peer.server.predictor.model.ended
        assert await call.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


async def test_close_runs_also_while_every_thread_hangs():
    class Hangs(Zoo):
        closed = False

        def close(self):
            self.closed = True

    async with serving(Hangs, max_concurrency=1, drain_timeout_s=0.1) as peer:
        model = peer.server.predictor.model
        call = asyncio.ensure_future(peer.predict("blocked"))
        await eventually(lambda: peer.server.predictor.gate.num_running == 1)
        assert await asyncio.wait_for(peer.server.shutdown(), 10) == 1
        assert model.closed
        model.release.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_load_that_exits_the_process_is_a_load_error():
    class Exits(Zoo):
        def load(self):
            sys.exit(1)

    async with serving(Exits, load=False) as peer:
        with pytest.raises(errors.LoadError, match=r"Exits\.load raised SystemExit"):
            await peer.server.load()


# ----------------------------------------------------------------------------------------------------------------- load


async def test_a_thousand_calls_and_two_hundred_streams_at_once():
    async with serving(Zoo, max_queue=2000) as peer:
        unary = [peer.predict("unary", text=str(index)) for index in range(1000)]
        streams = [peer.items("count" if index % 2 else "count_async", to=20) for index in range(200)]
        results = await asyncio.gather(*unary, *streams)
        assert results[:1000] == [str(index) for index in range(1000)]
        assert results[1000:] == [list(range(20))] * 200


async def test_ten_thousand_calls_leave_nothing_behind():
    async with serving(Zoo, max_concurrency=8) as peer:

        async def calls(num):
            for _ in range(num // 100):
                await asyncio.gather(*[peer.predict("unary_async", text="x") for _ in range(98)])
                assert await peer.items("count", to=3) == [0, 1, 2]
                assert await peer.items("count_async", to=3) == [0, 1, 2]

        def leftovers():
            gc.collect()
            return (
                len(asyncio.all_tasks()),
                threading.active_count(),
                sum(1 for _ in Path("/proc/self/fd").iterdir()),
            )

        await calls(500)
        before = leftovers()
        await calls(9500)
        await eventually(lambda: all(now <= then + 2 for now, then in zip(leftovers(), before, strict=True)))
        assert peer.server.predictor.gate.num_running == 0
        assert not peer.server.predictor._running_threads


async def test_a_model_that_says_it_cannot_answer_is_unavailable_until_it_can():
    async with serving(Zoo) as peer:
        model = peer.server.predictor.model
        type(model).unready_reason = property(lambda _: "the engine is down")
        try:
            assert (await peer.stub.Describe(pb.DescribeRequest())).state == pb.MODEL_STATE_UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError, match="the engine is down") as caught:
                await peer.predict("unary", text="x")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert details_of(caught.value)["ErrorInfo"].metadata["executed"] == "false"
        finally:
            del type(model).unready_reason
        assert await peer.predict("unary", text="x") == "x"
