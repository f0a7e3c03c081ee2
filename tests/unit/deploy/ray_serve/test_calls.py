"""The servicer's context over Ray's: statuses, deadlines, cancellation."""

import asyncio

import grpc
import pytest

from modelkit.deploy.ray_serve.calls import serve_stream, serve_unary


class RayContext:
    """The part of RayServegRPCContext that is used."""

    def __init__(self, **metadata):
        self.metadata = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        self.code = self.details = None
        self.trailing = []

    def invocation_metadata(self):
        return self.metadata

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing):
        self.trailing = trailing


async def collect(generator):
    return [item async for item in generator]


async def test_an_answer_passes():
    context = RayContext()

    async def answer(call):
        return dict(call.invocation_metadata())

    assert await serve_unary(context, answer, None) == {}
    assert context.code is None


async def test_a_status_goes_with_an_empty_answer_and_no_exception():
    context = RayContext()

    async def answer(call):
        await call.abort(grpc.StatusCode.NOT_FOUND, "no", (("details", b"x"),))

    assert await serve_unary(context, answer, "empty") == "empty"
    assert (context.code, context.details, context.trailing) == (
        grpc.StatusCode.NOT_FOUND,
        "no",
        [("details", b"x")],
    )


async def test_a_stream_ends_with_an_empty_message_that_carries_the_status():
    context = RayContext()

    async def answer(call):
        await call.write("one")
        await call.abort(grpc.StatusCode.ABORTED, "enough")

    assert await collect(serve_stream(context, answer, "empty")) == ["one", "empty"]
    assert context.code is grpc.StatusCode.ABORTED


async def test_a_writer_does_not_run_ahead_of_its_reader():
    written = []

    async def answer(call):
        for number in range(100):
            await call.write(number)
            written.append(number)

    stream = serve_stream(RayContext(), answer, None)
    assert await anext(stream) == 0
    await asyncio.sleep(0.05)
    assert len(written) < 5
    assert len(await collect(stream)) == 99


async def test_closing_a_stream_cancels_what_writes_it():
    ended = asyncio.Event()

    async def answer(call):
        try:
            await call.write("one")
            await asyncio.sleep(60)
        finally:
            assert call.cancelled()
            ended.set()

    stream = serve_stream(RayContext(), answer, None)
    assert await anext(stream) == "one"
    await stream.aclose()
    assert ended.is_set()


async def test_an_error_nobody_meant_is_raised():
    async def answer(_):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await collect(serve_stream(RayContext(), answer, None))


async def test_the_deadline_comes_from_the_metadata():
    seen = []

    async def answer(call):
        seen.append(call.time_remaining())

    await serve_unary(RayContext(x_modelkit_timeout_ms="5000"), answer, None)
    await serve_unary(RayContext(x_modelkit_timeout_ms="soon"), answer, None)
    await serve_unary(RayContext(x_modelkit_timeout_ms="9" * 5000), answer, None)
    await serve_unary(RayContext(), answer, None)
    assert 4 < seen[0] <= 5
    assert seen[1:] == [None, None, None]


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_late_answer_is_a_status(kind):
    context = RayContext(x_modelkit_timeout_ms="50")

    async def answer(_):
        await asyncio.sleep(60)

    if kind == "unary":
        assert await serve_unary(context, answer, "empty") == "empty"
    else:
        assert await collect(serve_stream(context, answer, "empty")) == ["empty"]
    assert context.code is grpc.StatusCode.DEADLINE_EXCEEDED
