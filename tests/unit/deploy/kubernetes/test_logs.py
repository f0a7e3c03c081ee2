"""Lines with their stamps: read on after the last one, which the API only knows by the second."""

import pytest

from modelkit.deploy.kubernetes.logs import has_run, later, source_of

LINES = ("2026-11-27T10:00:01.5Z one", "2026-11-27T10:00:01.51Z two", "2026-11-27T10:00:02Z ", "no stamp")


@pytest.mark.parametrize(
    ("after", "texts"),
    [
        ("", ["one", "two", "", "no stamp"]),
        ("2026-11-27T10:00:01.5Z", ["two", "", "no stamp"]),
        ("2026-11-27T10:00:01.510000000Z", ["", "no stamp"]),
    ],
)
def test_lines_after_a_stamp(after, texts):
    found = list(later(iter(LINES), after))
    assert [text for _, text in found] == texts
    assert found[-1][0] == "2026-11-27T10:00:02Z"


def pod(state, last=None, restarts=0):
    container = {"name": "server", "state": {state: {}}, "restartCount": restarts}
    if last:
        container["lastState"] = {last: {}}
    sidecar = {"name": "queue-proxy", "state": {"running": {}}, "restartCount": 5}
    return {
        "metadata": {"uid": "u", "name": "chat-1"},
        "status": {"containerStatuses": [container, sidecar]},
    }


def test_a_replica_is_followed_once_its_container_has_run():
    assert not has_run(pod("waiting"))
    assert has_run(pod("running"))
    crashed = pod("waiting", "terminated", restarts=2)
    assert has_run(crashed)
    source = source_of(crashed)
    assert (source.key, source.replica, source.run, source.is_running) == ("u", "chat-1", "2", False)
