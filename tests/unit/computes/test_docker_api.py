"""What is decided about a Docker host before anybody asks it."""

import pytest

from modelkit.computes import Compute
from modelkit.computes.docker_api import (
    GRPC_PORT,
    HTTP_PORT,
    bind_address,
    caller_host,
    check_address,
    endpoint_of,
    port_range,
    published,
)
from modelkit.errors import UsageError
from modelkit.image import plan


def compute(address="unix:///var/run/docker.sock", endpoint=None):
    return Compute(name="box", kind="docker", address=address, endpoint=endpoint)


def test_the_ports_in_a_container_are_the_images():
    assert (GRPC_PORT, HTTP_PORT) == (plan.GRPC_PORT, plan.HTTP_PORT)


@pytest.mark.parametrize(
    ("address", "endpoint", "host", "bound", "ports"),
    [
        ("unix:///var/run/docker.sock", None, "127.0.0.1", "127.0.0.1", None),
        ("tcp://127.0.0.1:2376", None, "127.0.0.1", "127.0.0.1", None),
        ("ssh://ada@localhost", None, "localhost", "127.0.0.1", None),
        ("ssh://ada@box:2222", None, "box", "0.0.0.0", None),
        ("tcp://10.0.0.5:2376", None, "10.0.0.5", "0.0.0.0", None),
        ("tcp://[fd00::5]:2376", None, "[fd00::5]", "0.0.0.0", None),
        ("ssh://box", "10.0.0.5", "10.0.0.5", "10.0.0.5", None),
        ("ssh://box", "10.0.0.5:30000-30999", "10.0.0.5", "10.0.0.5", "30000-30999"),
        ("ssh://box", "models.example.com:30000-30999", "models.example.com", "0.0.0.0", "30000-30999"),
        ("ssh://box", "fd00::5", "[fd00::5]", "fd00::5", None),
        ("ssh://box", "[fd00::5]:1-2", "[fd00::5]", "fd00::5", "1-2"),
        ("ssh://box", "127.0.0.1", "127.0.0.1", "127.0.0.1", None),
    ],
)
def test_where_replicas_listen_and_where_callers_find_them(address, endpoint, host, bound, ports):
    found = compute(address, endpoint)
    assert (caller_host(found), bind_address(found), port_range(found)) == (host, bound, ports)


@pytest.mark.parametrize("endpoint", ["10.0.0.5:50051", "http://box", "box:a-b", ""])
def test_an_endpoint_names_a_host_and_perhaps_a_range(endpoint):
    if not endpoint:
        assert port_range(compute(endpoint=endpoint)) is None
        return
    with pytest.raises(UsageError, match="is no endpoint of a Docker host") as caught:
        port_range(compute(endpoint=endpoint))
    assert "30000-30999" in caught.value.cure


@pytest.mark.parametrize(
    "address",
    [
        "unix:///var/run/docker.sock",
        "unix:///run/user/1000/docker.sock",
        "tcp://box:2376",
        "tcp://[fd00::5]:2376",
        "https://box:2376",
        "ssh://box",
        "ssh://ada@box:2222/run/docker.sock",
    ],
)
def test_an_address_that_can_be_right(address):
    check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "box",
        "/var/run/docker.sock",
        "unix://var/run/docker.sock",
        "unix://",
        "tcp://box",
        "tcp://:2376",
        "tcp://box:port",
        "tcp://[fd00::5:2376",
        "ftp://box",
        "ssh://",
        "ssh://ada:secret@box",
        "ssh://box:port",
    ],
)
def test_an_address_that_cannot_be_right(address):
    with pytest.raises(UsageError, match="is not the address of a Docker host"):
        check_address(address)


def listed(state="running", grpc_port=40001, http_port=40002):
    ports = [{"PrivatePort": 50051, "PublicPort": grpc_port}, {"PrivatePort": 8000, "PublicPort": http_port}]
    labels = {"modelkit.deployment": "chat"}
    return {"Id": str(grpc_port), "State": state, "Ports": ports, "Names": ["/chat-v1-1"], "Labels": labels}


def test_what_is_published():
    found = published(compute("ssh://box"), listed())
    assert (found.target, found.http_url) == ("box:40001", "http://box:40002")
    assert published(compute(), listed(state="restarting")) is None
    assert published(compute(), {**listed(), "Ports": []}) is None


def test_the_endpoint_has_every_replica():
    found = endpoint_of(compute(), [listed(grpc_port=40003), listed()])
    assert found.routes[0].targets == ("127.0.0.1:40001", "127.0.0.1:40003")
    assert found.routes[0].metadata == {"x-modelkit-deployment": "chat"}
    assert found.http_url == "http://127.0.0.1:40002"
    assert endpoint_of(compute(), []).routes[0].targets == ()
