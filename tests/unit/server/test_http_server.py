import asyncio
import dataclasses
import enum
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator

import httpx
import pydantic
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

from modelkit import Audio, Client, Field, Image, Model, Tensor, Text, Video, method
from modelkit.config import Config
from modelkit.engines.llm import LLM
from modelkit.errors import ServeError
from modelkit.server import Server, ServerOptions, TlsFiles
from modelkit.testing import run_server

ECHO = Config.model_validate({"model": {"id": "echo-chat"}, "engine": {"name": "echo"}})


class Greeter(Model):
    @method
    def predict(self, name: str) -> str:
        return f"Hello, {name}!"

    @method
    def generate(self, num: int) -> Iterator[int]:
        yield from range(num)


# -------------------------------------------------------------------------------------------------------------- probes


def test_ready_follows_the_model():
    with run_server(Greeter, http=True, load=False) as server:
        assert httpx.get(server.http_url + "/health").json() == {"status": "ok"}
        response = httpx.get(server.http_url + "/ready")
        assert (response.status_code, response.json()["reason"]) == (503, "the model is loading")
        response = httpx.post(server.http_url + "/v1/methods/predict", json={"name": "A"})
        assert response.status_code == 503
        assert response.headers["x-should-retry"] == "true"
        server.run(server.server.load())
        assert httpx.get(server.http_url + "/ready").json() == {"ready": True}


def test_an_engine_that_is_down_is_not_ready():
    with run_server(LLM, config=ECHO, http=True) as server:
        engine = server.server.predictor.model.engine
        assert httpx.get(server.http_url + "/ready").status_code == 200
        engine.down_reason = "vllm ended with exit code -9"
        response = httpx.get(server.http_url + "/ready")
        assert (response.status_code, response.json()["reason"]) == (503, "vllm ended with exit code -9")
        assert "modelkit_ready 0.0" in httpx.get(server.http_url + "/metrics").text
        assert httpx.get(server.http_url + "/metrics/engine").status_code == 404


def test_an_engine_that_is_given_up_ends_liveness():
    with run_server(LLM, config=ECHO, http=True) as server:
        engine = server.server.predictor.model.engine
        engine.down_reason = "vllm ended with exit code -9"
        assert httpx.get(server.http_url + "/health").status_code == 200
        engine.dead_reason = engine.down_reason = (
            "vllm was ended by SIGKILL; started 5 times again, and now no more"
        )
        response = httpx.get(server.http_url + "/health")
        assert response.status_code == 503
        assert response.json() == {"status": "dead", "reason": engine.dead_reason}


def test_metrics_count_grpc_and_http_alike():
    with run_server(Greeter, http=True) as server, Client(server.address) as client:
        client.predict(name="A")
        list(client.generate(num=3))
        httpx.post(server.http_url + "/v1/methods/predict", json={"name": "A"})
        httpx.post(server.http_url + "/v1/methods/predict", json={})
        response = httpx.get(server.http_url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, sample.labels.get("method"), sample.labels.get("code")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["modelkit_calls_total", "predict", "OK"] == 2
    assert samples["modelkit_calls_total", "predict", "INVALID_ARGUMENT"] == 1
    assert samples["modelkit_calls_total", "generate", "OK"] == 1
    assert samples["modelkit_inter_item_seconds_count", "generate", None] == 2
    assert samples["modelkit_ready", None, None] == 1
    assert samples["modelkit_calls_running", None, None] == 0
    assert samples["process_resident_memory_bytes", None, None] > 1e6


# ------------------------------------------------------------------------------------------------------------ document


class Colour(enum.Enum):
    RED = "red"


class Tree(pydantic.BaseModel):
    value: int = pydantic.Field(ge=0)
    children: "list[Tree]" = []


@dataclasses.dataclass
class Call:
    """Called like a schema of the server's own."""

    colour: Colour = Colour.RED


class Typed(Model):
    @method
    def all_types(
        self,
        tree: Tree,
        call: Call,
        image: Image | None,
        audio: Audio,
        video: Video,
        tensor: Tensor,
        text: Text,
        raw: bytes,
        pair: tuple[int, str],
        table: dict[str, list[float]],
        colour: Colour = Colour.RED,
        word: str | None = Field(None, min_length=2, max_length=5, pattern="^a"),
        size: float = Field(1.0, gt=0, lt=10, choices=[1.0, 2.0]),
        names: list[str] = Field(default=[], max_length=3),  # noqa: B008
    ) -> dict[str, object]:
        """Take everything."""
        return {}

    @method
    async def both(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item


@pytest.mark.parametrize("model", [Typed, Greeter, LLM])
@pytest.mark.parametrize("api_key", [None, "key"])
def test_the_document_is_valid_openapi(model, api_key):
    options = ServerOptions(port=0, http_port=0, api_key=api_key)
    with run_server(model, config=ECHO, options=options) as server:
        headers = {"Authorization": f"Bearer {api_key}"}
        document = httpx.get(server.http_url + "/openapi.json", headers=headers).json()
    OpenAPIV31SpecValidator(document).validate()
    assert ("security" in document) == (api_key is not None)
    assert ("/v1/chat/completions" in document["paths"]) == (model is LLM)


def test_the_document_says_what_a_method_takes():
    with run_server(Typed, http=True) as server:
        document = httpx.get(server.http_url + "/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/methods/all_types"]["post"]["requestBody"]["content"]
    properties = body["application/json"]["schema"]["properties"]
    assert properties["tree"] == {"$ref": "#/components/schemas/Tree"}
    assert schemas["Tree"]["properties"]["children"]["items"] == {"$ref": "#/components/schemas/Tree"}
    assert properties["call"] == {"$ref": "#/components/schemas/Call2"}
    assert properties["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert properties["word"]["anyOf"][0] == {
        "type": "string",
        "minLength": 2,
        "maxLength": 5,
        "pattern": "^a",
    }
    assert properties["size"]["exclusiveMinimum"] == 0
    assert properties["size"]["enum"] == [1.0, 2.0]
    assert properties["names"]["maxItems"] == 3
    assert properties["colour"]["enum"] == ["red"]
    assert "multipart/form-data" in body
    assert "application/x-ndjson" in document["paths"]["/v1/methods/both"]["post"]["requestBody"]["content"]


# ---------------------------------------------------------------------------------------------------- key, origin, port


def test_the_api_key_is_the_one_of_grpc():
    options = ServerOptions(port=0, http_port=0, api_key="secret")
    with run_server(Greeter, options=options) as server, httpx.Client(base_url=server.http_url) as client:
        for path in ("/health", "/ready", "/"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/v1/methods", "/openapi.json", "/nowhere", "/health/"):
            response = client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["message"] == "the call has no API key"
        wrong = client.get("/metrics", headers={"Authorization": "Bearer secre"})
        assert wrong.json()["error"]["message"] == "the API key is wrong"
        assert client.get("/metrics", headers={"Authorization": b"Bearer \xff"}).status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_pages_of_other_sites_may_not_call():
    with run_server(Greeter, http=True) as server, httpx.Client(base_url=server.http_url) as client:
        page = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        response = client.post("/v1/methods/predict", json={"name": "A"}, headers=page)
        assert response.status_code == 403
        assert "--cors-origin https://evil.example" in response.json()["error"]["cure"]
        assert "access-control-allow-origin" not in response.headers
        own = {"Origin": server.http_url, "Sec-Fetch-Site": "same-origin"}
        assert client.post("/v1/methods/predict", json={"name": "A"}, headers=own).status_code == 200


@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
def test_pages_of_allowed_sites_may(allowed):
    options = ServerOptions(port=0, http_port=0, cors_origins=(allowed,), api_key="secret")
    with run_server(Greeter, options=options) as server, httpx.Client(base_url=server.http_url) as client:
        page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        asked = client.options("/v1/methods/predict", headers=page)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        page["Authorization"] = "Bearer secret"
        answer = client.post("/v1/methods/predict", json={"name": "A"}, headers=page)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_what_is_not_there_says_so_in_the_same_shape():
    with run_server(Greeter, http=True) as server, httpx.Client(base_url=server.http_url) as client:
        assert client.get("/v2").json()["error"]["code"] == "not_found"
        response = client.get("/v1/methods/predict")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.headers["server"] == "modelkit"


def test_an_id_that_cannot_be_sent_back_is_replaced():
    with run_server(Greeter, http=True) as server:
        response = httpx.get(server.http_url + "/health", headers={"x-request-id": b"\xff\xfe"})
        assert len(response.headers["x-request-id"]) == 16
        response = httpx.get(server.http_url + "/health", headers={"x-request-id": "a" * 500})
        assert len(response.headers["x-request-id"]) == 128


def test_a_port_that_is_taken_is_an_error_with_a_cure():
    with run_server(Greeter, http=True) as server:
        port = httpx.URL(server.http_url).port

        async def start():
            other = Server(Greeter(), ServerOptions(port=0, http_port=port))
            try:
                await other.startup()
            finally:
                await other.shutdown()

        with pytest.raises(ServeError, match="cannot listen for HTTP") as caught:
            asyncio.run(start())
        assert "--http-port" in caught.value.cure


def test_without_an_http_port_there_is_no_http():
    with run_server(Greeter) as server:
        assert server.http_url == ""


def test_https_with_the_files_of_grpc(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    options = ServerOptions(port=0, http_port=0, tls=TlsFiles(certificate, key))
    with run_server(Greeter, options=options) as server:
        assert server.http_url.startswith("https://")
        trusting = ssl.create_default_context(cafile=certificate)
        assert httpx.get(server.http_url + "/ready", verify=trusting).status_code == 200
