"""What the deployer reads and writes, against a Serve that keeps what it is told, as Ray's does."""

import itertools

import pytest

from modelkit.computes import Compute
from modelkit.config import Config
from modelkit.deploy.ray_serve import deployer as module
from modelkit.deploy.ray_serve import logs
from modelkit.deploy.ray_serve.deployer import RayServeDeployer
from modelkit.deploy.ray_serve.manifest import read_record, serve_options
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, UnknownDeploymentError


class Serve:
    """Ray's HTTP API in memory: whoever writes last wins. `meanwhile` is what happens before the next answers."""

    def __init__(self):
        self.applications = {}
        self.meanwhile = []
        self.dead = []
        self.log = {}

    def instance(self):
        if self.meanwhile and (event := self.meanwhile.pop(0)):
            event()
        return {**serve_options(), "applications": dict(self.applications)}

    def put_applications(self, instance, apps):
        found = {}
        for app in apps:
            before = self.applications.get(app["name"], {})
            found[app["name"]] = {"status": "RUNNING", **before, "deployed_app_config": app}
        self.applications = found

    def dead_actors(self, class_name):
        return self.dead

    def log_lines(self, actor_id, *, num_lines, follow=False):
        for line in self.log.get(actor_id, []):
            if isinstance(line, Exception):
                raise line
            yield line


def spec(name="chat", version="v1", **deployment):
    config = Config.model_validate({"model": {"id": "chat"}, "deployment": deployment})
    return DeploymentSpec(
        name=name,
        model_id="chat",
        version=version,
        digest=f"sha256:{version}",
        config=config.model_dump(mode="json"),
    )


def running(app, *replicas, wanted=1, **fields):
    """Let an application run."""
    states = [{"replica_id": name, "actor_id": name, "state": "RUNNING"} for name in replicas]
    app["deployments"] = {"model": {"target_num_replicas": wanted, "replicas": states}}
    app.update(fields)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)
    monkeypatch.setattr(logs, "_LOOK_AGAIN_S", 0.01)
    return Serve()


def deployer_of(serve):
    deployer = RayServeDeployer(Compute(name="gpus", kind="ray", address="http://head:8265"))
    deployer.close()
    deployer._api = serve
    return deployer


@pytest.fixture
def deployer(serve):
    return deployer_of(serve)


def scaling(serve, app="chat"):
    return serve.applications[app]["deployed_app_config"]["deployments"][0]["autoscaling_config"]


def test_neither_scaling_nor_a_new_version_throws_away_what_autoscaling_has_started(serve, deployer):
    first = Record(spec(min_replicas=1, max_replicas=8))
    deployer.apply(first)
    assert scaling(serve)["initial_replicas"] == 1
    running(serve.applications["chat"], "a", wanted=8)
    deployer.scale("chat", 1, 10)
    assert scaling(serve)["max_replicas"] == 10
    assert "initial_replicas" not in scaling(serve)
    deployer.apply(first.followed_by(spec(version="v2", min_replicas=1, max_replicas=10)))
    assert scaling(serve)["initial_replicas"] == 8


def test_what_another_has_overwritten_is_put_again(serve, deployer):
    other = spec("other")

    def overwrite():
        """Write what was there before ours was: the other had read before we wrote."""
        serve.applications.pop("chat", None)
        deployer_of(serve).apply(Record(other))

    # Read, write, look at once, and look again: only then the other writes.
    serve.meanwhile = [None, None, overwrite]
    deployer.apply(Record(spec()))
    assert sorted(serve.applications) == ["chat", "other"]
    # Somebody who has put an older version back.
    older = serve.applications["chat"]

    def revert():
        serve.applications["chat"] = older

    serve.meanwhile = [None, None, revert]
    deployer.apply(Record(spec(version="v2")))
    assert read_record(serve.applications["chat"]["deployed_app_config"]).spec.version == "v2"


def test_one_who_never_gives_way_is_told_of(serve, deployer):
    def gone():
        serve.applications = {}

    serve.meanwhile = list(itertools.chain.from_iterable([None, gone] for _ in range(10)))
    with pytest.raises(DeployError, match="somebody else"):
        deployer.apply(Record(spec()))


def test_a_record_that_cannot_be_read_is_listed_and_ended_but_not_scaled(serve, deployer):
    deployer.apply(Record(spec()))
    deployer.apply(Record(spec("newer")))
    serve.applications["newer"]["deployed_app_config"]["deployments"][0]["user_config"] = {"record": None}
    found = {status.name: status.record.is_readable for status in deployer.statuses()}
    assert found == {"chat": True, "newer": False}
    with pytest.raises(DeployError, match="cannot be read"):
        deployer.scale("newer", 1, 2)

    def end():
        serve.applications.pop("newer", None)

    serve.meanwhile = [None, None, end]
    deployer.delete("newer")
    assert sorted(serve.applications) == ["chat"]


def test_a_canary_runs_without_calls_first_and_says_why_it_does_not(serve, deployer):
    deployer.apply(Record(spec()))
    canary = spec(version="v2")
    deployer.set_canary("chat", canary, 0)
    running(serve.applications["chat.canary"], "c1")
    status = deployer.status("chat")
    assert (status.canary, status.canary_percent) == (canary, 0)
    assert [each.state for each in status.canary_replicas] == ["ready"]
    assert status.replicas == ()
    deployer.set_canary("chat", canary, 20)
    assert deployer.status("chat").canary_percent == 20
    running(serve.applications["chat.canary"], status="DEPLOY_FAILED", message="ValueError: no weights")
    failed = deployer.status("chat").canary_replicas
    assert [(each.state, each.reason) for each in failed] == [("failed", "ValueError: no weights")]


def test_the_last_lines_of_a_replica_that_has_failed_beside_one_that_lives(serve, deployer):
    deployer.apply(Record(spec()))
    running(serve.applications["chat"], "old", status="DEPLOY_FAILED", last_deployed_time_s=100.0)
    prefix = "SERVE_REPLICA::chat#model#"
    serve.dead = [
        {"name": f"{prefix}bad", "actor_id": "bad", "end_time_ms": 101_000},
        {"name": f"{prefix}ended-before", "actor_id": "x", "end_time_ms": 99_000},
    ]
    serve.log = {"bad": ["this version cannot start"], "old": ["ready"]}
    states = {each.name: each.state for each in deployer.status("chat").replicas}
    assert states == {"old": "ready", "bad": "failed"}
    assert [line.text for line in deployer.logs("chat", replica="bad")] == ["this version cannot start"]
    # What is well needs no lines of those that have ended.
    running(serve.applications["chat"], "old", status="RUNNING")
    assert [line.text for line in deployer.logs("chat")] == ["ready"]
    with pytest.raises(DeployError, match="no replica 'nobody'"):
        deployer.logs("chat", replica="nobody")


def test_following_a_log_finds_new_replicas_and_ends_with_the_deployment(serve, deployer):
    deployer.apply(Record(spec()))
    running(serve.applications["chat"], "a")
    serve.log = {"a": ["first"], "b": ["second"]}
    seen = []
    for line in deployer.logs("chat", follow=True):
        seen.append((line.replica, line.text))
        if line.text == "first":
            running(serve.applications["chat"], "b")
        if line.text == "second":
            serve.applications.clear()
    assert ("a", "first") in seen
    assert seen[-1] == ("b", "second")


def test_following_a_log_says_what_keeps_it_from_being_read(serve, deployer):
    deployer.apply(Record(spec()))
    running(serve.applications["chat"], "a")
    serve.log = {"a": [DeployError("the log cannot be read: no such actor")]}
    with pytest.raises(DeployError, match="no such actor"):
        list(deployer.logs("chat", follow=True))
    with pytest.raises(UnknownDeploymentError):
        deployer.logs("nothing", follow=True)
