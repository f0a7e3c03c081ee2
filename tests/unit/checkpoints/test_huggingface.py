"""Fetching from a Hub on loopback. The library reads its settings as it is imported, so each fetch is a process."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import errors

from modelkit.checkpoints.huggingface import _translated
from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError

FETCH = """
import json, sys
from pathlib import Path
from modelkit.checkpoints import resolve
from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError
try:
    folder = resolve(CheckpointConfig(type="huggingface", **json.loads(sys.argv[1])), Path("."))
    print(json.dumps({"folder": str(folder)}))
except LoadError as error:
    print(json.dumps({"message": error.message, "cure": error.cure}))
"""


@pytest.fixture
def fetch(hub, tmp_path):
    """Fetch with these keys of `checkpoints`, and return {"folder"} or {"message", "cure"}."""

    def run(environment=None, **config):
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        result = subprocess.run(
            [sys.executable, "-c", FETCH, json.dumps({"repo_id": "org/tiny", **config})],
            env=os.environ | settings | (environment or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def names_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_fetches_once_and_then_asks_nobody(hub, fetch):
    folder = fetch()["folder"]
    assert Path(folder).name == hub.commit
    assert (Path(folder) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    hub.requests.clear()
    assert fetch() == {"folder": folder}
    assert fetch({"HF_HUB_OFFLINE": "1"}) == {"folder": folder}
    assert hub.requests == []


def test_leaves_out_older_formats_of_the_same_weights_unless_told_otherwise(fetch):
    assert names_in(fetch()["folder"]) == {"config.json", "model.safetensors"}
    everything = fetch(allowed_file_patterns=["*"])["folder"]
    assert "pytorch_model.bin" in names_in(everything)


def test_patterns_choose_the_files(fetch):
    assert names_in(fetch(allowed_file_patterns=["*.json"])["folder"]) == {"config.json"}


def test_a_broken_download_is_no_checkpoint_and_goes_on_where_it_stopped(hub, fetch):
    hub.broken = {"model.safetensors"}
    assert "cannot fetch org/tiny" in fetch()["message"]
    assert "not complete in the cache" in fetch({"HF_HUB_OFFLINE": "1"})["message"]
    hub.broken = set()
    hub.requests.clear()
    assert names_in(fetch()["folder"]) == {"config.json", "model.safetensors"}
    assert f"GET /org/tiny/resolve/{hub.commit}/config.json" not in hub.requests


@pytest.mark.parametrize(
    ("config", "message", "cure"),
    [
        ({"repo_id": "org/nothing"}, "no such repository", "checkpoints.repo_id"),
        ({"repo_id": "not a repo"}, "no such repository", "checkpoints.repo_id"),
        ({"revision": "v9"}, "no revision 'v9'", "checkpoints.revision"),
        ({"repo_id": "org/gated"}, "access", "checkpoints.token_env"),
        ({"token_env": "NO_SUCH_TOKEN"}, "NO_SUCH_TOKEN", "export NO_SUCH_TOKEN"),
    ],
)
def test_what_goes_wrong_is_said_in_the_words_of_the_config(fetch, config, message, cure):
    result = fetch(**config)
    assert message in result["message"]
    assert cure in result["cure"]


def test_the_token_comes_from_the_variable_that_is_named(fetch):
    result = fetch({"MY_TOKEN": "secret"}, repo_id="org/gated", token_env="MY_TOKEN")
    assert "model.safetensors" in names_in(result["folder"])


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_cure_says_so(fetch, environment):
    result = fetch(environment)
    assert "cannot be reached" in result["message"]
    assert "type: local" in result["cure"]


def test_no_repository_is_named():
    from modelkit.checkpoints import resolve

    with pytest.raises(LoadError, match=r"checkpoints\.repo_id"):
        resolve(CheckpointConfig(type="huggingface"), Path())


HUB_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", HUB_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_becomes_one_with_a_cure(kind):
    error = kind.__new__(kind)
    translated = _translated(
        error, CheckpointConfig(type="huggingface", repo_id="org/tiny", revision="v1"), None
    )
    assert translated.message.startswith("cannot fetch org/tiny: ")
    assert translated.cure
