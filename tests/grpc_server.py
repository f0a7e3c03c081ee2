"""The real server and a bare gRPC channel on one event loop, for the tests of this folder."""

import asyncio
import contextlib
import logging

import grpc
from google.protobuf import any_pb2  # noqa: F401 - details of a status are Any messages
from google.rpc import error_details_pb2, status_pb2

from modelkit import codec
from modelkit.config import Config
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.model import ModelContext
from modelkit.server import Server, ServerOptions

LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Peer:
    """A server that is ready, and the calls of a client that knows nothing but the contract."""

    def __init__(self, server, channel):
        self.server = server
        self.channel = channel
        self.stub = pb_grpc.InferenceServiceStub(channel)

    async def predict(self, method, *, timeout=None, metadata=None, **arguments):
        request = pb.PredictRequest(method=method, arguments=codec.encode_arguments(arguments))
        response = await self.stub.Predict(request, timeout=timeout, metadata=metadata)
        return codec.decode(response.result)

    def generate(self, method, *, timeout=None, metadata=None, **arguments):
        request = pb.GenerateRequest(method=method, arguments=codec.encode_arguments(arguments))
        return self.stub.Generate(request, timeout=timeout, metadata=metadata)

    async def items(self, method, **arguments):
        return [
            codec.decode(item)
            async for message in self.generate(method, **arguments)
            for item in message.items
        ]

    async def stream(self, method, *items, **arguments):
        """Open a bidirectional call and send the first items."""
        call = self.stub.Stream()
        start = pb.StreamStart(method=method, arguments=codec.encode_arguments(arguments))
        await call.write(pb.StreamRequest(start=start, items=[codec.encode(item) for item in items]))
        return call


@contextlib.asynccontextmanager
async def serving(model, *, load=True, channel_options=(), **options):
    instance = model() if isinstance(model, type) else model
    instance.context = ModelContext(Config.model_validate({"model": {"id": "test"}}), None)
    server = Server(instance, ServerOptions(port=0, **{"drain_timeout_s": 1.0, **options}), model_id="test")
    await server.startup()
    try:
        if load:
            await server.load()
        async with grpc.aio.insecure_channel(server.address, options=[*LARGE, *channel_options]) as channel:
            yield Peer(server, channel)
    finally:
        await server.shutdown()


def details_of(error):
    """The google.rpc details of a failed call, by the name of their type."""
    trailer = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(trailer)
    assert status.code == error.code().value[0]
    found = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


async def read(call):
    """The items of one streamed message."""
    message = await call.read()
    return message if message is grpc.aio.EOF else [codec.decode(item) for item in message.items]


async def eventually(condition, timeout_s=5.0):
    """Wait until a condition holds; asserts that it does in the end."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.005)
    assert condition()


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)
