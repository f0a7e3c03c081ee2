"""The Hub, through the command line and huggingface_hub's own client, against a hub on loopback."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import errors

from modelkit.checkpoints import open_source
from modelkit.checkpoints.huggingface import HuggingFaceSource
from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError

TINY = "type: huggingface, repo_id: org/tiny"


def names_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def fetch(modelkit, write_folder):
    """Fetch with these keys, and return the checkpoint's folder, or the result where it failed."""

    def run(checkpoints=TINY, *options, environment=None):
        result = modelkit(
            "fetch", write_folder(checkpoints), "--json", *options, environment=environment, check=False
        )
        return Path(json.loads(result.stdout)["default"]) if result.returncode == 0 else result

    return run


@pytest.mark.parametrize("endpoint", ["mirror.example.com", "ftp://mirror.example.com"])
def test_an_endpoint_that_is_no_address_is_named_at_once(fetch, endpoint):
    result = fetch(environment={"HF_ENDPOINT": endpoint})
    assert result.returncode == 2
    assert f"HF_ENDPOINT is '{endpoint}'" in result.stderr
    assert "trying again" not in result.stderr


def test_fetches_once_and_then_asks_nobody(hub, fetch):
    folder = fetch()
    assert names_in(folder) == {"config.json", "model.safetensors", "sub/empty.txt"}
    repo = hub.repos["org/tiny"]
    files = repo.commits[repo.branches["main"]]
    assert all((folder / name).read_bytes() == files[name].data for name in names_in(folder))
    hub.requests.clear()
    assert fetch() == folder
    assert fetch(TINY, "--offline") == folder
    assert fetch(environment={"HF_HUB_OFFLINE": "1"}) == folder
    assert hub.requests == []


def test_a_lock_is_followed_when_the_branch_moves(hub, fetch, modelkit, write_folder, tmp_path):
    folder = fetch()
    model_dir = tmp_path / "model"
    before = (model_dir / "modelkit.lock").read_bytes()
    hub.repos["org/tiny"].commit({"config.json": b"{}", "model.safetensors": b"newer"})
    assert fetch() == folder
    checked = modelkit("lock", model_dir, "--check")
    assert "org/tiny: main is at" in checked.stderr
    assert "modelkit lock --update" in checked.stderr
    assert modelkit("lock", model_dir).returncode == 0
    assert (model_dir / "modelkit.lock").read_bytes() == before
    modelkit("lock", model_dir, "--update")
    assert (fetch() / "model.safetensors").read_bytes() == b"newer"


def test_the_pinned_commit_is_fetched_where_the_cache_is_empty(hub, fetch, modelkit, tmp_path):
    old = (fetch() / "model.safetensors").read_bytes()
    hub.repos["org/tiny"].commit({"config.json": b"{}", "model.safetensors": b"newer"})
    modelkit("cache", "prune", "--all", "--yes")
    result = modelkit("fetch", tmp_path / "model")
    assert "org/tiny: main is at" in result.stderr
    assert (fetch() / "model.safetensors").read_bytes() == old


def test_what_is_damaged_on_this_disk_is_found_by_verify(hub, fetch):
    folder = fetch()
    blob, content = (folder / "model.safetensors").resolve(), (folder / "model.safetensors").read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(content)))
    hub.sent.clear()
    assert (fetch(TINY, "--verify") / "model.safetensors").read_bytes() == content
    assert set(hub.sent) == {"model.safetensors"}


def test_what_is_damaged_is_not_promised_anew_offline(hub, fetch, modelkit, tmp_path):
    blob = (fetch() / "model.safetensors").resolve()
    blob.chmod(0o644)
    blob.write_bytes(bytes(blob.stat().st_size))
    result = modelkit("fetch", tmp_path / "model", "--verify", "--offline", check=False)
    assert result.returncode == 1
    assert (
        "model.safetensors is damaged on this disk: it is deleted; fetch again without --offline"
        in result.stderr
    )
    assert not blob.exists()  # nobody serves it by mistake


def test_what_the_library_has_in_its_cache_is_not_fetched_again(hub, fetch, tmp_path):
    repo = hub.repos["org/tiny"]
    content = repo.commits[repo.branches["main"]]["model.safetensors"]
    blob = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs" / content.sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content.data)
    folder = fetch()
    assert hub.sent["model.safetensors"] == 0
    assert (folder / "model.safetensors").stat().st_ino == blob.stat().st_ino


def test_what_the_library_has_is_verified_all_the_same(hub, fetch, tmp_path):
    repo = hub.repos["org/tiny"]
    content = repo.commits[repo.branches["main"]]["model.safetensors"]
    blob = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs" / content.sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(content.size_bytes))
    assert (fetch() / "model.safetensors").read_bytes() == content.data
    assert blob.read_bytes() == bytes(content.size_bytes)


def test_a_small_file_that_is_not_what_git_says_is_refused(hub, fetch):
    hub.faults.flips["config.json"] = 9
    assert "config.json from org/tiny is not what it should be" in fetch().stderr


def test_a_storage_that_xet_cannot_reach_is_read_over_http(hub, fetch):
    hub.xet = True
    hub.add_repo("org/large", {"config.json": b"{}", "model.safetensors": bytes(17 * 1024**2)})
    folder = fetch("type: huggingface, repo_id: org/large", environment={"HF_HUB_DISABLE_XET": "0"})
    assert (folder / "model.safetensors").stat().st_size == 17 * 1024**2
    assert any("/xet-read-token/" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("keys", "message", "cure"),
    [
        ("repo_id: org/nothing", "no such repository", "checkpoints.repo_id"),
        ("repo_id: org/tiny, revision: v9", "no revision 'v9'", "checkpoints.revision"),
        ("repo_id: org/gated", "access to it has to be granted", "checkpoints.token_env"),
        ("repo_id: org/tiny, token_env: NO_SUCH_TOKEN", "NO_SUCH_TOKEN", "export NO_SUCH_TOKEN"),
        ("repo_id: org/gated, token_env: WRONG_TOKEN", "access to it has to be granted", "a token that may"),
        (
            "repo_id: org/private, token_env: WRONG_TOKEN",
            "does not know the token",
            "a token that may read it",
        ),
        ("repo_id: org/old", "weights as pickle", "allow_pickle"),
    ],
)
def test_what_goes_wrong_is_said_in_the_words_of_the_config(hub, fetch, keys, message, cure):
    hub.add_repo("org/gated", {"config.json": b"{}"}, token="hf_secret", is_gated=True)
    hub.add_repo("org/private", {"config.json": b"{}"}, token="hf_secret")
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    result = fetch(f"type: huggingface, {keys}", environment={"WRONG_TOKEN": "hf_wrong"})
    assert result.returncode == 1
    assert message in result.stderr
    assert cure in result.stderr
    assert "hf_wrong" not in result.stderr


def test_the_token_is_read_from_the_variable_and_never_leaves_the_hub(hub, fetch, tmp_path):
    hub.add_repo(
        "org/gated", {"config.json": b"{}", "model.safetensors": b"w" * 99}, token="hf_secret", is_gated=True
    )
    keys = "type: huggingface, repo_id: org/gated, token_env: MY_TOKEN"
    folder = fetch(keys, environment={"MY_TOKEN": "hf_secret"})
    assert names_in(folder) == {"config.json", "model.safetensors"}
    assert {each.partition(" ")[0] for each in hub.authorized} == {"hub"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("where", ["HF_TOKEN", "login"])
def test_the_librarys_own_token_will_do(hub, fetch, tmp_path, where):
    hub.add_repo("org/gated", {"config.json": b"{}"}, token="hf_secret", is_gated=True)
    (tmp_path / "hf").mkdir()
    if where == "login":
        (tmp_path / "hf" / "token").write_text("hf_secret")
    environment = {"HF_TOKEN": "hf_secret"} if where == "HF_TOKEN" else {}
    assert names_in(fetch("type: huggingface, repo_id: org/gated", environment=environment)) == {
        "config.json"
    }


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_cure_says_so(fetch, environment):
    result = fetch(environment=environment)
    assert "type: local" in result.stderr
    assert "network" in result.stderr


NO_SOCKETS = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        print("SOCKET", event, arguments, file=sys.stderr)

sys.addaudithook(refuse)
from modelkit.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments", [["fetch", "--offline"], ["fetch"], ["lock", "--offline"], ["lock", "--check"]]
)
@pytest.mark.parametrize("is_there", [True, False])
def test_offline_opens_no_socket(fetch, modelkit, tmp_path, arguments, is_there):
    fetch()
    if not is_there:
        modelkit("cache", "prune", "--all", "--yes")
    offline = {"MODELKIT_CACHE_DIR": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    if "--offline" in arguments:
        offline["HF_HUB_OFFLINE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", NO_SOCKETS, *arguments, str(tmp_path / "model")],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SOCKET" not in done.stderr
    assert done.returncode == (1 if arguments[0] == "fetch" and not is_there else 0), done.stderr


def test_a_name_that_leaves_the_folder_is_refused(hub, fetch, tmp_path):
    hub.add_repo("org/evil", {"config.json": b"{}", "../../evil.json": b"{}"})
    assert "written outside" in fetch("type: huggingface, repo_id: org/evil").stderr


def test_no_repository_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"checkpoints\.repo_id"):
        open_source(CheckpointConfig(type="huggingface"), tmp_path)


HUB_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", HUB_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_becomes_one_with_a_cure(kind, tmp_path):
    source = HuggingFaceSource(
        CheckpointConfig(type="huggingface", repo_id="org/tiny", revision="v1"), tmp_path
    )
    translated = source._translated(kind.__new__(kind))
    assert translated.message.startswith("cannot fetch org/tiny: ")
    assert translated.cure


def test_a_hub_that_limits_requests_is_asked_again(hub, fetch):
    hub.faults.limited = 100
    result = fetch()
    assert result.returncode == 1
    assert "answers 429, too many requests; trying again" in result.stderr
    assert "help: wait a while" in result.stderr
    hub.faults.limited = 2
    assert (fetch() / "config.json").is_file()
    assert hub.faults.limited == 0


def test_a_lock_of_a_hub_and_a_folder_has_both_and_stays_right(hub, fetch, modelkit, tmp_path):
    adapter = tmp_path / "model" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter.safetensors").write_bytes(b"weights")
    fetch("type: huggingface, repo_id: org/tiny, additional: {french: {type: local, path: adapter}}")
    assert modelkit("lock", tmp_path / "model", "--check").returncode == 0
    hub_is_away = modelkit(
        "lock", tmp_path / "model", "--check", environment={"HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert "could not be asked whether it moved" in hub_is_away.stderr
    assert "Connect to the network" in hub_is_away.stderr
    assert "or give --offline" in hub_is_away.stderr
