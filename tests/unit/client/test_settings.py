import pytest

from modelkit.client import TLS, AsyncClient, Client
from modelkit.client.settings import is_loopback, parse_address
from modelkit.errors import UsageError

HOST = "models.example.com"


@pytest.mark.parametrize(
    ("address", "target", "tls"),
    [
        ("localhost:50051", "localhost:50051", None),
        ("localhost", "localhost:50051", None),
        ("[::1]:9000", "[::1]:9000", None),
        ("::1", "[::1]:50051", None),
        ("[::1]", "[::1]:50051", None),
        ("grpc://10.0.0.1:1/", "10.0.0.1:1", False),
        (f"grpcs://{HOST}:443", f"{HOST}:443", True),
        ("unix:/run/model.sock", "unix:/run/model.sock", None),
    ],
)
def test_addresses(address, target, tls):
    assert parse_address(address) == (target, tls)


@pytest.mark.parametrize("address", ["http://localhost:1", "localhost:http", "localhost:70000", "a/b", " "])
def test_what_is_no_address_says_how_to_write_one(address):
    with pytest.raises(UsageError) as raised:
        Client(address)
    assert raised.value.cure.startswith("write ")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:1", True),
        ("127.0.0.9:1", True),
        ("[::1]:1", True),
        ("unix:a", True),
        ("10.0.0.1:1", False),
        (HOST, False),
    ],
)
def test_loopback(target, expected):
    assert is_loopback(target) is expected


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_never_leaves_the_machine_in_plain_text(kind):
    with pytest.raises(UsageError, match="plain text"):
        kind(HOST, api_key="sk-1")
    with pytest.raises(UsageError, match="plain text"):
        kind(f"grpc://{HOST}", api_key="sk-1")
    kind(HOST, api_key="sk-1", allow_plaintext_api_key=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELKIT_ALLOW_PLAINTEXT_API_KEY", "1")
        kind(HOST, api_key="sk-1")
    kind(HOST, api_key="sk-1", tls=True)
    kind(f"grpcs://{HOST}", api_key="sk-1")
    kind("localhost", api_key="sk-1")


def test_the_environment_fills_in_what_is_left_out(monkeypatch):
    monkeypatch.setenv("MODELKIT_ADDRESS", f"grpcs://{HOST}:443")
    monkeypatch.setenv("MODELKIT_API_KEY", "sk-secret")
    assert repr(Client()) == f"Client('{HOST}:443', api_key=hidden, tls=TLS(ca_path=None, certificate_path=None, key_path=None, server_name=None))"  # fmt: skip
    assert Client("localhost:1").address == "localhost:1"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_secrets_are_in_no_repr(kind):
    client = kind("localhost:1", api_key="sk-secret", headers={"x-gateway-key": "gw-secret"})
    assert "secret" not in repr(client)
    assert "secret" not in repr(client._settings)


def test_tls_files_are_read_at_once_and_named_in_errors(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the CA file '.*missing\.pem': No such file"):
        Client("localhost:1", tls=TLS(ca_path=tmp_path / "missing.pem"))
    with pytest.raises(UsageError, match="needs its key"):
        TLS(certificate_path="a.pem")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "settings", [{"api_key": "sk-1\n"}, {"headers": {"a": "b\n"}}, {"headers": {"a b": "c"}}]
)
def test_headers_that_cannot_be_sent_are_refused(kind, settings):
    with pytest.raises(UsageError, match="that cannot be sent") as raised:
        kind("localhost", **settings)
    assert "sk-1" not in str(raised.value)
