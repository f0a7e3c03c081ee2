"""Where a deployment on Ray is called, from what the cluster says; and what its refusals mean."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from modelkit.computes import Compute
from modelkit.computes.ray_api import RayApi, endpoint_of, is_on_this_machine
from modelkit.deploy.ray_serve.manifest import application
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, UnknownDeploymentError

COMPUTE = Compute(name="gpus", kind="ray", address="http://10.0.0.1:8265")


def target(ip, port):
    return {"ip": ip, "port": port}


def group(app, *targets):
    return {"protocol": "gRPC", "app_name": app, "targets": list(targets)}


def instance(*groups, apps=("chat",), canary_percent=None):
    applications = {name: {"status": "RUNNING", "deployed_app_config": {}} for name in apps}
    if canary_percent is not None:
        config = {"model": {"id": "chat"}}
        spec = DeploymentSpec(name="chat", model_id="chat", version="v2", digest="2", config=config)
        app = application(Record(spec), canary_percent=canary_percent)
        applications[app["name"]] = {"status": "RUNNING", "deployed_app_config": app}
    return {
        "http_options": {"port": 8000},
        "grpc_options": {"port": 9000},
        "proxies": {
            "a": {"node_ip": "10.0.0.1", "status": "HEALTHY"},
            "b": {"node_ip": "10.0.0.2", "status": "HEALTHY"},
            "c": {"node_ip": "10.0.0.3", "status": "DRAINING"},
        },
        "applications": applications,
        "target_groups": list(groups),
    }


PROXIES = ("10.0.0.1:9000", "10.0.0.2:9000")


def test_replicas_are_called_themselves_and_proxies_hold_what_comes_without():
    found = instance(
        group("chat", target("10.0.0.2", 40001), target("10.0.0.2", 40000)), group("other", target("x", 1))
    )
    endpoint = endpoint_of(COMPUTE, found, "chat")
    (route,) = endpoint.routes
    assert route.targets == ("10.0.0.2:40000", "10.0.0.2:40001")
    assert route.waiting == PROXIES
    assert route.metadata == {"application": "chat"}
    assert endpoint.http_url == "http://10.0.0.1:8000/chat"
    assert not endpoint.carries_deadline
    assert endpoint.refresh_s


@pytest.mark.parametrize(
    "groups", [[], [group("", target("10.0.0.1", 9000))], [group("chat", target("10.0.0.1", 9000))]]
)
def test_without_replicas_or_direct_ingress_the_proxies_are_called(groups):
    (route,) = endpoint_of(COMPUTE, instance(*groups), "chat").routes
    assert (route.targets, route.waiting) == (PROXIES, ())


def test_an_endpoint_that_was_given_is_the_only_way():
    compute = Compute(
        name="gpus", kind="ray", address="http://localhost:8265", endpoint="ray.example.com:443"
    )
    (route,) = endpoint_of(compute, instance(group("chat", target("10.0.0.2", 40001))), "chat").routes
    assert (route.targets, route.waiting) == (("ray.example.com:443",), ())
    assert endpoint_of(compute, instance(), "chat").http_url is None  # a node's address means nothing there


def test_a_canary_shares_the_calls():
    found = instance(group("chat", target("r", 1)), group("chat.canary", target("r", 2)), canary_percent=20)
    routes = endpoint_of(COMPUTE, found, "chat").routes
    assert [(route.targets, route.weight, route.metadata["application"]) for route in routes] == [
        (("r:1",), 80, "chat"),
        (("r:2",), 20, "chat.canary"),
    ]
    found["applications"]["chat.canary"]["status"] = "DEPLOYING"
    assert len(endpoint_of(COMPUTE, found, "chat").routes) == 1


def test_an_unknown_deployment_names_the_nearest():
    with pytest.raises(UnknownDeploymentError) as caught:
        endpoint_of(COMPUTE, instance(), "chad")
    assert caught.value.cure == "did you mean chat?"


def test_ipv6():
    (route,) = endpoint_of(COMPUTE, instance(group("chat", target("fd00::1", 40000))), "chat").routes
    assert route.targets == ("[fd00::1]:40000",)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265", True),
        ("http://head:8265", False),
        ("https://10.0.0.1", False),
    ],
)
def test_this_machine(address, expected):
    assert is_on_this_machine(Compute(name="x", kind="ray", address=address)) is expected


@contextmanager
def dashboard(status, body):
    """Something that answers every request with this, and remembers what it was sent."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "token", "message", "cure"),
    [
        (401, b"", None, "asks for a token", "--token-env"),
        (403, b"no", "secret", "does not take the token", "the one that the cluster was started with"),
        (404, b"", None, "has no /api/version", "8265"),
        (500, b"Traceback: boom", None, "refuses (500): Traceback: boom", ""),
        (200, b"<html>", None, "is not Ray's dashboard", "--address"),
    ],
)
def test_refusals_say_what_to_do(status, body, token, message, cure, monkeypatch):
    monkeypatch.setenv("RAY_TOKEN", token or "")
    with dashboard(status, body) as (address, seen):
        api = RayApi(
            Compute(name="gpus", kind="ray", address=address, token_env="RAY_TOKEN" if token else None)
        )
        with pytest.raises(DeployError) as caught:
            api.version()
        api.close()
    assert message in caught.value.message
    assert cure in caught.value.cure
    assert seen[0].get("Authorization") == (f"Bearer {token}" if token else None)
    assert token is None or token not in caught.value.message + caught.value.cure


def test_nobody_there():
    api = RayApi(Compute(name="gpus", kind="ray", address="http://127.0.0.1:9"))
    with pytest.raises(DeployError, match="cannot be reached"):
        api.instance()
    api.close()


def test_what_is_taken_and_what_there_is():
    content = {"data": {"clusterStatus": {"loadMetricsReport": {"usage": {"CPU": [1.5, 8.0]}}}}}
    with dashboard(200, json.dumps(content).encode()) as (address, _):
        api = RayApi(Compute(name="gpus", kind="ray", address=address))
        assert api.usage() == {"CPU": (1.5, 8.0)}
        api.close()


def test_lines_of_a_log_and_a_log_that_cannot_be_read():
    for body, expected in ((b"0 done\n1 left", ["0 done", "1 left"]), (b"", [])):
        with dashboard(200, body) as (address, _):
            api = RayApi(Compute(name="gpus", kind="ray", address=address))
            assert list(api.log_lines("actor", num_lines=5)) == expected
            api.close()
    with dashboard(500, b"no such file") as (address, _):
        api = RayApi(Compute(name="gpus", kind="ray", address=address))
        with pytest.raises(DeployError, match="no such file"):
            list(api.log_lines("actor", num_lines=5))
        api.close()


def test_actors_that_have_ended_are_told_with_when():
    """Ray's state API does not say it, the dashboard's own list of actors does."""
    actors = {"a": {"endTime": 5000}}
    body = json.dumps(
        {"data": {"result": {"result": [{"actor_id": "a"}, {"actor_id": "b"}]}, "actors": actors}}
    )
    with dashboard(200, body.encode()) as (address, _):
        api = RayApi(Compute(name="gpus", kind="ray", address=address))
        assert [each["end_time_ms"] for each in api.dead_actors("ServeReplica:chat:model")] == [5000, 0]
        api.close()
