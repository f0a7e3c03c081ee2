"""Which web pages may call a server: by whose page it is, and by the name that it has used for the server."""

import httpx
import pytest

from modelkit import Model, method
from modelkit.errors import PermissionDeniedError
from modelkit.server import ServerOptions
from modelkit.server.http.origins import Origins
from modelkit.testing import run_server


class Greeter(Model):
    @method
    def predict(self, name: str) -> str:
        return f"Hello, {name}!"


def origins(*allowed, listens_on="127.0.0.1"):
    made = Origins(allowed)
    made.listens_on = listens_on
    return made


OWN = {"Host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://models.lan", "models.lan:80"),
        ("https://models.lan", "models.lan"),  # TLS ends at a proxy
        ("http://MODELS.lan:9", "models.LAN:9"),
    ],
)
def test_the_servers_own_page_may_call(origin, host):
    origins(listens_on="0.0.0.0").check("POST", {"Host": host, "Origin": origin})


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", None])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://models.lan:8001",  # another port of the same machine
        "http://models.lan",
        "null",
        "",
        "http://[",
        "http://models.lan:99999999",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_another_page_may_not_wherever_the_server_listens(origin, site, method):
    headers = {"Host": "models.lan:8000", "Origin": origin} | ({"Sec-Fetch-Site": site} if site else {})
    with pytest.raises(PermissionDeniedError, match="may not call this server") as error:
        origins(listens_on="0.0.0.0").check(method, headers)
    assert not origin or error.value.cure == f"allow them with --cors-origin {origin}"


def test_a_page_may_look_and_ask_but_not_change():
    for verb in ("GET", "HEAD", "OPTIONS"):
        origins().check(verb, OWN | {"Origin": "https://evil.example"})


def test_a_page_that_hides_its_origin_is_told_by_its_site():
    with pytest.raises(PermissionDeniedError, match="pages of other sites"):
        origins().check("POST", OWN | {"Sec-Fetch-Site": "cross-site"})


def test_programs_send_no_origin():
    origins().check("POST", OWN)
    origins().check("POST", {})


@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
def test_an_allowed_origin_may(allowed):
    origins(allowed).check("POST", OWN | {"Origin": "https://app.example"})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.1:8000",
        "[",
        "",
        "127.0.0.1.nip.io",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_pointed_to_this_machine_is_refused(host, method):
    with pytest.raises(PermissionDeniedError, match=r"listens on this machine only \(127.0.0.1\)") as error:
        origins().check(method, {"Host": host, "Origin": f"http://{host}"})
    assert "--host" in error.value.cure


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8000", "a.localhost", "LOCALHOST"]
)
def test_every_name_of_this_machine_is_its_own(host):
    origins().check("GET", {"Host": host})


def test_a_server_of_the_network_has_any_name():
    origins(listens_on="0.0.0.0").check("GET", {"Host": "models.lan"})
    origins(listens_on="10.0.0.7").check("GET", {"Host": "models.lan"})


def test_the_name_of_an_allowed_origin_is_the_servers_too():
    origins("https://models.example").check("GET", {"Host": "models.example"})


def test_a_real_server_refuses_both():
    with run_server(Greeter, http=True) as server, httpx.Client(base_url=server.http_url) as client:
        body = {"name": "A"}
        rebound = client.post("/v1/methods/predict", json=body, headers={"Host": "evil.example"})
        assert rebound.status_code == 403
        assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 403
        # As from a browser that sends no Sec-Fetch-Site, which it does for addresses that it does not trust.
        page = {"Origin": "http://10.0.0.1"}
        assert client.post("/v1/methods/predict", json=body, headers=page).status_code == 403
        own = {"Origin": server.http_url}
        assert client.post("/v1/methods/predict", json=body, headers=own).status_code == 200


def test_probes_of_an_orchestrator_name_the_pod():
    options = ServerOptions(host="0.0.0.0", port=0, http_port=0, api_key="secret")
    with run_server(Greeter, options=options) as server:
        url = server.http_url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(url + "/ready", headers={"Host": "10.1.2.3:8000"}).status_code == 200
