"""The client against a real registry: passwords, tokens, TLS, limits, overload, cuts, a registry that is killed."""

import base64
import json
import shutil
import ssl
import subprocess
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from fixtures_registry import PASSWORD, USER
from modelkit.errors import RegistryError
from modelkit.registry import Bytes, Draft, FilePart, Reference, copy
from modelkit.registry.base import EMPTY_CONFIG, MANIFEST
from modelkit.registry.client import Client
from modelkit.registry.content import describe
from modelkit.registry.failures import AccessError, TransientError, UnknownReferenceError
from registry_proxy import RegistryProxy
from registry_server import RegistryServer

OCTETS = "application/octet-stream"


@pytest.fixture
def opened():
    """Return a function that opens a repository, which is closed after the test."""
    clients = []

    def open_client(*arguments, **options):
        clients.append(Client(*arguments, **options))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


def draft_of(*layers):
    draft = Draft()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.test",
        "config": EMPTY_CONFIG.to_json(),
        "layers": [draft.add_bytes(layer, OCTETS).to_json() for layer in layers],
    }
    return draft, draft.add_manifest(document)


def push(store, *layers, tag="v1"):
    draft, manifest = draft_of(*layers)
    return copy(draft, store, manifest.digest, tags=[tag])


def new_name():
    return f"test/{uuid.uuid4().hex[:12]}"


# ---------------------------------------------------------------------------------------------------------- who we are


def test_a_password_from_docker_config(opened, logged_in):
    store = opened(logged_in.reference(new_name()))
    push(store, b"weights")
    assert store.tags() == ["v1"]


def test_without_a_password_the_cure_is_a_login(opened, private_registry, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(AccessError, match="no credentials for it were found") as caught:
        push(opened(private_registry.reference(new_name())), b"weights")
    assert f"docker login {private_registry.host}" in caught.value.cure


def test_a_wrong_password_is_said_to_be_refused_and_not_shown(opened, private_registry, monkeypatch):
    monkeypatch.setenv("MODELKIT_REGISTRY_HOST", private_registry.host)
    monkeypatch.setenv("MODELKIT_REGISTRY_USERNAME", USER)
    monkeypatch.setenv("MODELKIT_REGISTRY_PASSWORD", "wrong-but-secret")
    with pytest.raises(
        AccessError, match=f"the credentials of {USER} from MODELKIT_REGISTRY_USERNAME were refused"
    ) as c:
        push(opened(private_registry.reference(new_name())), b"weights")
    assert "wrong-but-secret" not in str(c.value) + c.value.cure


class TokenService(ThreadingHTTPServer):
    """Gives tokens for what is asked, to who knows the password: https://distribution.github.io/distribution/spec/auth/jwt/."""

    daemon_threads = True

    def __init__(self, folder) -> None:
        service = self
        self.folder, self.asked = folder, []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments) -> None: ...

            def do_GET(self) -> None:
                expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                is_known = self.headers.get("Authorization") == expected
                query = parse_qs(urlsplit(self.path).query)
                service.asked.append(query["scope"])
                body = json.dumps({"token": service.token(query)} if is_known else {}).encode()
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self.server_address[1]}/token"
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
        ]
        paths = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
        subprocess.run([*command, *paths], check=True, capture_output=True)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def token(self, query) -> str:
        der = ssl.PEM_cert_to_DER_cert((self.folder / "cert.pem").read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in query["scope"])
        ]
        claims = {"iss": "tokens", "sub": USER, "aud": query["service"][0], "exp": now + 60, "nbf": now - 10}
        claims |= {"iat": now, "jti": uuid.uuid4().hex, "access": access}
        signed = ".".join(_url64(json.dumps(part).encode()) for part in (header, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", str(self.folder / "key.pem")]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_url64(signature)}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def token_registry(tmp_path, registry):
    """A registry that takes tokens of a service, and the service."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    service = TokenService(folder)
    auth = {
        "realm": service.realm,
        "service": "test",
        "issuer": "tokens",
        "rootcertbundle": str(folder / "cert.pem"),
    }
    server = RegistryServer(tmp_path / "token-registry", auth={"token": auth}).start()
    yield server, service
    server.kill()
    service.shutdown()
    service.server_close()


def test_tokens_ask_for_no_more_than_each_request_needs(opened, token_registry, monkeypatch):
    server, service = token_registry
    auths = {server.host: {"username": USER, "password": PASSWORD}}
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": auths}))
    first, second = (opened(server.reference(name)) for name in ("team/one", "team/two"))
    push(first, b"weights", b"code")
    assert copy(first, second, "v1", tags=["v1"]).num_mounted == 3
    assert second.tags() == ["v1"]
    one, two = "repository:team/one:pull", "repository:team/two:pull"
    assert sorted(service.asked) == sorted(
        [[one], [f"{one},push"], [two], [f"{two},push"], [f"{two},push", one]]
    )


def test_a_token_service_that_refuses_is_a_refused_login(opened, token_registry, monkeypatch):
    server, _ = token_registry
    monkeypatch.setenv(
        "DOCKER_AUTH_CONFIG", json.dumps({"auths": {server.host: {"username": "eve", "password": "x"}}})
    )
    with pytest.raises(AccessError, match="the credentials of eve from DOCKER_AUTH_CONFIG were refused"):
        push(opened(server.reference("team/one")), b"weights")


# ------------------------------------------------------------------------------------------------------------- the wire


@pytest.fixture
def tls_registry(tmp_path, registry):
    folder = tmp_path / "tls"
    folder.mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(
        [*command, *files, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True
    )
    tls = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    server = RegistryServer(tmp_path / "tls-registry", http={"tls": tls}).start()
    yield server, folder / "cert.pem"
    server.kill()


def test_tls_with_an_authority_of_ones_own(opened, tls_registry, monkeypatch):
    server, certificate = tls_registry
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    store = opened(server.reference(new_name()))
    push(store, b"weights")
    assert store.tags() == ["v1"]


def test_a_certificate_that_is_not_trusted(opened, tls_registry):
    server, _ = tls_registry
    with pytest.raises(RegistryError, match="is not trusted") as caught:
        opened(server.reference("chat")).tags()
    assert "SSL_CERT_FILE" in caught.value.cure


def test_plain_http_to_a_registry_that_speaks_https(opened, tls_registry):
    server, _ = tls_registry
    with pytest.raises(RegistryError, match="speaks HTTPS") as caught:
        opened(server.reference("chat"), plain_http=True).tags()
    assert "--plain-http" in caught.value.cure


def test_another_machine_is_never_spoken_to_in_the_clear(opened, registry, monkeypatch):
    monkeypatch.setattr(Reference, "is_loopback", property(lambda _: False))
    with pytest.raises(RegistryError, match="does not speak HTTPS") as caught:
        opened(registry.reference("chat"), attempts=1).tags()
    assert "--plain-http" in caught.value.cure
    store = opened(registry.reference(new_name()), plain_http=True)
    assert store.tags() == []


def test_a_registry_that_is_not_there(opened, own_registry):
    own_registry.kill()
    with pytest.raises(TransientError, match="the connection to localhost") as caught:
        opened(own_registry.reference("chat"), attempts=2).tags()
    assert "run the command again" in caught.value.cure


# ----------------------------------------------------------------------------------------------------- limits and loads


def test_a_proxy_that_limits_requests_gets_small_ones(opened, proxy):
    proxy.rules.max_body_bytes = 1024 * 1024
    data = bytes(range(256)) * 4096 * 3
    store = opened(proxy.reference(new_name()))
    push(store, data)
    assert b"".join(store.read_blob(describe(Bytes(data), OCTETS))) == data
    patches = [num for method, _, num in proxy.requests if method == "PATCH"]
    assert sum(patches) == len(data)
    assert max(patches) <= 1024 * 1024


def test_a_registry_without_patch(opened, proxy):
    proxy.rules.refuse = lambda method, path: (405, {}, b"") if method == "PATCH" else None
    store = opened(proxy.reference(new_name()))
    push(store, b"weights" * 1_000_000)
    assert store.tags() == ["v1"]


def test_overload_is_waited_out_as_long_as_the_registry_says(opened, proxy):
    refused = []

    def refuse(method, path):
        if len(refused) < 4 and method in {"POST", "PUT"}:
            refused.append(method)
            return (429, {"Retry-After": "0"}, b"") if len(refused) % 2 else (503, {}, b"")
        return None

    proxy.rules.refuse = refuse
    store = opened(proxy.reference(new_name()))
    push(store, b"weights", b"code")
    assert len(refused) == 4
    assert store.tags() == ["v1"]


def test_a_long_wait_is_left_to_the_person(opened, proxy):
    proxy.rules.refuse = lambda method, path: (
        429,
        {"Retry-After": "3600"},
        b'{"errors": [{"code": "TOOMANYREQUESTS"}]}',
    )
    with pytest.raises(TransientError, match="TOOMANYREQUESTS") as caught:
        opened(proxy.reference("chat")).tags()
    assert caught.value.cure.startswith("wait 3600 s")


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "cure"),
    [
        (403, b'{"errors": [{"code": "DENIED", "message": "quota exceeded"}]}', AccessError, "quota exceeded", "quota"),
        (404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "no repository"}]}', UnknownReferenceError,
         "no repository", "create the repository"),
        (413, b"<html>too large</html>", RegistryError, "larger than", "client_max_body_size"),
        (400, b'{"errors": [{"code": "MANIFEST_INVALID", "message": "bad"}]}', RegistryError, "bad", "log of localhost"),
        (500, b"oops", TransientError, "oops", "when the registry is well"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_and_how_to_mend_it(opened, proxy, status, body, kind, message, cure):
    proxy.rules.refuse = lambda method, path: (status, {}, body) if method in {"POST", "PUT"} else None
    with pytest.raises(kind, match=message) as caught:
        # Twice, for the proxy closes the connection of a request that it refuses unread, and another one may just use it.
        push(opened(proxy.reference(new_name()), attempts=2), b"weights")
    assert cure in caught.value.cure
    assert "cannot push" in str(caught.value) or kind is UnknownReferenceError


def test_a_manifest_of_more_than_4_mib_is_refused_before_it_is_sent(opened, registry):
    draft, _ = draft_of()
    layers = [EMPTY_CONFIG.to_json() | {"annotations": {"n": "x" * 1000 + str(n)}} for n in range(4000)]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": EMPTY_CONFIG.to_json(), "layers": layers}
    with pytest.raises(RegistryError, match="registries take 4 MiB") as caught:
        copy(draft, opened(registry.reference(new_name())), draft.add_manifest(document).digest)
    assert "fewer files" in caught.value.cure


def test_a_list_of_tags_over_many_pages(opened, registry):
    store = opened(registry.reference(new_name()))
    draft, manifest = draft_of(b"weights")
    names = sorted(f"v{number}" for number in range(120))
    copy(draft, store, manifest.digest, tags=names)
    assert store.tags() == names


class Elsewhere(ThreadingHTTPServer):
    """A host that wants a token, and of whom a registry says that its list of tags goes on there."""

    daemon_threads = True

    def __init__(self):
        self.asked = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments) -> None: ...

            def do_GET(self) -> None:
                asked.append(self.headers.get("Authorization"))
                # Who asks for ever gets an answer in the end, so that the test ends too.
                self.send_response(401 if len(asked) < 5 else 200)
                self.send_header("WWW-Authenticate", 'Basic realm="elsewhere"')
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


def test_another_host_that_wants_a_login_gets_none_and_is_not_asked_for_ever(opened, monkeypatch):
    elsewhere = Elsewhere()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments) -> None: ...

        def do_GET(self) -> None:
            body = b'{"tags": ["v1"]}'
            self.send_response(200)
            self.send_header("Link", f'<http://127.0.0.1:{elsewhere.server_address[1]}/more>; rel="next"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    for name, value in {"HOST": host, "USERNAME": USER, "PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(f"MODELKIT_REGISTRY_{name}", value)
    try:
        with pytest.raises(AccessError):
            opened(Reference(host, "chat"), plain_http=True).tags()
        assert elsewhere.asked == [None]
    finally:
        for each in (server, elsewhere):
            each.shutdown()
            each.server_close()


# -------------------------------------------------------------------------------------------------------------- cuts


def test_a_read_that_is_cut_goes_on_where_it_was(opened, proxy):
    data = bytes(range(256)) * 4096 * 4
    store = opened(proxy.reference(new_name()))
    push(store, data)
    proxy.rules.cut_reads_after_bytes = 1_500_000
    assert b"".join(store.read_blob(describe(Bytes(data), OCTETS))) == data
    reads = [path for method, path, _ in proxy.requests if method == "GET" and "/blobs/" in path]
    assert len(reads) == 3


class Told:
    """A TransferProgress that adds up what it hears."""

    def __init__(self) -> None:
        self.total_bytes, self.done_bytes, self.files = 0, 0, set()

    def begin(self, num_files, total_bytes):
        self.total_bytes = total_bytes

    def started(self, name, size_bytes, done_bytes=0): ...

    def advanced(self, name, num_bytes):
        self.done_bytes += num_bytes

    def finished(self, name):
        self.files.add(name)


def test_a_registry_that_is_killed_and_started_again_gets_the_rest(opened, own_registry, tmp_path):
    proxy = RegistryProxy(own_registry.port)
    try:
        path = tmp_path / "weights"
        path.write_bytes(b"0123456789abcdef" * 500_000)
        part = FilePart(path, path.stat().st_size)
        draft = Draft()
        layer = draft.add(describe(part, OCTETS), part)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": EMPTY_CONFIG.to_json(),
            "layers": [layer.to_json()],
        }
        manifest = draft.add_manifest(document)
        proxy.rules.bytes_per_s = 8_000_000

        def disturb():
            while proxy.blob_bytes < 2_000_000:
                time.sleep(0.01)
            own_registry.kill()
            time.sleep(0.5)
            own_registry.start()

        trouble = threading.Thread(target=disturb)
        trouble.start()
        told = Told()
        store = opened(proxy.reference("chat"))
        copy(draft, store, manifest.digest, tags=["v1"], progress=told)
        trouble.join()
        assert store.tags() == ["v1"]
        assert told.done_bytes == told.total_bytes == part.size_bytes + 2
        assert proxy.blob_bytes > part.size_bytes
    finally:
        proxy.close()


def test_a_registry_that_stays_dead_is_an_error_and_the_tag_is_not_there(opened, own_registry):
    proxy = RegistryProxy(own_registry.port)
    proxy.rules.bytes_per_s = 8_000_000
    try:
        draft, manifest = draft_of(b"x" * 8_000_000)
        trouble = threading.Timer(0.4, own_registry.kill)
        trouble.start()
        with pytest.raises(TransientError, match="cannot push") as caught:
            copy(draft, opened(proxy.reference("chat"), attempts=2), manifest.digest, tags=["v1"])
        trouble.join()
        assert "what has arrived is not sent twice" in caught.value.cure
        own_registry.start()
        assert opened(own_registry.reference("chat")).tags() == []
    finally:
        proxy.close()


def test_a_file_that_shrinks_while_it_is_sent(opened, registry, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 1000)
    part = FilePart(path, 1000)
    draft = Draft()
    draft.add(describe(part, OCTETS), part)
    path.write_bytes(b"x" * 10)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": EMPTY_CONFIG.to_json(),
                "layers": [describe(Bytes(b"x" * 1000), OCTETS).to_json()]}  # fmt: skip
    with pytest.raises(RegistryError, match="has become shorter"):
        copy(draft, opened(registry.reference(new_name())), draft.add_manifest(document).digest)


def test_skopeo_reads_what_we_push(opened, registry, tmp_path):
    name = new_name()
    draft = Draft()
    image = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
        "config": {},
    }
    config = draft.add_bytes(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": []}
    manifest = draft.add_manifest(document)
    copy(draft, opened(registry.reference(name)), manifest.digest, tags=["v1"])
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/{name}:v1"]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (seen["Digest"], seen["RepoTags"]) == (manifest.digest, ["v1"])
