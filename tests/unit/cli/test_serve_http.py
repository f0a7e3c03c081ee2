import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from modelkit.cli.serve import DEFAULT_HTTP_PORT, _http_port


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {id: echo-chat}\nengine: {name: echo}\n")
    (tmp_path / "model.py").write_text("from modelkit import LLM\n\n\nclass Chat(LLM):\n    '''Echo.'''\n")
    return tmp_path


@contextmanager
def serving(folder, *options):
    """Run the command; yield what --json prints, and the text for people as a list that is full after the block."""
    command = [sys.executable, "-m", "modelkit", "serve", str(folder), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    try:
        yield json.loads(process.stdout.readline()), said
    finally:
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 0


def test_it_prints_both_addresses(folder):
    with serving(folder) as (ready, said):
        assert httpx.get(ready["http_url"] + "/ready").json() == {"ready": True}
        page = httpx.get(ready["http_url"])
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<title>modelkit</title>" in page.text
    assert any(ready["address"] in line for line in said)
    assert any(ready["http_url"] in line and "OpenAI's API" in line for line in said)


def test_it_leaves_http_out(folder):
    with serving(folder, "--no-http") as (ready, said):
        assert ready["http_url"] is None
    assert not any("HTTP" in line for line in said)


@pytest.mark.parametrize(
    ("asked", "grpc_port", "expected"),
    [(None, 50051, DEFAULT_HTTP_PORT), (None, 0, 0), (9000, 0, 9000), (0, 50051, 0)],
)
def test_who_asks_for_any_grpc_port_gets_any_http_port(asked, grpc_port, expected):
    assert _http_port(asked, grpc_port) == expected
