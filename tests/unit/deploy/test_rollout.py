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
    scale,
    start_canary,
)
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError
from modelkit.progress import NO_PROGRESS


class Computed:
    """A compute in memory. A version needs `num_polls` looks until it is ready; those in `broken` never are."""

    compute = Compute(name="memory", kind="docker", address="none")

    def __init__(self, *, num_polls=1, broken=()):
        self.records, self.applied, self.canaries, self.deleted, self.shares = {}, [], {}, [], []
        self.num_polls, self.broken = num_polls, set(broken)
        self.meanwhile = {}  # what happens at the given look after an apply: raises, or changes something
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
        looks = next(self._looks) - self._since
        self.meanwhile.pop(looks, lambda: None)()
        if name not in self.records:
            raise UnknownDeploymentError("memory", name, list(self.records))
        record = self.records[name]
        replica, state = self._replica(record.spec.version, looks)
        canary, percent = self.canaries.get(name, (None, 0))
        bounds = record.spec.parsed_config().deployment
        return Status(
            name=name,
            record=record,
            state=state,
            replicas=(replica,) * max(1, bounds.min_replicas),
            num_wanted=1,
            min_replicas=bounds.min_replicas,
            max_replicas=bounds.max_replicas,
            canary=canary,
            canary_percent=percent,
            canary_replicas=() if canary is None else (self._replica(canary.version, looks)[0],),
        )

    def _replica(self, version, looks):
        if version in self.broken:
            return Replica(name="r1", state="failed", version=version, reason="exit code 3"), "failed"
        if looks > self.num_polls:
            return Replica(name="r1", state="ready", version=version), "running"
        return Replica(name="r1", state="starting", version=version, reason="loading weights"), "updating"

    def logs(self, name, *, replica=None, num_lines=100, follow=False):
        yield LogLine(replica=replica, text="ImportError: no module named torch")

    def scale(self, name, min_replicas, max_replicas):
        self.records[name] = self.records[name].scaled(min_replicas, max_replicas)

    def set_canary(self, name, spec, percent):
        self.canaries[name] = (spec, percent)
        self.shares.append(percent)
        self._since = next(self._looks)

    def delete(self, name):
        self.deleted.append(name)
        del self.records[name]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for name in ("_POLL_S", "_MAX_POLL_S", "_FAILED_FOR_S"):
        monkeypatch.setattr(rollout, name, 0.0)


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
    assert caught.value.serving == "v1 goes on serving"
    assert "exit code 3" in caught.value.message
    assert caught.value.last_lines == (LogLine(replica="r1", text="ImportError: no module named torch"),)


def test_a_bad_first_version_leaves_nothing():
    compute = Computed(broken={"v1"})
    with pytest.raises(FailedRolloutError) as caught:
        put(compute, spec("v1"))
    assert (compute.records, compute.deleted) == ({}, ["chat"])
    assert "nothing of it is left" in caught.value.message


def test_one_that_somebody_else_stops_is_not_put_back():
    compute = Computed(num_polls=10)
    compute.meanwhile[3] = compute.records.clear
    with pytest.raises(DeployError, match="has gone while it was deployed"):
        put(compute, spec("v1"))
    assert compute.records == {}


def refuse():
    raise DeployError("compute memory does not answer in time")


def test_a_look_that_fails_is_no_verdict():
    compute, seen = Computed(num_polls=6), []
    compute.meanwhile |= {2: refuse, 4: refuse}
    assert put(compute, spec("v1"), seen.append).state == "running"
    assert "memory does not answer: compute memory does not answer in time" in [each.reason for each in seen]
    assert compute.deleted == []


def test_other_bounds_meanwhile_are_the_same_change():
    compute = Computed(num_polls=6)
    compute.meanwhile[3] = lambda: compute.scale("chat", 4, 4)
    status = put(compute, spec("v1"))
    assert (status.state, status.min_replicas) == ("running", 4)
    assert len(compute.applied) == 1


def test_what_somebody_else_deploys_meanwhile_stays():
    compute = Computed(num_polls=6)
    put(compute, spec("v1"))
    others = Record(spec("v3").delivered("artifact of v3"))
    compute.meanwhile[3] = lambda: compute.records.update(chat=others)
    with pytest.raises(DeployError, match="somebody else has changed chat meanwhile: v3 is there now"):
        put(compute, spec("v2"))
    assert compute.records["chat"] == others


def test_what_was_deployed_while_it_was_delivered_stays():
    compute = Computed()
    put(compute, spec("v1"))
    plan = make_plan(compute, spec("v2"))
    others = put(compute, spec("v3")).record
    with pytest.raises(DeployError, match="somebody else has changed"):
        roll_out(compute, plan, Origin(), Delivery(progress=NO_PROGRESS), lambda _: None, timeout_s=30)
    assert compute.records["chat"] == others


def test_a_change_that_was_refused_takes_nothing_back():
    compute = Computed()
    put(compute, spec("v1"))
    before = list(compute.applied)
    compute.apply = lambda record: refuse()
    with pytest.raises(DeployError, match="does not answer in time") as caught:
        put(compute, spec("v2"))
    assert not isinstance(caught.value, FailedRolloutError)
    assert compute.applied == before


def test_the_cause_is_told_also_where_the_old_version_does_not_come_back():
    compute = Computed(broken={"v2"})
    put(compute, spec("v1"))
    compute.broken.add("v1")
    with pytest.raises(FailedRolloutError) as caught:
        put(compute, spec("v2"))
    assert "exit code 3; v1 was put back, and does not answer yet" in caught.value.message
    assert caught.value.last_lines
    apply = compute.apply
    compute.apply = lambda record: apply(record) if record.spec.version != "v1" else refuse()
    compute.broken.discard("v1")
    with pytest.raises(FailedRolloutError, match="exit code 3; putting back what was there failed too"):
        put(compute, spec("v2"))


def test_a_deployment_goes_on_asking_for_its_key():
    compute = Computed()
    put(compute, spec("v1", api_key_env="CHAT_KEY"))
    assert make_plan(compute, spec("v2")).spec.api_key_env == "CHAT_KEY"
    assert make_plan(compute, spec("v2", api_key_env="OTHER")).spec.api_key_env == "OTHER"


def test_the_version_before_comes_back():
    compute = Computed()
    put(compute, spec("v1"))
    record = put(compute, spec("v2")).record
    status = roll_back(compute, record, None, lambda _: None, timeout_s=30)
    assert status.record.spec.version == "v1"
    assert status.record.spec.artifact == "artifact of v1"  # delivered once
    assert [each.version for each in status.record.history] == ["v2"]


def test_a_version_comes_back_for_todays_load_and_asks_for_todays_key():
    compute = Computed()
    put(compute, spec("v1"))
    put(compute, spec("v2", api_key_env="CHAT_KEY"))
    compute.scale("chat", 5, 6)
    status = roll_back(compute, compute.records["chat"], None, lambda _: None, timeout_s=30)
    assert (status.record.spec.version, status.min_replicas, status.max_replicas) == ("v1", 5, 6)
    assert status.record.spec.api_key_env == "CHAT_KEY"


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
    plan = make_plan(compute, spec())
    with pytest.raises(FailedRolloutError, match=r"not ready after 0 s: loading weights"):
        roll_out(compute, plan, Origin(), Delivery(progress=NO_PROGRESS), lambda _: None, timeout_s=0)


def test_a_canary_gets_calls_once_it_is_ready_and_becomes_the_deployment():
    compute = Computed(num_polls=3)
    put(compute, spec("v1"))
    compute.scale("chat", 5, 5)
    status = start_canary(compute, spec("v2").delivered("artifact of v2"), 10, lambda _: None, timeout_s=30)
    assert compute.shares == [0, 10]
    assert (status.canary.version, status.canary_percent) == ("v2", 10)
    status = promote(compute, status, lambda _: None, timeout_s=30)
    assert status.record.spec.version == "v2"
    assert (status.canary, status.min_replicas) == (None, 5)
    with pytest.raises(UsageError, match="has no canary"):
        promote(compute, status, lambda _: None, timeout_s=30)


def test_a_canary_that_does_not_come_up_never_gets_a_call():
    compute = Computed(broken={"v2"})
    before = put(compute, spec("v1")).record
    with pytest.raises(FailedRolloutError, match="exit code 3; it has had no call, and was ended"):
        start_canary(compute, spec("v2"), 10, lambda _: None, timeout_s=30)
    assert compute.shares == [0, 0]
    assert compute.canaries["chat"][0] is None
    assert compute.records["chat"] == before


def test_scaling_waits_until_the_replicas_are_there():
    compute = Computed()
    put(compute, spec("v1"))
    status = scale(compute, "chat", 3, 4, lambda _: None, timeout_s=30)
    assert (status.num_ready, status.min_replicas, status.max_replicas) == (3, 3, 4)
    assert len(compute.applied) == 1


@pytest.mark.parametrize(
    ("bounds", "message"), [((3, 2), "cannot be"), ((0, 0), "cannot be"), ((0, 2), "is dedicated")]
)
def test_bounds_that_cannot_be_change_nothing(bounds, message):
    compute = Computed()
    before = put(compute, spec("v1")).record
    with pytest.raises(UsageError, match=message):
        scale(compute, "chat", *bounds, lambda _: None, timeout_s=30)
    assert compute.records["chat"] == before


def test_a_version_that_never_answered_is_not_what_one_comes_back_to():
    compute = Computed(broken={"v2"})
    put(compute, spec("v1"))
    # Somebody has deployed v2, and has not waited for it.
    compute.apply(compute.records["chat"].followed_by(spec("v2").delivered("artifact of v2")))
    status = put(compute, spec("v3"))
    assert [each.version for each in status.record.history] == ["v1"]


def test_a_record_that_cannot_be_read_is_not_put_back():
    compute = Computed(broken={"v2"})
    compute.records["chat"] = Record.unreadable("chat")
    with pytest.raises(FailedRolloutError, match="this modelkit cannot read its record"):
        put(compute, spec("v2"))
