import threading

import pytest

from modelkit.client import Client
from unit.client.scripted_server import Relay, running


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture
def relay(server):
    """A relay in front of the server, which cuts the connection as soon as a call that waits has begun."""
    relay = Relay(server.address)
    cutter = threading.Thread(target=lambda: server.servicer.entered.wait(30) and relay.cut())
    cutter.start()
    yield relay
    server.servicer.entered.set()
    cutter.join()
    relay.close()
