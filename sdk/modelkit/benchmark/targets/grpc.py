"""modelkit's own contract: `Generate` on one channel, read as raw messages.

The client of modelkit is made for people: retries, typed values, nice errors. Here each of those would be part of the
measurement, so only its address, key and channel are used (22-27 us of CPU a token, a third of the client's).
"""

import asyncio
from typing import Any

import grpc.aio
import orjson

from modelkit.benchmark.record import Record
from modelkit.benchmark.targets.base import Arrivals, RequestFailed, Target, now_ns
from modelkit.client.channel import headers_for, inference_stub, opener
from modelkit.client.lane import Deployment, Opener
from modelkit.client.settings import Settings
from modelkit.errors import ServeError, UsageError
from modelkit.inference.v1 import inference_pb2 as pb

__all__ = ["GrpcTarget"]

TRANSPORT = "openai_stream_transport"
_GENERATE = "/modelkit.inference.v1.InferenceService/Generate"
_ANSWER_TIMEOUT_S = 20.0


class GrpcTarget(Target):
    """A model that modelkit serves: through its OpenAI transport where it has one, else a `generate` of its own."""

    async def open(self) -> None:
        """Connect and choose the method."""
        settings = Settings.resolve(
            self.spec.address,
            timeout_s=None,
            api_key=self.spec.api_key,
            tls=None,
            retry=None,
            metadata={},
            headers={},
            allow_plaintext_api_key=False,
        )
        functions = grpc.aio.insecure_channel, grpc.aio.secure_channel
        # Without a request id the server makes one up.
        self._headers = tuple(pair for pair in headers_for(settings, "") if pair[0] != "x-request-id")
        if settings.names_deployment:
            # Its replicas as they are now: one that comes or goes later is not followed.
            deployment = Deployment(settings, Opener(*functions, close=lambda _: None))
            while (located := deployment.locating()) is not None:
                await asyncio.wrap_future(located)
            lane = deployment.enter()
            self._channel, self._headers = lane.channel, (*self._headers, *lane.headers)
        else:
            self._channel = opener(settings, *functions)()
        self._stub = inference_stub(self._channel)
        self._generate = self._channel.unary_stream(
            _GENERATE, request_serializer=_hand_over, response_deserializer=pb.GenerateResponse.FromString
        )
        self.method = self.spec.method or await self._choose_method(settings.address)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def encode(self, body: dict[str, Any]) -> bytes:
        """Return the message for a request."""
        return self._message(body).SerializeToString()

    def _message(self, body: dict[str, Any]) -> pb.GenerateRequest:
        if self.method == TRANSPORT:
            endpoint = "/completions" if self.spec.endpoint == "completions" else "/chat/completions"
            # The usage comes with the call; the chunk that has nothing else is not needed.
            body["stream_options"].pop("include_usage")
            msg = orjson.dumps({**body, "openai_endpoint": endpoint}).decode()
            return pb.GenerateRequest(method=self.method, arguments={"msg": pb.Value(string_value=msg)})
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        arguments = {
            "prompt": pb.Value(string_value=prompt),
            "max_tokens": pb.Value(int_value=body["max_tokens"]),
            "min_tokens": pb.Value(int_value=body.get("min_tokens", 0)),
        }
        return pb.GenerateRequest(method=self.method, arguments=arguments)

    async def stream(self, encoded: Any, arrivals: Arrivals) -> None:
        """Call the method and read its messages."""
        call = self._generate((encoded, arrivals.record), metadata=self._headers)
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                at_ns = now_ns()
                self.num_bytes += message.ByteSize()
                self._take(message, at_ns, arrivals)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(error.code().name, error.details() or "") from error
        finally:
            call.cancel()  # nothing where it has ended

    def _take(self, message: pb.GenerateResponse, at_ns: int, arrivals: Arrivals) -> None:
        num_items = len(message.items)
        # Totals that have not changed are left out; a server that told some tells all.
        total = arrivals.told if arrivals.is_told else None
        if message.HasField("usage"):
            usage = message.usage
            arrivals.usage(usage.prompt_tokens, usage.output_tokens, usage.cached_tokens)
            if num_items or arrivals.is_told:
                total = usage.output_tokens
        text = "".join(self._text(item.string_value) for item in message.items) if self.spec.keep_text else ""
        arrivals.message(at_ns, num_items, total, text)

    def _text(self, item: str) -> str:
        if self.method != TRANSPORT:
            return item
        choices = orjson.loads(item).get("choices") or [{}]
        return choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""

    async def _choose_method(self, address: str) -> str:
        try:
            found = await self._stub.Describe(
                pb.DescribeRequest(), timeout=_ANSWER_TIMEOUT_S, metadata=self._headers, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise ServeError(
                f"cannot measure {address}: {error.code().name}: {error.details()}",
                cure="serve the model with `modelkit serve`, or give http://... for an OpenAI-compatible server",
            ) from error
        names = {method.name for method in found.methods if method.kind == pb.METHOD_KIND_SERVER_STREAM}
        for name in (TRANSPORT, "generate"):
            if name in names:
                return name
        await self.close()
        raise UsageError(
            f"the model at {address} has no method that streams text", cure="bench measures language models"
        )


def _hand_over(request: tuple[bytes, Record]) -> bytes:
    """Note when a request is sent. gRPC asks for its bytes in a task of the call's own, after all that ask meanwhile."""
    encoded, record = request
    record.sent_ns = now_ns()
    return encoded
