"""The models in Python: frozen, strict, closed, and cheap to make in a test."""

import pickle

import pytest
from pydantic import ValidationError

from modelkit.config import (
    CheckpointConfig,
    Config,
    DeploymentConfig,
    EngineConfig,
    ModelConfig,
    ServerConfig,
)


def test_a_config_is_frozen():
    config = Config(model=ModelConfig(id="x"))
    with pytest.raises(ValidationError):
        config.engine = EngineConfig(name="echo")


def test_a_config_is_made_of_sections():
    config = Config(
        model=ModelConfig(id="x"),
        engine=EngineConfig(name="transformers", args={"a": 1}),
        checkpoints=CheckpointConfig(type="local", path="weights"),
        server=ServerConfig(max_concurrency=2, drain_timeout_s=0.5),
    )
    assert config.engine.args == {"a": 1}
    assert config.server.drain_timeout_s == 0.5


def test_a_config_goes_to_another_process():
    config = Config(model=ModelConfig(id="x"))
    assert pickle.loads(pickle.dumps(config)) == config


def test_lists_become_tuples():
    config = Config.model_validate({"model": {"id": "x"}, "secrets": [{"env_var": "A"}]})
    assert isinstance(config.secrets, tuple)


@pytest.mark.parametrize("id_", ["", "-x", "x-", "a b", "a/b", "ä", "x" * 65, "x\n"])
def test_ids_that_are_refused(id_):
    with pytest.raises(ValidationError):
        ModelConfig(id=id_)


@pytest.mark.parametrize("id_", ["x", "X", "7", "Llama-3_2.1B", "x" * 64])
def test_ids_that_are_taken(id_):
    assert ModelConfig(id=id_).id == id_


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({}, 1, 1),
        ({"mode": "serverless"}, 0, 1),
        ({"min_replicas": 3}, 3, 3),
        ({"max_replicas": 3}, 1, 3),
        ({"mode": "serverless", "min_replicas": 2}, 2, 2),
    ],
)
def test_the_bounds_of_replicas_follow_from_each_other(given, low, high):
    deployment = DeploymentConfig(**given)
    assert (deployment.min_replicas, deployment.max_replicas) == (low, high)


def test_values_are_not_repeated_in_pydantics_errors():
    with pytest.raises(ValidationError) as caught:
        CheckpointConfig(type="huggingface", token_env="my secret token")
    assert "secret" not in str(caught.value)
