"""What the cluster says of pods becomes a status, in its own words."""

import pytest

from modelkit.config import Config
from modelkit.deploy import DeploymentSpec, Record
from modelkit.deploy.kubernetes.observe import Observed, deployment_status, remains, resource_status

CONFIG = Config.model_validate({"model": {"id": "chat"}}).model_dump(mode="json")
RECORD = Record(
    DeploymentSpec(name="chat", model_id="chat", version="v2", digest="sha256:2", config=CONFIG, artifact="i")
)


def workload(*, generation=2, observed=2, wanted=1, conditions=(), **status):
    return {
        "kind": "Deployment",
        "metadata": {
            "name": "chat",
            "generation": generation,
            "annotations": {"modelkit/record": RECORD.to_json(), "modelkit/percent": "10"},
        },
        "spec": {
            "replicas": wanted,
            "selector": {"matchLabels": {"modelkit/track": "stable"}},
            "template": {"metadata": {"annotations": {"modelkit/template": "new"}}},
        },
        "status": {"observedGeneration": observed, "conditions": list(conditions), **status},
    }


def pod(name="chat-1", template="new", *, ready=False, waiting=None, ended=None, **fields):
    state = {"waiting": waiting} if waiting else {"running": {}}
    container = {"name": "server", "state": state, "restartCount": 3 if ended else 0}
    if ended:
        container["lastState"] = {"terminated": ended}
    return {
        "metadata": {
            "name": name,
            "labels": {"modelkit/track": "stable"},
            "annotations": {
                "modelkit/template": template,
                "modelkit/version": "v2" if template == "new" else "v1",
            },
            **fields.pop("metadata", {}),
        },
        "spec": {"nodeName": "node1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}, *fields.pop("conditions", ())],
            "containerStatuses": [container],
            **fields,
        },
    }


def status(deployment, *pods, warnings=None, last_lines=None, canary=None):
    observed = Observed(pods=pods, warnings=warnings or {}, last_lines=last_lines or {})
    return deployment_status(deployment, observed, canary)


def test_it_runs_when_all_replicas_are_new_and_ready():
    found = status(workload(replicas=1, updatedReplicas=1, availableReplicas=1), pod(ready=True))
    assert (found.state, found.num_ready, found.num_wanted, found.reason) == ("running", 1, 1, "")
    assert (found.replicas[0].version, found.replicas[0].node) == ("v2", "node1")


def test_what_the_controller_has_not_seen_has_not_begun():
    found = status(workload(generation=3, replicas=1, updatedReplicas=1, availableReplicas=1))
    assert (found.state, found.reason) == ("starting", "the cluster has not begun yet")


def test_an_update_tells_what_the_new_replica_says():
    old, new = pod("chat-0", "old", ready=True), pod()
    found = status(
        workload(replicas=2, updatedReplicas=1, availableReplicas=1),
        old,
        new,
        last_lines={"chat-1": "loading weights: 40 %"},
    )
    assert (found.state, found.reason) == ("updating", "loading weights: 40 %")


@pytest.mark.parametrize(
    ("fields", "warnings", "reason"),
    [
        (
            {
                "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"},
                "ended": {"exitCode": 137, "reason": "OOMKilled", "message": "a\nlast words\n"},
            },
            {},
            "CrashLoopBackOff: the container ended with exit code 137, OOMKilled:\na\nlast words",
        ),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
            {"chat-1": 'Failed to pull image "x": not found'},
            'ImagePullBackOff: Failed to pull image "x": not found',
        ),
        (
            {
                "waiting": {
                    "reason": "CreateContainerConfigError",
                    "message": 'secret "hf-token" not found',
                }
            },
            {},
            'CreateContainerConfigError: secret "hf-token" not found',
        ),
    ],
)
def test_a_new_replica_that_cannot_start_fails_the_update(fields, warnings, reason):
    old, new = pod("chat-0", "old", ready=True), pod(**fields)
    found = status(workload(replicas=2, updatedReplicas=1, availableReplicas=1), old, new, warnings=warnings)
    assert (found.state, found.reason) == ("failed", reason)


def test_a_replica_that_dies_later_does_not_fail_the_others():
    dead = pod("chat-2", waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 1})
    found = status(
        workload(wanted=2, replicas=2, updatedReplicas=2, availableReplicas=1), pod(ready=True), dead
    )
    assert found.state == "updating"
    assert found.reason.startswith("CrashLoopBackOff")


def test_no_room_is_said_as_the_scheduler_says_it():
    waiting = pod(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            }
        ]
    )
    found = status(workload(replicas=1, updatedReplicas=1), waiting)
    assert found.state == "starting"
    assert found.reason == "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "x"}
    found = status(workload(replicas=1, updatedReplicas=1, conditions=[late]), waiting)
    assert found.state == "failed"
    assert "Insufficient nvidia.com/gpu" in found.reason


def test_a_quota_that_is_used_up_fails_at_once():
    full = {"type": "ReplicaFailure", "reason": "FailedCreate", "message": "exceeded quota"}
    found = status(workload(conditions=[full]))
    assert (found.state, found.reason) == ("failed", "FailedCreate: exceeded quota")


def test_nothing_runs_where_nothing_is_wanted():
    assert status(workload(wanted=0)).state == "idle"


def test_a_replica_that_ends_is_draining():
    found = status(
        workload(replicas=1, updatedReplicas=1, availableReplicas=1),
        pod(ready=True),
        pod("chat-0", ready=True, metadata={"deletionTimestamp": "now"}),
    )
    assert sorted(replica.state for replica in found.replicas) == ["draining", "ready"]
    assert found.num_ready == 1


def test_a_canary_is_told_with_its_share_and_its_replicas_apart():
    other = pod("chat-canary-1", metadata={"labels": {"modelkit/track": "canary"}, "annotations": {}})
    found = status(
        workload(replicas=1, updatedReplicas=1, availableReplicas=1),
        pod(ready=True),
        other,
        canary=workload(),
    )
    assert found.canary is not None
    assert found.canary_percent == 10
    assert (found.state, [each.name for each in found.replicas]) == ("running", ["chat-1"])
    assert [(each.name, each.state) for each in found.canary_replicas] == [("chat-canary-1", "starting")]


@pytest.mark.parametrize(
    "text",
    [
        "{broken",
        RECORD.to_json().replace('"model":{', '"model":{"of_tomorrow":1,'),
        '{"spec":{},"history":[]}',
    ],
)
def test_a_record_that_cannot_be_read_is_listed_by_what_runs(text):
    item = workload(replicas=1, updatedReplicas=1, availableReplicas=1)
    item["metadata"]["annotations"]["modelkit/record"] = text
    item["metadata"]["labels"] = {"app.kubernetes.io/instance": "chat"}
    found = status(item, pod(ready=True))
    assert (found.name, found.state, found.num_ready) == ("chat", "running", 1)
    assert not found.record.is_readable
    assert found.reason == "its record cannot be read; a newer modelkit may have written it"


def test_what_a_stop_has_left_is_told_as_such():
    found = remains("chat", [pod(ready=True, metadata={"deletionTimestamp": "now"})])
    assert (found.name, found.state, found.replicas[0].state) == ("chat", "stopping", "draining")
    assert "modelkit stop chat" in found.reason


READY = {"type": "Ready", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False"}
HEAD = pod("chat-head", ready=True, metadata={"labels": {"ray.io/node-type": "head"}})
WORKER = pod("chat-worker", ready=True, metadata={"labels": {"ray.io/node-type": "worker"}})


def applications(state, place="activeServiceStatus"):
    return {place: {"applicationStatuses": {"chat": {"status": state, "message": f"it is {state}"}}}}


@pytest.mark.parametrize(
    ("kind", "said", "pods", "state"),
    [
        ("Service", {"conditions": [READY]}, [pod(ready=True)], "running"),
        ("Service", {"conditions": [READY]}, [], "idle"),
        ("Service", {"conditions": [{"type": "Ready", "status": "Unknown"}]}, [], "starting"),
        ("Service", {"conditions": [NOT_READY | {"reason": "RevisionFailed"}]}, [], "failed"),
        ("RayService", {"serviceStatus": "Running"}, [HEAD, WORKER], "running"),
        ("RayService", {"serviceStatus": "WaitForServeDeploymentReady"}, [HEAD], "starting"),
        # No replica runs where only the head does.
        ("RayService", {"conditions": [READY]}, [HEAD], "idle"),
        # The old cluster is ready while a new one is prepared.
        (
            "RayService",
            {"conditions": [READY, {"type": "UpgradeInProgress", "status": "True"}]},
            [HEAD, WORKER],
            "updating",
        ),
        ("RayService", {"conditions": [READY], **applications("RUNNING")}, [HEAD, WORKER], "running"),
        ("RayService", {"conditions": [READY], **applications("DEPLOYING")}, [HEAD, WORKER], "updating"),
        (
            "RayService",
            {
                "conditions": [READY, {"type": "UpgradeInProgress", "status": "True"}],
                **applications("RUNNING"),
                **applications("DEPLOY_FAILED", "pendingServiceStatus"),
            },
            [HEAD, WORKER],
            "failed",
        ),
        # It says "not ready" from its first moment on.
        ("RayService", {"conditions": [NOT_READY | {"reason": "Initializing"}]}, [HEAD], "starting"),
        ("RayService", {"conditions": [NOT_READY | {"reason": "InitializingTimeout"}]}, [HEAD], "failed"),
    ],
)
def test_others_controllers_say_it_in_their_conditions(kind, said, pods, state):
    item = {**workload(), "kind": kind, "status": {"observedGeneration": 2, **said}}
    found = resource_status(item, Observed(pods=pods, warnings={}, last_lines={}))
    assert found.state == state
    assert "chat-head" not in {replica.name for replica in found.replicas}


def test_what_another_controller_has_not_seen_has_not_begun():
    item = {**workload(generation=3), "kind": "RayService"}
    item["status"]["conditions"] = [READY]
    found = resource_status(item, Observed(pods=[HEAD, WORKER], warnings={}, last_lines={}))
    assert (found.state, found.reason) == ("updating", "the cluster has not begun yet")
