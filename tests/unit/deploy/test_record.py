"""The record of a deployment: what runs, and what ran before, the same after a trip through JSON."""

import json

import pytest

from modelkit.config import Config
from modelkit.deploy import DeploymentSpec, Record
from modelkit.deploy.record import MAX_HISTORY


def spec(number, **fields):
    config = {"model": {"id": "chat"}, "deployment": {"min_replicas": number}}
    return DeploymentSpec(
        **{
            "name": "chat",
            "model_id": "chat",
            "version": f"v{number}",
            "digest": f"sha256:{number:064d}",
            "config": config,
            "overrides": ("server.max_queue=3",),
            "artifact": f"registry/chat@{number}",
            **fields,
        }
    )


def test_it_comes_back_from_json_as_it_was():
    record = Record(spec(2), (spec(1, environment="prod", api_key_env="KEY"),))
    assert Record.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


@pytest.mark.parametrize("text", ["", "{}", '{"spec": {}, "history": []}', "[1]"])
def test_anything_else_is_no_record(text):
    with pytest.raises(ValueError):
        Record.from_json(text)
    record = Record.read(text, "chat")
    assert (record.spec.name, record.is_readable) == ("chat", False)
    assert record.spec.parsed_config().deployment.min_replicas == 1


def test_what_a_newer_modelkit_has_added_is_left_alone():
    content = json.loads(Record(spec(1)).to_json())
    content["spec"]["colour"] = content["more"] = "blue"
    assert Record.from_json(json.dumps(content)) == Record(spec(1))


def test_other_bounds_need_no_other_replicas():
    one = spec(1, overrides=("deployment.min_replicas=1", "server.max_queue=3"))
    other = spec(1, overrides=("deployment.min_replicas=5", "server.max_queue=3")).scaled(5, 8)
    assert other.parsed_config().deployment.max_replicas == 8
    assert one.of_replica() == other.of_replica()
    assert one.of_replica() != spec(1, overrides=("server.max_queue=4",)).of_replica()
    assert other.serve_options() == [("--set", "server.max_queue=3")]
    assert spec(1, environment="prod", overrides=()).serve_options() == [("--env", "prod")]


def test_the_variables_that_a_replica_needs():
    config = {
        "model": {"id": "chat"},
        "engine": {"name": "openai", "api_key_env": "UPSTREAM"},
        "secrets": [{"env_var": "A"}, {"env_var": "B"}, {"env_var": "A"}],
        "checkpoints": {"type": "huggingface", "repo_id": "a/b", "token_env": "HF_TOKEN"},
    }
    variables = spec(1, config=config, api_key_env="KEY").variables()
    assert variables.needed == ("A", "B", "KEY")
    assert variables.optional == ("HF_TOKEN", "UPSTREAM")
    assert variables.all == ("A", "B", "KEY", "HF_TOKEN", "UPSTREAM")


def test_what_runs_becomes_history():
    record = Record(spec(1)).followed_by(spec(2)).followed_by(spec(3))
    assert [each.version for each in (record.spec, *record.history)] == ["v3", "v2", "v1"]


def test_a_version_is_in_it_once():
    record = Record(spec(1)).followed_by(spec(2)).followed_by(spec(1))
    assert [each.version for each in (record.spec, *record.history)] == ["v1", "v2"]


def test_the_same_specification_changes_nothing():
    record = Record(spec(1), (spec(2),))
    assert record.followed_by(spec(1)) is record


def test_it_does_not_grow_for_ever():
    record = Record(spec(0))
    for number in range(1, 30):
        record = record.followed_by(spec(number))
    assert len(record.history) == MAX_HISTORY
    assert record.history[0].version == "v28"


def test_earlier_ones_are_found_by_version_and_digest():
    record = Record(spec(3), (spec(2), spec(1)))
    assert record.find("v1") == spec(1)
    assert record.find(f"sha256:{2:064d}") == spec(2)
    assert record.find(f"{2:064d}") == spec(2)
    assert record.find("v3") is None
    assert record.find("v9") is None


def test_its_config_is_a_config_again():
    config = Config.model_validate(
        {"model": {"id": "chat"}, "compute": {"cpu_limit": "500m", "cpu_memory": "16Gi"}}
    )
    parsed = spec(1, config=config.model_dump(mode="json")).parsed_config()
    assert parsed == config


def test_secrets_that_a_replica_writes_are_masked(monkeypatch):
    monkeypatch.setenv("KEY", "k-0123456789")
    monkeypatch.setenv("SHORT", "ab")
    config = {
        "model": {"id": "chat"},
        "secrets": [{"env_var": "KEY"}, {"env_var": "SHORT"}, {"env_var": "UNSET"}],
    }
    assert spec(1, config=config).masked("401 for k-0123456789, about") == "401 for ***, about"
