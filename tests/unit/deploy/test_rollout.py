"""The flow of a deployment, against a compute that is a dict: what is applied, in which order, and taken back."""

from itertools import count

import pytest

from modelkit.computes import Compute
from modelkit.deploy import Delivery, DeploymentSpec, LogLine, Origin, Record, Replica, Status, rollout
from modelkit.deploy.rollout import (
    FailedRolloutError,
    make_plan,
    promote,
    roll_back,
    roll_out,
    wait_until_ready,
)
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError
from modelkit.progress import NO_PROGRESS


class Computed:
    """A compute in memory. A version needs `num_polls` looks until it is ready; those in `broken` never are."""

    compute = Compute(name="memory", kind="docker", address="none")

    def __init__(self, *, num_polls=1, broken=()):
        self.records, self.applied, self.canaries, self.deleted = {}, [], {}, []
        self.num_polls, self.broken = num_polls, set(broken)
        self._looks = count()
        self._since = 0

    def deliver(self, spec, origin, delivery):
        delivery.on_line(f"delivering {spec.version}")
        return f"artifact of {spec.version}"

    def apply(self, record):
        self.applied.append(record)
        self.records[record.spec.name] = record
        self._since = next(self._looks)

    def status(self, name):
        if name not in self.records:
            raise UnknownDeploymentError("memory", name, list(self.records))
        record, looks = self.records[name], next(self._looks) - self._since
        version = record.spec.version
        replica = Replica(name="r1", state="starting", version=version, reason="loading weights")
        state = "updating"
        if version in self.broken:
            replica, state = (
                Replica(name="r1", state="failed", version=version, reason="exit code 3"),
                "failed",
            )
        elif looks > self.num_polls:
            replica, state = Replica(name="r1", state="ready", version=version), "running"
        return Status(
            name=name,
            record=record,
            state=state,
            replicas=(replica,),
            num_wanted=1,
            canary=self.canaries.get(name),
        )

    def logs(self, name, *, replica=None, num_lines=100, follow=False):
        yield LogLine(replica=replica, text="ImportError: no module named torch")

    def set_canary(self, name, spec, percent):
        self.canaries[name] = spec

    def delete(self, name):
        self.deleted.append(name)
        del self.records[name]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(rollout, "_POLL_S", 0.0)


def spec(version="v1", **fields):
    config = {"model": {"id": "chat"}, "deployment": {"min_replicas": 1}, "secrets": []}
    return DeploymentSpec(
        **{
            "name": "chat",
            "model_id": "chat",
            "version": version,
            "digest": f"sha256:{version}",
            "config": config,
            **fields,
        }
    )


def put(compute, wanted, on_status=lambda _: None):
    delivery = Delivery(progress=NO_PROGRESS)
    return roll_out(compute, make_plan(compute, wanted), Origin(), delivery, on_status, timeout_s=30)


def test_a_plan_for_something_new():
    plan = make_plan(Computed(), spec())
    assert (plan.action, plan.current) == ("create", None)
    assert ("version", None, "v1") in [(each.key, each.before, each.after) for each in plan.changes]


def test_a_plan_names_each_key_that_changes():
    compute = Computed()
    put(compute, spec("v1"))
    config = {"model": {"id": "chat"}, "deployment": {"min_replicas": 3}, "secrets": [{"env_var": "KEY"}]}
    plan = make_plan(compute, spec("v2", config=config))
    assert plan.action == "update"
    changed = {each.key: (each.before, each.after) for each in plan.changes}
    assert changed["version"] == ("v1", "v2")
    assert changed["deployment.min_replicas"] == ("1", "3")
    assert changed["secrets[0].env_var"] == (None, "KEY")


def test_a_plan_without_a_change():
    compute = Computed()
    put(compute, spec("v1"))
    assert make_plan(compute, spec("v1")).action == "none"


def test_a_name_that_another_model_has():
    compute = Computed()
    put(compute, spec("v1"))
    with pytest.raises(UsageError, match="of another model, chat"):
        make_plan(compute, spec("v1", model_id="other"))


def test_a_roll_out_ends_when_the_new_version_answers():
    compute, seen = Computed(num_polls=3), []
    status = put(compute, spec("v1"), seen.append)
    assert status.state == "running"
    assert status.record.spec.artifact == "artifact of v1"
    assert seen[0].replicas[0].reason == "loading weights"
    assert [each.state for each in seen][-1] == "running"


def test_each_version_becomes_history():
    compute = Computed()
    for version in ("v1", "v2", "v3"):
        status = put(compute, spec(version))
    assert [each.version for each in status.record.history] == ["v2", "v1"]


def test_a_bad_version_is_taken_back():
    compute = Computed(broken={"v2"})
    before = put(compute, spec("v1")).record
    with pytest.raises(FailedRolloutError) as caught:
        put(compute, spec("v2"))
    assert compute.records["chat"] == before
    assert caught.value.serving == "v1"
    assert "v1 goes on serving" in caught.value.message
    assert "exit code 3" in caught.value.message
    assert caught.value.last_lines == (LogLine(replica="r1", text="ImportError: no module named torch"),)


def test_a_bad_first_version_leaves_nothing():
    compute = Computed(broken={"v1"})
    with pytest.raises(FailedRolloutError) as caught:
        put(compute, spec("v1"))
    assert (compute.records, compute.deleted) == ({}, ["chat"])
    assert "nothing of it is left" in caught.value.message


def test_one_that_somebody_else_stops_is_not_put_back():
    compute = Computed(num_polls=10_000)
    put_away = iter([None, None])

    def stop(status):
        if next(put_away, "gone") == "gone":
            compute.records.pop("chat", None)

    with pytest.raises(DeployError, match="has gone while it was deployed"):
        put(compute, spec("v1"), stop)
    assert compute.records == {}


def test_the_version_before_comes_back():
    compute = Computed()
    put(compute, spec("v1"))
    record = put(compute, spec("v2")).record
    status = roll_back(compute, record, None, lambda _: None, timeout_s=30)
    assert status.record.spec.version == "v1"
    assert status.record.spec.artifact == "artifact of v1"  # delivered once
    assert [each.version for each in status.record.history] == ["v2"]


def test_one_that_was_never_there_cannot_come_back():
    compute = Computed()
    put(compute, spec("v1"))
    record = put(compute, spec("v2")).record
    with pytest.raises(UsageError) as caught:
        roll_back(compute, record, "v7", lambda _: None, timeout_s=30)
    assert caught.value.cure == "it has: v1"
    with pytest.raises(UsageError, match="has no earlier version"):
        roll_back(compute, Record(spec("v1")), None, lambda _: None, timeout_s=30)


def test_waiting_has_an_end():
    compute = Computed(num_polls=10**9)
    compute.apply(Record(spec()))
    with pytest.raises(DeployError, match=r"not ready after 0 s: loading weights"):
        wait_until_ready(compute, "chat", lambda _: None, timeout_s=0)


def test_a_canary_becomes_the_deployment():
    compute = Computed()
    put(compute, spec("v1"))
    compute.set_canary("chat", spec("v2").delivered("artifact of v2"), 10)
    status = promote(compute, compute.status("chat"), lambda _: None, timeout_s=30)
    assert status.record.spec.version == "v2"
    assert status.canary is None
    with pytest.raises(UsageError, match="has no canary"):
        promote(compute, status, lambda _: None, timeout_s=30)
