"""A registry that is away, busy, or has a proxy before it that answers in its place: a real server on loopback."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modelkit.errors import RegistryError
from modelkit.registry import open_store, parse_reference
from modelkit.registry.base import Descriptor
from modelkit.registry.client import Client

BLOB = Descriptor("application/octet-stream", "sha256:" + "a" * 64, 4)


@contextmanager
def answering(answers):
    """A registry that gives these answers, one after the other, the last one for ever: (status, headers, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value.replace("HERE", f"127.0.0.1:{server.server_port}"))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield parse_reference(f"127.0.0.1:{server.server_port}/org/model:v1")
        finally:
            server.shutdown()
            thread.join()


def test_only_what_is_sent_is_said_not_to_be_sent_twice():
    away = parse_reference("127.0.0.1:9/org/model:v1")
    with Client(away, attempts=1) as store:
        with pytest.raises(RegistryError) as reading:
            store.get_manifest("v1")
        with pytest.raises(RegistryError) as writing:
            store.write_blob(BLOB, lambda: iter([b"1234"]))
    assert "run the command again when the registry can be reached" in reading.value.cure
    assert "sent twice" not in reading.value.cure
    assert "what has arrived is not sent twice" in writing.value.cure


@pytest.mark.parametrize("body", [b"<html>log in to the proxy</html>", b"[]", b'{"token": ""}', b"\xff"])
def test_a_token_service_that_gives_no_token(body):
    challenge = {"WWW-Authenticate": 'Bearer realm="http://HERE/token",service="x"'}
    with (
        answering([(401, challenge, b""), (200, {"Content-Type": "text/html"}, body)]) as reference,
        open_store(reference, plain_http=True) as store,
        pytest.raises(RegistryError) as caught,
    ):
        store.get_manifest("v1")
    assert "/token, where 127.0.0.1:" in caught.value.message
    assert caught.value.message.endswith("answered without one")
    assert "a proxy" in caught.value.cure


def test_a_registry_that_is_waited_for_is_told_of():
    tags, notes = json.dumps({"tags": ["v1"]}).encode(), []
    with (
        answering([(503, {"Retry-After": "2"}, b""), (503, {}, b""), (200, {}, tags)]) as reference,
        open_store(reference, plain_http=True, on_note=notes.append) as store,
    ):
        assert store.tags() == ["v1"]
    assert len(notes) == 1  # the other wait is too short to be told
    assert "answered 503; trying again in 2 s" in notes[0]
