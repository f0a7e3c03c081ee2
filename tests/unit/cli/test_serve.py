"""What `modelkit serve` refuses before it starts anything, and what it tells the server. The process itself is
proved in tests/integration/test_serve_command.py."""

import pytest

from modelkit.cli import serve
from modelkit.cli.app import main
from modelkit.errors import UsageError
from modelkit.server import ServerOptions


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {id: greeter}\n")
    (tmp_path / "model.py").write_text(
        "from modelkit import Model, method\nclass A(Model):\n    @method\n    def f(self) -> int: ...\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tls-cert", "a.pem"], "give both --tls-cert and --tls-key"),
        (["--tls-client-ca", "a.pem"], "give both --tls-cert and --tls-key"),
        (["--api-key-env", "NO_SUCH_KEY"], "export NO_SUCH_KEY=..."),
        (["--api-key-env", "BLANK_KEY"], "BLANK_KEY is not set or empty"),
        (["--api-key-env", "ODD_KEY"], "no header can carry"),
        (["--port", "70000"], "65535"),
        (["--set", "server.max_queu=1"], "max_queue"),
        (["--log-format", "xml"], "xml"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("BLANK_KEY", " \n")
    monkeypatch.setenv("ODD_KEY", "clé")
    monkeypatch.setattr(serve, "_run", lambda *_: pytest.fail("it started"))
    assert main(["serve", str(folder), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_config_and_the_options_reach_the_server(folder, monkeypatch):
    served = []

    def run(server, _progress, _on_ready):
        served.append(server)
        return 0

    monkeypatch.setattr(serve, "_run", run)
    monkeypatch.setattr(serve, "_configure_logging", lambda *_: None)
    monkeypatch.setenv("KEY", "k3y")
    arguments = ["--port", "0", "--host", "127.0.0.1", "--set", "server.max_queue=7", "--api-key-env", "KEY"]
    assert main(["serve", str(folder), *arguments]) == 0
    options = served[0].options
    assert (options.port, options.max_queue, options.api_key) == (0, 7, "k3y")
    assert list(served[0].predictor.signatures) == ["f"]


@pytest.mark.parametrize(
    ("host", "api_key", "warns"),
    [("0.0.0.0", None, True), ("::", None, True), ("0.0.0.0", "k", False), ("localhost", None, False), ("::1", None, False)],
)  # fmt: skip
def test_an_open_address_without_a_key_is_warned_of(capsys, host, api_key, warns):
    serve._warn_if_open(ServerOptions(host=host, api_key=api_key))
    assert ("can call the model" in capsys.readouterr().err) == warns


def test_a_folder_to_watch_has_to_be_there(tmp_path):
    with pytest.raises(UsageError, match="there is no "):
        serve._reload(str(tmp_path / "none"))
