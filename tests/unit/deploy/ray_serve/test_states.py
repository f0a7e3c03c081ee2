"""What a cluster says, in modelkit's words."""

import pytest

from modelkit.config import Config
from modelkit.deploy.ray_serve.manifest import application
from modelkit.deploy.ray_serve.states import explain, read_status
from modelkit.deploy.record import DeploymentSpec, Record

RECORD = Record(
    DeploymentSpec(
        name="chat",
        model_id="chat",
        version="v1",
        digest="sha256:1",
        config=Config.model_validate({"model": {"id": "chat"}}).model_dump(mode="json"),
    )
)


def status_of(app_status, *replica_states, wanted=1, message="", app_message="", canary=None):
    replicas = [
        {"replica_id": f"r{i}", "state": state, "node_ip": "10.0.0.1"}
        for i, state in enumerate(replica_states)
    ]
    details = {
        "status": app_status,
        "message": app_message,
        "deployed_app_config": application(RECORD),
        "deployments": {"model": {"replicas": replicas, "target_num_replicas": wanted, "message": message}},
    }
    return read_status("chat", details, canary, None)


@pytest.mark.parametrize(
    ("app_status", "replicas", "wanted", "state"),
    [
        ("DEPLOYING", [], 1, "starting"),
        ("DEPLOYING", ["STARTING"], 1, "starting"),
        ("DEPLOYING", ["RUNNING", "STARTING"], 1, "updating"),
        ("RUNNING", ["RUNNING"], 1, "running"),
        ("RUNNING", [], 0, "idle"),
        ("RUNNING", ["STOPPING"], 0, "idle"),
        ("RUNNING", ["STARTING"], 1, "starting"),
        ("DEPLOY_FAILED", ["RUNNING"], 1, "failed"),
        ("UNHEALTHY", [], 1, "failed"),
        ("DELETING", ["STOPPING"], 0, "stopping"),
        ("SOMETHING_NEW", [], 1, "starting"),
    ],
)
def test_states(app_status, replicas, wanted, state):
    assert status_of(app_status, *replicas, wanted=wanted).state == state


def test_replicas_bounds_and_record():
    status = status_of("RUNNING", "RUNNING", "STOPPING", "STARTING", wanted=2)
    assert [replica.state for replica in status.replicas] == ["ready", "draining", "starting"]
    assert status.replicas[0].node == "10.0.0.1"
    assert (status.num_ready, status.num_wanted, status.min_replicas) == (1, 2, 1)
    assert status.record == RECORD


def test_what_ray_says_is_the_reason_while_something_is_wrong():
    assert status_of("DEPLOYING", message="waiting for 2 GPUs").reason == "waiting for 2 GPUs"
    assert status_of("DEPLOY_FAILED", app_message="no such module").reason == "no such module"
    assert status_of("RUNNING", "RUNNING", message="old news").reason == ""


def test_a_canary_is_told_with_its_share():
    canary = {
        "status": "RUNNING",
        "deployed_app_config": application(RECORD, canary_percent=10),
        "deployments": {"model": {"replicas": [{"replica_id": "c", "state": "RUNNING"}]}},
    }
    status = status_of("RUNNING", "RUNNING", canary=canary)
    assert (status.canary, status.canary_percent) == (RECORD.spec, 10)
    assert [each.state for each in status.canary_replicas] == ["ready"]
    assert len(status.replicas) == 1


def test_replicas_are_of_a_version_once_all_is_done():
    assert [each.version for each in status_of("RUNNING", "RUNNING", "STOPPING").replicas] == ["v1", ""]
    assert [each.version for each in status_of("DEPLOYING", "RUNNING", "STARTING").replicas] == ["", ""]


def test_one_whose_record_cannot_be_read_is_told_by_what_runs():
    app = {"name": "chat", "deployments": [{"user_config": {"record": None}}]}
    status = read_status("chat", {"status": "RUNNING", "deployed_app_config": app}, None, None)
    assert (status.name, status.state, status.record.is_readable) == ("chat", "idle", False)
    assert "newer modelkit" in status.reason


def test_the_gist_of_a_traceback_is_its_error():
    message = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:chat:model.initialize_and_get_metadata()
Traceback (most recent call last):
  File "x.py", line 3, in f
    raise LoadError()
modelkit.errors.LoadError: Chat.load raised ValueError: no weights
"""
    assert explain(message) == "modelkit.errors.LoadError: Chat.load raised ValueError: no weights"


def test_a_plain_message_stays():
    assert explain("two\n  lines ") == "two lines"
