"""The clients against the real server: what one side says, the other understands."""

import asyncio
import queue
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from modelkit import AsyncClient, Client, Field, Image, Model, Text, errors, method
from modelkit.client import TLS, RetryPolicy, Usage
from modelkit.server import ServerOptions, TlsFiles
from modelkit.testing import run_server


@dataclass
class Person:
    name: str
    age: int = 0


class Everything(Model):
    """A method of each kind, and one for each way to fail."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.may_go_on = threading.Semaphore(0)
        self.num_failures = 0

    @method
    def predict(self, prompt: str, times: int = Field(1, ge=1, le=3)) -> str:
        """Repeat a prompt."""
        self.report_usage(prompt_tokens=2, output_tokens=times, cached_tokens=1)
        self.request.response_metadata["seen"] = self.request.metadata.get("user", "nobody")
        return prompt * times

    @method
    def generate(self, prompt: str, step: bool = False) -> Iterator[Text]:
        for number, word in enumerate(prompt.split(), start=1):
            yield Text(word, (number,))
            self.report_usage(output_tokens=number)
            if step:
                assert self.may_go_on.acquire(timeout=30)

    @method
    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    @method
    async def endless(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 0
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()

    @method
    async def slow(self) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            self.closed.set()

    @method
    async def stream(self, turns: AsyncIterator[str], mark: str = "!") -> AsyncIterator[str]:
        async for turn in turns:
            yield turn + mark

    @method
    def age(self, person: Person, unit: Literal["years", "days"] = "years") -> int:
        return person.age * (365 if unit == "days" else 1)

    @method
    def invert(self, image: Image) -> Image:
        return Image(image.data[::-1], image.media_type)

    @method
    def fail(self, with_what: str) -> None:
        self.num_failures += 1
        if with_what == "python":
            raise RuntimeError("a bug")
        raise getattr(errors, with_what)("on purpose", cure="do not")


@pytest.fixture(scope="module")
def model():
    return Everything()


@pytest.fixture(scope="module")
def server(model):
    with run_server(model) as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *options.split(), *files], check=True, capture_output=True)
    return certificate, key


def test_a_unary_call(client):
    response = client.call("ab", times=2, metadata={"user": "ada"})
    assert response.value == "abab"
    assert response.usage == Usage(prompt_tokens=2, output_tokens=2, cached_tokens=1)
    assert response.metadata == {"seen": "ada"}


def test_the_model_may_not_break_the_clients_types(client):
    assert client.methods.age({"name": "Ada", "age": 2}, unit="days") == 730
    assert client.methods.age(person=Person("Ada", 3)) == 3
    assert client.methods.invert(Image(b"abc", "image/png")) == Image(b"cba", "image/png")


def test_a_stream_arrives_piece_by_piece(client, model):
    stream = client.methods.generate("to be or not", step=True)
    for number, word in enumerate(["to", "be", "or", "not"], start=1):
        assert next(stream) == Text(word, (number,))  # while the model waits before the next
        model.may_go_on.release()
    assert list(stream) == []
    assert stream.usage == Usage(output_tokens=4)


def test_a_lagging_reader_gets_every_item_in_fewer_messages(client):
    chunks = list(client.generate(to=20_000, method="count").chunks())
    assert [item for chunk in chunks for item in chunk.items] == list(range(20_000))
    assert len(chunks) < 20_000


@pytest.mark.parametrize("leave", ["close", "cancel"])
def test_leaving_early_reaches_the_model(client, model, leave):
    model.closed.clear()
    stream = client.generate(method="endless")
    next(stream)
    getattr(stream, leave)()
    assert model.closed.wait(10)


def test_a_bidirectional_call_interleaves(client):
    turns = queue.Queue()
    stream = client.methods.stream(iter(turns.get, None), mark="?")
    for text in ("a", "b"):
        turns.put(text)
        assert next(stream) == f"{text}?"
    turns.put(None)
    assert list(stream) == []


async def test_the_asynchronous_client_does_the_same(server):
    async def turns():
        yield "a"
        yield "b"

    async with AsyncClient(server.address) as client:
        assert await client.predict("x", times=3) == "xxx"
        assert [item async for item in client.methods.stream(turns())] == ["a!", "b!"]
        assert await asyncio.gather(*(client.predict(prompt=str(n)) for n in range(50))) == [
            str(n) for n in range(50)
        ]


@pytest.mark.parametrize(
    "name",
    [
        "InvalidArgumentError",
        "NotFoundError",
        "FailedPreconditionError",
        "UnauthenticatedError",
        "PermissionDeniedError",
        "OverloadedError",
        "UnimplementedError",
        "InternalError",
    ],
)
def test_an_error_is_the_same_on_both_sides(client, name):
    with pytest.raises(errors.CallError) as raised:
        client.predict(method="fail", with_what=name)
    assert type(raised.value).__name__ == name
    assert (raised.value.message, raised.value.cure) == ("on purpose", "do not")
    assert raised.value.request_id


@pytest.mark.parametrize(("retry", "num_runs"), [(RetryPolicy(initial_backoff_s=0.01), 1), (RetryPolicy(initial_backoff_s=0.01, idempotent=True), 4)])  # fmt: skip
def test_what_a_model_calls_unavailable_is_its_own_doing(server, model, retry, num_runs):
    before = model.num_failures
    with Client(server.address, retry=retry) as client, pytest.raises(errors.UnavailableError) as raised:
        client.predict(method="fail", with_what="UnavailableError")
    assert model.num_failures == before + num_runs
    assert raised.value.executed


def test_a_bug_of_the_model_shows_nothing_of_its_code(client):
    with pytest.raises(errors.InternalError) as raised:
        client.predict(method="fail", with_what="python")
    assert "Traceback" not in str(raised.value)
    assert "test_client.py" not in str(raised.value)
    assert raised.value.request_id


def test_an_unknown_method_is_named_by_either_side(client):
    for call in (lambda: client.predict(method="predit"), lambda: client.predict("x", method="predit")):
        with pytest.raises(errors.MethodNotFoundError, match="did you mean 'predict'"):
            call()


def test_a_limit_is_a_violation(client):
    with pytest.raises(errors.InvalidArgumentError) as raised:
        client.predict(prompt="x", times=4)
    assert [violation.field for violation in raised.value.violations] == ["times"]


def test_a_stream_called_as_unary_is_refused(client):
    with pytest.raises(errors.CallError):
        client.predict(method="count", to=3)


def test_a_deadline_reaches_the_model(client, model):
    model.closed.clear()
    with pytest.raises(errors.DeadlineExceededError, match="within 1 s"):
        client.predict(method="slow", timeout_s=1)
    assert model.closed.wait(10)


def test_the_description(client):
    model = client.describe()
    assert model.ready
    assert str(model.method("predict")) == "predict(prompt: str, times: int = 1 [1..3]) -> str"
    assert str(model.method("age")) == "age(person: Person, unit: Literal['years', 'days'] = 'years') -> int"
    assert str(model.method("stream")) == "stream(turns: Iterator[str], mark: str = '!') -> Iterator[str]"
    assert str(model.method("generate").result) == "Text"


def test_a_model_that_is_loading():
    with run_server(Everything, load=False) as server, Client(server.address, retry=None) as client:
        assert client.health() == "NOT_SERVING"
        assert client.health("liveness") == "SERVING"
        assert (client.describe().state, client.describe().ready) == ("loading", False)
        with pytest.raises(errors.UnavailableError):
            client.predict(prompt="x")
        loader = threading.Timer(0.3, lambda: server.run(server.server.load()))
        loader.start()
        client.wait_ready(10)
        assert client.predict(prompt="x") == "x"
        loader.join()


def test_a_refused_stream_is_tried_again():
    patient = RetryPolicy(max_attempts=50, max_backoff_s=0.2)
    with run_server(Everything, load=False) as server, Client(server.address, retry=patient) as client:
        loader = threading.Timer(0.3, lambda: server.run(server.server.load()))
        loader.start()
        assert list(client.generate(to=3, method="count", timeout_s=30)) == [0, 1, 2]
        loader.join()


def test_retries_ride_over_the_loading_of_a_model():
    patient = RetryPolicy(max_attempts=20, max_backoff_s=0.2)
    with run_server(Everything, load=False) as server, Client(server.address, retry=patient) as client:
        loader = threading.Timer(0.3, lambda: server.run(server.server.load()))
        loader.start()
        assert client.predict(prompt="x", timeout_s=20) == "x"
        loader.join()


def test_an_api_key_opens_the_server():
    with run_server(Everything, options=ServerOptions(port=0, api_key="sk-right")) as server:
        for key in (None, "sk-wrong"):
            with Client(server.address, api_key=key) as client:
                assert client.health() == "SERVING"
                with pytest.raises(errors.UnauthenticatedError) as raised:
                    client.predict(prompt="x")
                assert "MODELKIT_API_KEY" in raised.value.cure
        with Client(server.address, api_key="sk-right") as client:
            assert client.predict(prompt="x") == "x"
            assert list(client.generate(method="count", to=2)) == [0, 1]


def test_tls_with_a_client_certificate(certificates):
    certificate, key = certificates
    files = TlsFiles(certificate=certificate, key=key, client_ca=certificate)
    with run_server(Everything, options=ServerOptions(port=0, tls=files)) as server:
        address = f"localhost:{server.address.rpartition(':')[2]}"
        mutual = TLS(ca_path=certificate, certificate_path=certificate, key_path=key)
        with Client(address, tls=mutual, api_key="sk-any") as client:
            assert client.predict(prompt="x") == "x"
        with (
            Client(address, tls=TLS(ca_path=certificate), retry=None) as client,
            pytest.raises(errors.UnavailableError),
        ):
            client.predict(prompt="x", timeout_s=5)


def test_tls_mistakes_are_told_apart(certificates, server):
    certificate, key = certificates
    options = ServerOptions(port=0, tls=TlsFiles(certificate=certificate, key=key))

    def failure(address, tls):
        with Client(address, tls=tls, retry=None) as client, pytest.raises(errors.UnavailableError) as raised:
            client.predict(prompt="x", timeout_s=5)
        return raised.value.message

    with run_server(Everything, options=options) as secure:
        port = secure.address.rpartition(":")[2]
        assert "is not trusted" in failure(f"127.0.0.1:{port}", True)
        assert "hung up" in failure(f"127.0.0.1:{port}", None)
        with Client(f"127.0.0.1:{port}", tls=TLS(ca_path=certificate, server_name="localhost")) as client:
            assert client.predict(prompt="x") == "x"
        assert "for another name" in failure(f"127.0.0.1:{port}", TLS(ca_path=certificate))
    assert "does not speak TLS" in failure(server.address, True)
