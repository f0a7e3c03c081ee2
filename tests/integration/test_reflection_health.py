"""The standard parts beside the model's own service: reflection, health, API key, TLS."""

import asyncio
import subprocess
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from grpc_server import details_of, serving
from modelkit import Model, codec, method
from modelkit.errors import ServeError
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.inference.v1 import inference_pb2_grpc as pb_grpc
from modelkit.server import LIVENESS, SERVICE_NAME, TlsFiles

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Greeter(Model):
    @method
    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"Hello, {name}!"


async def status_of(peer, service):
    return (
        await health_pb2_grpc.HealthStub(peer.channel).Check(health_pb2.HealthCheckRequest(service=service))
    ).status


# ---------------------------------------------------------------------------------------------------------- reflection


def call_by_reflection(address):
    """Call the model as a tool does that has no stubs: everything is asked of the server."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = list(database.get_services())
        pool = DescriptorPool(database)
        predict = pool.FindServiceByName(SERVICE_NAME).FindMethodByName("Predict")
        request = message_factory.GetMessageClass(predict.input_type)()
        document = {"method": "greet", "arguments": {"name": {"stringValue": "Ada"}}}
        json_format.ParseDict(document, request, descriptor_pool=pool)
        call = channel.unary_unary(
            f"/{SERVICE_NAME}/Predict",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(predict.output_type).FromString,
        )
        return services, json_format.MessageToDict(call(request, timeout=10))


async def test_a_client_that_knows_only_reflection_calls_the_model():
    async with serving(Greeter) as peer:
        services, answer = await asyncio.to_thread(call_by_reflection, peer.server.address)
        assert {SERVICE_NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(
            services
        )
        assert answer["result"] == {"stringValue": "Hello, Ada!"}


# -------------------------------------------------------------------------------------------------------------- health


async def test_a_model_that_will_not_answer_again_is_not_alive():
    class Dying(Greeter):
        dead_reason = ""

    async with serving(Dying) as peer:
        assert await status_of(peer, LIVENESS) == SERVING
        peer.server.predictor.model.dead_reason = "the engine was given up"
        async with asyncio.timeout(10):
            while await status_of(peer, LIVENESS) == SERVING:
                await asyncio.sleep(0.02)
        assert await status_of(peer, LIVENESS) == NOT_SERVING


async def test_liveness_and_readiness_are_apart():
    async with serving(Greeter, load=False) as peer:
        assert await status_of(peer, LIVENESS) == SERVING
        assert await status_of(peer, "") == NOT_SERVING
        assert await status_of(peer, SERVICE_NAME) == NOT_SERVING
        await peer.server.load()
        assert await status_of(peer, "") == SERVING
        assert await status_of(peer, SERVICE_NAME) == SERVING


async def test_an_unknown_service_is_not_found():
    async with serving(Greeter) as peer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(peer, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_sees_every_change_and_does_not_hold_up_the_drain():
    async with serving(Greeter, load=False, drain_timeout_s=60.0) as peer:
        watch = health_pb2_grpc.HealthStub(peer.channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        )
        assert (await watch.read()).status == NOT_SERVING
        await peer.server.load()
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(peer.server.shutdown())
        assert (await watch.read()).status == NOT_SERVING
        await asyncio.wait_for(stopping, 10)
        assert await watch.read() is grpc.aio.EOF


async def test_a_synchronous_load_does_not_block_health():
    import threading

    release = threading.Event()

    class Slow(Greeter):
        def load(self):
            release.wait(20)

    async with serving(Slow, load=False) as peer:
        loading = asyncio.ensure_future(peer.server.load())
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(status_of(peer, ""), 5) == NOT_SERVING
        assert not loading.done()
        release.set()
        await loading
        assert await status_of(peer, "") == SERVING


# ------------------------------------------------------------------------------------------------------------- API key


@pytest.mark.parametrize("header", ["Bearer k3y", "bearer k3y", "Bearer  k3y "])
async def test_the_right_key_opens(header):
    async with serving(Greeter, api_key="k3y") as peer:
        assert await peer.predict("greet", name="A", metadata=(("authorization", header),)) == "Hello, A!"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ((), "no API key"),
        ((("authorization", "Bearer wrong"),), "the API key is wrong"),
        ((("authorization", "k3y"),), "no API key"),
        ((("authorization", "Bearer k3y2"),), "wrong"),
    ],
)
async def test_a_missing_or_wrong_key_is_refused_on_every_rpc(metadata, words):
    async with serving(Greeter, api_key="k3y") as peer:
        start = pb.StreamStart(method="greet")
        calls = [
            peer.stub.Predict(pb.PredictRequest(method="greet"), metadata=metadata),
            peer.stub.Describe(pb.DescribeRequest(), metadata=metadata),
            peer.stub.Generate(pb.GenerateRequest(method="greet"), metadata=metadata),
            peer.stub.Stream(iter([pb.StreamRequest(start=start)]), metadata=metadata),
        ]
        for call in calls:
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert words in await call.details()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("greet", name="A", metadata=metadata)
        assert "MODELKIT_API_KEY" in details_of(caught.value)["ErrorInfo"].metadata["cure"]
        assert "k3y" not in str(caught.value.trailing_metadata())
        assert await status_of(peer, "") == SERVING


async def test_the_key_is_in_no_repr():
    async with serving(Greeter, api_key="k3y") as peer:
        assert "k3y" not in repr(peer.server.options)


# ----------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and a server and a client certificate that it signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("server", "client"):
        openssl(
            "req", "-new", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return folder


async def greet(address, credentials):
    async with grpc.aio.secure_channel(address, credentials) as channel:
        request = pb.PredictRequest(method="greet", arguments={"name": codec.encode("A")})
        response = await pb_grpc.InferenceServiceStub(channel).Predict(request, timeout=10)
        return codec.decode(response.result)


def files(folder: Path, **others):
    return TlsFiles(folder / "server.pem", folder / "server.key", **others)


async def test_a_call_over_tls(certificates):
    async with serving(Greeter, tls=files(certificates)) as peer:
        trusted = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        assert await greet(peer.server.address, trusted) == "Hello, A!"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer.predict("greet", name="plain text", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_asks_for_the_clients_certificate(certificates):
    async with serving(Greeter, tls=files(certificates, client_ca=certificates / "ca.pem")) as peer:
        ca, key, chain = (
            (certificates / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")
        )
        assert await greet(peer.server.address, grpc.ssl_channel_credentials(ca, key, chain)) == "Hello, A!"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await greet(peer.server.address, grpc.ssl_channel_credentials(ca))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_files_that_do_not_work_are_told_from_a_port_that_is_taken(certificates, tmp_path):
    wrong = [
        TlsFiles(tmp_path / "none.pem", certificates / "server.key"),
        TlsFiles(certificates / "server.pem", certificates / "client.key"),
        TlsFiles(certificates / "san", certificates / "server.key"),
        files(certificates, client_ca=certificates / "san"),
    ]
    for tls in wrong:
        with pytest.raises(ServeError, match="TLS file"):
            async with serving(Greeter, tls=tls):
                pass


async def test_a_second_server_on_the_same_port_is_refused():
    async with serving(Greeter) as peer:
        port = int(peer.server.address.rpartition(":")[2])
        from modelkit.server import Server, ServerOptions

        with pytest.raises(ServeError, match="the port is taken") as caught:
            await Server(Greeter(), ServerOptions(port=port)).startup()
        assert "--port 0" in caught.value.cure
