"""What a deployment is said to be, from what was seen of its containers: pure."""

from modelkit.config import Config
from modelkit.deploy import DeploymentSpec, Record
from modelkit.deploy.docker.containers import _in_short, taken_gpus
from modelkit.deploy.docker.look import View, _how_it_ended, _phase, _reason, _state, steps_of
from modelkit.deploy.docker.roll import Seen
from modelkit.deploy.docker.state import State


def state(num_replicas=1, **fields):
    config = Config.model_validate({"model": {"id": "chat"}, "deployment": {"min_replicas": num_replicas}})
    spec = DeploymentSpec(
        name="chat", model_id="chat", version="v1", digest="sha256:1", config=config.model_dump(mode="json")
    )
    return State(record=Record(spec), **fields)


def seen(number, phase, *, is_new=True):
    return Seen(id=f"{number}" * 64, name=f"chat-{number}", number=number, phase=phase, is_new=is_new)


def said(found, *containers):
    view = View(found, {}, containers, {each.id: 0 for each in containers}, {})
    return _state(view, steps_of(view))


def test_a_change_goes_on_until_the_old_ones_have_ended():
    new, draining = seen(2, "ready"), seen(1, "draining", is_new=False)
    assert said(state(), seen(2, "starting"), seen(1, "ready", is_new=False)) == ("updating", "")
    what, reason = said(state(), new, seen(1, "ready", is_new=False))  # it is told to end with this very look
    assert what == "updating"
    assert "a replica that is needed no more lets its calls end" in reason
    assert said(state(), new, draining, seen(3, "draining", is_new=False))[1].startswith(
        "all that is wanted answers; 2 replicas"
    )
    assert said(state(), new, seen(1, "ended", is_new=False)) == ("running", "")


def test_other_bounds_are_a_change_too():
    before = state(1).completed([seen(1, "ready").id])
    more = State(record=state(2).record, proven=before.proven)
    assert said(before, seen(1, "ready")) == ("running", "")
    assert said(more, seen(1, "ready"), seen(2, "created"))[0] == "updating"
    assert said(more, seen(1, "ready"), seen(2, "ready"))[0] == "running"
    assert said(before, seen(1, "ready"), seen(2, "ready"))[0] == "running"


def test_what_ends_once_all_is_in_place_is_an_accident():
    complete = state(2).completed([seen(1, "ready").id, seen(2, "ready").id])
    assert said(complete, seen(1, "ready"), seen(2, "starting")) == ("running", "1 of 2 replicas answer")
    assert said(complete, seen(1, "starting"), seen(2, "starting")) == ("failed", "0 of 2 replicas answer")
    assert said(complete, seen(1, "ready"))[0] == "running"
    # Before that it is no success, however many answer.
    assert said(state(2), seen(1, "ready"))[0] == "failed"


def test_restarts_of_last_month_make_no_bad_version():
    """Neither while something else is changed, nor when the version is put back after another one."""
    listed = {"State": "running", "Names": ["/chat-1"]}
    crashed = {"RestartCount": 7}
    good = state().completed([seen(1, "ready").id])

    def phase(found):
        return _phase(listed, crashed, is_ready=False, is_proven=found.has_proven(seen(1, "ready").id))

    assert phase(state()) == "failed"
    assert phase(good) == "starting"
    assert phase(State(record=state(3).record, proven=good.proven)) == "starting"
    assert said(State(record=good.record, proven=good.proven), seen(1, "starting"))[0] == "updating"


def test_a_refused_start_is_told_and_condemns_no_deployment_that_serves():
    containers = (seen(1, "ready"), seen(2, "created"))
    complete = state(2).completed([each.id for each in containers])
    for found, what in ((state(2), "failed"), (complete, "running")):
        view = View(found, {}, containers, {}, {}).refused({containers[1].id: "no such GPU"})
        assert view.reasons[containers[1].id] == "the daemon refuses to start it: no such GPU"
        assert _state(view, steps_of(view))[0] == what


def test_what_a_daemon_refuses_is_one_line_that_is_the_same_for_all():
    said_by_docker = (
        "driver failed programming external connectivity on endpoint chat-v1-1 (0c9f): "
        "Bind for 127.0.0.1:30000 failed: port is already allocated\n"
    )
    assert _in_short(said_by_docker) == "Bind for 127.0.0.1:30000 failed: port is already allocated"
    assert len(_in_short("x" * 5000)) == 300
    assert _in_short("") == ""


def reason(status, phase, details, *, how=None, name="/chat-1", is_stopping=False):
    how = _how_it_ended(details) if how is None else how
    return _reason({"State": status, "Names": [name]}, details, phase, how, is_stopping=is_stopping)


def test_the_reason_of_a_crash_stays_the_same_while_it_goes_on():
    crashed = {"RestartCount": 3, "State": {"ExitCode": 1}}
    how = _how_it_ended(crashed)
    runs_again = {"RestartCount": 4, "State": {"ExitCode": 0}}
    assert _how_it_ended(runs_again) == ""  # what was known before counts
    assert (
        reason("restarting", "failed", crashed)
        == reason("running", "failed", runs_again, how=how)
        == "ends as it starts, with exit code 1"
    )
    assert reason("running", "failed", runs_again) == "ends as it starts"
    killed = {"RestartCount": 1, "State": {"ExitCode": 137, "OOMKilled": True}}
    assert (
        reason("running", "starting", killed)
        == "loads again: it had ended with exit code 137, for it had used up its memory"
    )


def test_an_end_that_was_planned_is_no_reason():
    ended = {"State": {"ExitCode": 0}}
    assert reason("exited", "ended", ended, name="/chat-1-draining") == "waits for its turn"  # put back
    assert reason("exited", "ended", {"State": {"ExitCode": 137}}, is_stopping=True) == ""
    assert reason("exited", "ended", {"State": {"ExitCode": 3}}) == "has ended with exit code 3"


def test_a_record_that_cannot_be_read_is_listed_by_what_runs_and_left_alone():
    labels = {
        "modelkit.deployment": "chat",
        "modelkit.deployment.record": "{",
        "modelkit.deployment.number": "7",
    }
    found = State.of(labels)
    assert found is not None
    assert (found.name, found.number, found.record.is_readable) == ("chat", 7, False)
    old = seen(1, "ready", is_new=False)
    what, reason = said(found, old)
    assert what == "running"
    assert reason == "its record cannot be read; a newer modelkit may have written it"
    assert said(found, seen(1, "starting", is_new=False))[0] == "starting"
    assert said(found)[0] == "failed"
    steps = steps_of(View(found, {}, (old,), {}, {}))
    assert (steps.start, steps.drain, steps.remove, steps.is_done) == ((), (), (), False)


def container(gpu, status, revision):
    labels = {
        "modelkit.deployment": "chat",
        "modelkit.deployment.revision": revision,
        "modelkit.deployment.gpus": gpu,
    }
    return {"State": status, "Labels": labels}


def test_gpus_are_held_by_what_runs_and_by_what_is_wanted():
    wanted = state()
    containers = [
        container("runs", "running", "old"),
        container("waits", "created", wanted.revision),
        container("was-stopped", "exited", wanted.revision),
        container("has-ended", "exited", "old"),
        container("was-cut-off", "created", "never"),
    ]
    assert taken_gpus(containers, {"chat": wanted}) == {"runs", "waits", "was-stopped"}
    assert taken_gpus(containers, {}) == {"runs"}
