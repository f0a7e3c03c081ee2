import threading

import pytest

from modelkit import Client, Model, errors, method
from modelkit.model import SignatureError
from modelkit.testing import run_server


class Greeter(Model):
    closed = False

    @method
    def greet(self, name: str) -> str:
        return f"Hello, {name}!"

    def close(self):
        self.closed = True


def server_threads():
    return [thread.name for thread in threading.enumerate() if thread.name == "modelkit-test-server"]


def test_the_example_of_the_docstring():
    model = Greeter()
    with run_server(model) as server, Client(server.address) as client:
        assert client.predict(name="Ada", method="greet") == "Hello, Ada!"
    assert model.closed
    assert server_threads() == []


def test_without_load_it_listens_and_refuses():
    with run_server(Greeter, load=False) as server, Client(server.address, retry=None) as client:
        with pytest.raises(errors.UnavailableError, match="the model is loading"):
            client.predict(name="Ada", method="greet")
        server.run(server.server.load())
        assert client.predict(name="Ada", method="greet") == "Hello, Ada!"


def test_what_loading_raises_is_raised_and_nothing_stays():
    class Fails(Greeter):
        def load(self):
            raise RuntimeError("no weights")

    with pytest.raises(errors.LoadError, match="no weights"), run_server(Fails):
        pass
    assert server_threads() == []


def test_a_model_that_cannot_be_served_starts_nothing():
    class Wrong(Model):
        @method
        def run(self, a) -> int: ...

    with pytest.raises(SignatureError), run_server(Wrong):
        pass
    assert server_threads() == []
