"""A real gRPC server with a servicer written by hand, for what a well-behaved server would not do on request."""

import asyncio
import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from modelkit.codec import decode, encode
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc

STRING = pb.Type(kind=pb.TYPE_KIND_STRING)
INT = pb.Type(kind=pb.TYPE_KIND_INT)
ANY = pb.Type(kind=pb.TYPE_KIND_ANY)

METHODS = [
    pb.Method(
        name="summarize",
        kind=pb.METHOD_KIND_UNARY,
        description="Shorten a text.\n\nKeeps the first words.",
        arguments=[
            pb.Field(name="text", type=STRING, required=True),
            pb.Field(
                name="max_words",
                type=INT,
                default=encode(50),
                limits=pb.Limits(minimum=encode(1), maximum=encode(500)),
            ),
        ],
        result=STRING,
    ),
    pb.Method(
        name="generate",
        kind=pb.METHOD_KIND_SERVER_STREAM,
        description="Count.",
        arguments=[pb.Field(name="n", type=INT, required=True)],
        result=INT,
    ),
    pb.Method(
        name="chat",
        kind=pb.METHOD_KIND_BIDIRECTIONAL,
        arguments=[
            pb.Field(name="turns", type=STRING, required=True, streamed=True),
            pb.Field(name="prefix", type=STRING, default=encode("")),
        ],
        result=STRING,
    ),
]

# The same after a reload: one method has learned something, the others are gone.
CHANGED_METHODS = [pb.Method()]
CHANGED_METHODS[0].CopyFrom(METHODS[0])
CHANGED_METHODS[0].arguments.add(name="language", type=STRING)

REFUSAL = error_details_pb2.ErrorInfo(
    reason="UNAVAILABLE", domain="modelkit", metadata={"executed": "false", "cure": "wait"}
)


class Servicer(inference_pb2_grpc.InferenceServiceServicer):
    """Each method does what its name says; `calls` counts them, `cancelled` tells when a caller's leaving arrived."""

    def __init__(self):
        self.calls = Counter()
        self.failures_left = 0
        self.refuses = True  # those failures are refusals: the model has not seen the call
        self.before_describe = None  # a coroutine function
        self.entered = threading.Event()  # a call that waits has begun
        self.time_left = []
        self.retry_after_s = None
        self.cancelled = threading.Event()
        self.ended = False  # the caller has said that its items are complete
        self.headers = {}
        self.request_ids = []
        self.methods = METHODS
        self.state = pb.MODEL_STATE_READY

    async def Describe(self, request, context):
        self.calls["Describe"] += 1
        if self.before_describe is not None:
            await self.before_describe()
        return pb.DescribeResponse(
            model_id="scripted",
            description="A scripted model.",
            methods=self.methods,
            state=self.state,
            modelkit_version="1",
        )

    async def Predict(self, request, context):
        await self._enter("Predict", context)
        arguments = {name: decode(value) for name, value in request.arguments.items()}
        if request.method == "slow" or (request.method == "slow-at-first" and self.calls["Predict"] == 1):
            await self._wait()
        if request.method == "broken":
            return pb.PredictResponse()
        if request.method == "refuse":
            await abort(
                context, arguments["code"], "refused", violations={"text": "is too long"}, request_id="r1"
            )
        if request.method == "garbled":
            trailers = (("grpc-status-details-bin", b"\xff\xff"),)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no entry", trailers)
        if request.method == "unknown":
            info = error_details_pb2.ErrorInfo(
                reason="METHOD_NOT_FOUND", domain="modelkit", metadata={"cure": "call one of: generate"}
            )
            await abort(context, "NOT_FOUND", "no method 'unknown'; did you mean 'generate'?", more=[info])
        if request.method == "metadata":
            arguments = dict(request.metadata)
        if request.method == "summarize":
            return pb.PredictResponse(
                result=encode(" ".join(arguments["text"].split()[: arguments.get("max_words", 50)]))
            )
        return pb.PredictResponse(
            result=encode(arguments),
            usage=pb.Usage(prompt_tokens=3, output_tokens=4, cached_tokens=1),
            metadata={"seen": request.method},
            request_id=self.request_ids[-1],
            finish_reason="stop",
        )

    async def Generate(self, request, context):
        await self._enter("Generate", context)
        if request.method == "slow-at-first" and self.calls["Generate"] == 1:
            await self._wait()
        n = decode(request.arguments["n"]) if "n" in request.arguments else 3
        with self._noting_cancellation():
            yield pb.GenerateResponse(
                items=[encode(0)], usage=pb.Usage(output_tokens=1), request_id="from-server"
            )
            if request.method == "slow":
                self.entered.set()
                await asyncio.sleep(60)
            if request.method == "dies":
                await abort(context, "UNAVAILABLE", "gone")
            if request.method == "resets":
                self.stop_now()
                await asyncio.sleep(5)
            for start in range(1, n, 2):
                items = [encode(number) for number in range(start, min(start + 2, n))]
                yield pb.GenerateResponse(items=items, usage=pb.Usage(output_tokens=start + len(items)))
            yield pb.GenerateResponse(metadata={"seen": request.method}, finish_reason="length")

    async def Stream(self, request_iterator, context):
        first = await anext(request_iterator)
        assert first.HasField("start")
        assert not first.items
        await self._enter("Stream", context)
        prefix = decode(first.start.arguments["prefix"]) if "prefix" in first.start.arguments else ""
        with self._noting_cancellation():
            async for message in request_iterator:
                assert not message.HasField("start")
                if first.start.method == "refuse":
                    await abort(context, "UNAVAILABLE", "no more", request_id="r3", more=[REFUSAL])
                self.ended |= message.end
                if not message.items:
                    continue
                yield pb.StreamResponse(items=[encode(f"{prefix}{decode(item)}") for item in message.items])
            yield pb.StreamResponse(items=[encode("end")], metadata={"seen": "all"}, finish_reason="stop")

    async def _wait(self):
        with self._noting_cancellation():
            self.entered.set()
            await asyncio.sleep(60)

    @contextmanager
    def _noting_cancellation(self):
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            # grpc.aio ends the caller's half of a stream quietly when the caller leaves; the next write finds out,
            # and then the generator is closed, not cancelled.
            self.cancelled.set()
            raise

    async def _enter(self, rpc, context):
        self.calls[rpc] += 1
        self.headers = dict(context.invocation_metadata())
        self.request_ids.append(self.headers.get("x-request-id"))
        self.time_left.append(context.time_remaining())
        if self.failures_left:
            self.failures_left -= 1
            await abort(
                context,
                "UNAVAILABLE",
                "the model is loading",
                retry_after_s=self.retry_after_s,
                request_id="r2",
                more=[REFUSAL] if self.refuses else [],
            )


async def abort(context, code, message, *, violations=None, retry_after_s=None, request_id="", more=()):
    details = list(more)
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=k, description=v) for k, v in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry_after_s is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(info)
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
    await context.abort(grpc.StatusCode[code], message, trailers)


class Running:
    """A server on a loop of its own thread."""

    def __init__(self, servicer, credentials=None, port=0, health=HealthServicer):
        self.servicer = servicer
        self._health_type = health
        self.health = None
        self._credentials = credentials
        self._port = port
        self._loop = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()
        assert self._started.wait(10)
        return self

    def _run(self):
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self):
        self._stop = asyncio.Event()
        server = grpc.aio.server()
        self.health = self._health_type()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.servicer, server)
        target = f"127.0.0.1:{self._port}"
        port = (
            server.add_secure_port(target, self._credentials)
            if self._credentials
            else server.add_insecure_port(target)
        )
        self.address = f"127.0.0.1:{port}"
        self.servicer.stop_now = self._stop.set
        await server.start()
        self._started.set()
        await self._stop.wait()
        await server.stop(0)

    def set_ready(self, ready):
        status = (
            health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        asyncio.run_coroutine_threadsafe(self.health.set("", status), self._loop).result(5)

    def stop(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


class WithoutWatch(HealthServicer):
    """What many a server has: the state now, and no news of it."""

    async def Watch(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no Watch here")


class Relay:
    """A TCP relay in front of a server, which can cut the connections that run through it."""

    def __init__(self, address):
        self._upstream = tuple(address.rsplit(":", 1))
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):  # closed
            while True:
                pair = [self._listener.accept()[0], socket.create_connection(self._upstream)]
                self._sockets += pair
                for source, sink in (pair, pair[::-1]):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def cut(self):
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def free_port():
    """Return a port that nobody listens on, for a server that starts later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(servicer=None, **options):
    server = Running(servicer or Servicer(), **options).start()
    try:
        yield server
    finally:
        if server._thread.is_alive():
            server.stop()
