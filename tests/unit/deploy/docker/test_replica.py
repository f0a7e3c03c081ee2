"""The container of a replica, as text that is read; and what a Docker host refuses before anything is sent."""

import contextlib
import json
from dataclasses import replace

import pytest

from modelkit.computes import Compute
from modelkit.config import Config
from modelkit.deploy import DeploymentSpec, Origin, Record, open_deployer
from modelkit.deploy.docker.replica import drain_timeout_s, missing_options
from modelkit.deploy.docker.state import State
from modelkit.errors import UsageError

BOX = Compute(name="box", kind="docker", address="unix:///var/run/docker.sock")


def spec(api_key_env=None, overrides=(), environment=None, **config):
    checked = Config.model_validate({"model": {"id": "chat"}, **config})
    return DeploymentSpec(
        name="chat",
        model_id="chat",
        version="v3",
        digest=f"sha256:{'3' * 64}",
        config=checked.model_dump(mode="json"),
        artifact=f"registry.example.com/team/chat@sha256:{'3' * 64}",
        api_key_env=api_key_env,
        overrides=overrides,
        environment=environment,
    )


FULL = {
    "engine": {"name": "openai", "url": "http://10.0.0.1/v1", "api_key_env": "UPSTREAM_KEY"},
    "checkpoints": {"type": "huggingface", "repo_id": "a/b", "token_env": "HF_TOKEN"},
    "compute": {"cpu_limit": "4", "cpu_memory": "16Gi", "num_accelerators": 2},
    "secrets": [{"env_var": "SEARCH_KEY"}],
    "deployment": {"min_replicas": 2},
}


def render(found, compute=BOX):
    with contextlib.closing(open_deployer(compute)) as deployer:
        return deployer.render(Record(found))


def test_a_plain_replica(snapshot):
    assert render(spec()) == snapshot


def test_a_replica_with_everything(snapshot, monkeypatch):
    monkeypatch.setenv("SEARCH_KEY", "swordfish")
    text = render(spec(api_key_env="CHAT_KEY", overrides=("server.max_queue=5",), environment="prod", **FULL))
    assert text == snapshot
    assert "swordfish" not in text


def test_an_image_that_knows_a_setting_is_not_told_again():
    found = spec(overrides=("a=1", "b=2", "deployment.min_replicas=3"), environment="prod", api_key_env="KEY")
    entrypoint = ["modelkit", "serve", "/app", "--env", "prod", "--set", "b=2"]
    assert missing_options(found, entrypoint) == ["--set", "a=1", "--api-key-env", "KEY"]


def test_another_number_of_replicas_is_the_same_revision():
    one, two = (State(record=Record(spec(deployment={"min_replicas": number}))) for number in (1, 2))
    assert one.revision == two.revision
    assert State(record=Record(spec(overrides=("deployment.min_replicas=2",)))).revision == one.revision
    assert State(record=Record(spec(overrides=("server.max_queue=2",)))).revision != one.revision
    assert replace(one, roll=1).revision != one.revision
    assert State(record=Record(spec(server={"max_queue": 5}))).revision != one.revision


def test_labels_tell_the_whole_state():
    state = State(
        record=Record(spec(**FULL), (spec(),)),
        number=4,
        roll=1,
        is_complete=True,
        proven=frozenset({"a1", "b2"}),
    )
    assert State.of(json.loads(json.dumps(state.labels()))) == state
    assert State.of({}) is None


def test_calls_may_end_before_a_replica_is_killed():
    assert drain_timeout_s(spec(server={"drain_timeout": "90s"}).parsed_config()) == 95


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"deployment": {"mode": "serverless"}}, "nothing there is serverless"),
        ({"deployment": {"min_replicas": 0}}, "nothing there is serverless"),
        ({"deployment": {"max_replicas": 3}}, "has no autoscaler: it runs a fixed number of replicas"),
        ({"compute": {"num_accelerators": 1, "accelerator_fraction": 0.5}}, "gives whole GPUs only"),
    ],
)
def test_what_a_docker_host_cannot_run(config, what):
    with contextlib.closing(open_deployer(BOX)) as deployer, pytest.raises(UsageError, match=what) as caught:
        deployer.refuse(spec(**config), Origin())
    assert caught.value.cure


@pytest.mark.parametrize(
    ("compute", "api_key_env", "is_refused"),
    [
        (BOX, None, False),
        (replace(BOX, address="ssh://far"), None, True),
        (replace(BOX, address="ssh://far"), "CHAT_KEY", False),
        (replace(BOX, address="ssh://far", endpoint="10.0.0.5"), None, False),
        (replace(BOX, address="ssh://far", endpoint="127.0.0.1"), None, False),
    ],
)
def test_nobody_is_let_in_by_mistake(compute, api_key_env, is_refused):
    with contextlib.closing(open_deployer(compute)) as deployer:
        if not is_refused:
            deployer.refuse(spec(api_key_env=api_key_env), Origin())
            return
        with pytest.raises(UsageError, match="anyone who reaches far could call chat") as caught:
            deployer.refuse(spec(), Origin())
        assert "--api-key-env" in caught.value.cure
