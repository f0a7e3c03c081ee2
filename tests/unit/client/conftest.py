import pytest

from modelkit.client import Client
from unit.client.scripted_server import running


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client
