"""BuildKit's plain lines become stages; a failure becomes its cause."""

from pathlib import Path

import pytest

from modelkit.config import Config
from modelkit.image import Progress
from modelkit.image.builders.causes import build_failure
from modelkit.image.builders.docker import read_history
from modelkit.image.builders.plain_output import BuildOutput
from modelkit.image.plan import plan_image

BUILDKIT = """\
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 1.79kB done
#1 DONE 0.0s

#6 [internal] load build context
#6 DONE 0.0s
#7 [stage-0 3/5] RUN --mount=type=cache python -m pip install numpy==9
#7 sha256:c4a37b7099d57535409c4788eba6f243652bfc112b222197dd00b4a0798ac8cb
#7 0.432 Collecting numpy==9
#7 1.131 ERROR: No matching distribution found for numpy==9
#7 ERROR: executor failed running [/bin/sh -c pip]: exit code: 1
------
 > [stage-0 3/5] RUN pip:
------
executor failed running [/bin/sh -c pip]: exit code: 1
"""
PODMAN = """\
STEP 1/9: FROM python:3.12-slim
STEP 4/9: RUN --mount=type=cache python -m pip install numpy==9
Collecting numpy==9
ERROR: No matching distribution found for numpy==9
Error: building at STEP "RUN pip": while running runtime: exit status 1
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "requirements.txt").write_text("rich\nnumpy==9\n")
    return plan_image(Config.model_validate({"model": {"id": "m"}}), tmp_path)


def heard(text):
    stages = []
    output = BuildOutput(Progress(stages.append))
    for line in text.splitlines():
        output.feed(line)
    return output, stages


@pytest.mark.parametrize("text", [BUILDKIT, PODMAN], ids=["buildkit", "podman"])
def test_stages_and_the_step_that_failed(text):
    output, stages = heard(text)
    assert stages[-1] == "installing dependencies"
    assert "pip install numpy==9" in output.failed_step
    assert output.tail[:2] == ["Collecting numpy==9", "ERROR: No matching distribution found for numpy==9"]


@pytest.mark.parametrize("text", [BUILDKIT, PODMAN], ids=["buildkit", "podman"])
def test_the_requirement_and_its_line(text, plan):
    output, _ = heard(text)
    error = build_failure(plan, output.failed_step, output.tail)
    assert f"{Path(plan.model_dir) / 'requirements.txt'}:2: numpy==9" in error.message


@pytest.mark.parametrize(
    ("line", "message", "cure"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full", "docker system df"),
        ("pull access denied for nope, repository does not exist", "there is no base image", "build.image"),
        ("failed to do request: Head: dial tcp: lookup x: no such host", "cannot be reached", "build.image"),
        ("E: Unable to locate package ffmpegg", "no system package 'ffmpegg'", "build.system_packages"),
        ("ERROR: Failed building wheel for flash-attn", "has to be compiled", "build-essential"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "does not trust", "SSL_CERT_FILE"),
        ("ERROR: 401 Client Error: Unauthorized for url", "asks for a login", "PIP_INDEX_URL"),
        ("/usr/bin/python3: No module named venv", "no Python that can make", "build.image"),
        ("something new", "the build failed at the step RUN x", "-v shows all"),
    ],
)
def test_known_faults_come_with_their_cure(plan, line, message, cure):
    error = build_failure(plan, "RUN x", ["before", line])
    assert message in error.message
    assert cure in error.cure
    assert f"    {line}" in error.message


def test_requirements_that_exclude_each_other_are_all_named(plan):
    line = "ERROR: Cannot install rich and numpy==9 because these package versions have conflicting dependencies."
    error = build_failure(plan, "RUN x", [line])
    assert ":1: rich" in error.message
    assert ":2: numpy==9" in error.message


HISTORIES = {
    "docker": """\
0\tENTRYPOINT ["/opt/modelkit/bin/modelkit"]
0\tWORKDIR /app
2468\tCOPY app /app/ # buildkit
5000000000\tCOPY weights /weights/ # buildkit
116643232\tRUN /bin/sh -c cd /tmp && /opt/modelkit/bin/python -m pip install modelkit # buildkit
21623744\tRUN /bin/sh -c python3 -m venv /opt/modelkit # buildkit
10\tRUN /bin/sh -c apt-get update && apt-get install -y ffmpeg # buildkit
216830180\t
""",
    "podman": """\
0 B\t/bin/sh -c #(nop) WORKDIR /app
2.468 kB\t/bin/sh -c #(nop) COPY dir:9bd966 in /app/
5 GB\t/bin/sh -c #(nop) COPY dir:77aa in /weights/
117 MB\t/bin/sh -c --mount=type=bind cd /tmp && /opt/modelkit/bin/python -m pip install modelkit
21.6 MB\t/bin/sh -c python3 -m venv /opt/modelkit
10 B\t/bin/sh -c apt-get update && apt-get install -y ffmpeg
216.8 MB\t/bin/sh -c #(nop) ADD file:1814 in /
""",
}


@pytest.mark.parametrize("tool", HISTORIES)
def test_a_history_becomes_layers(tool):
    layers = read_history(HISTORIES[tool])
    assert [layer.name for layer in layers] == [
        *("base", "system packages", "environment", "dependencies", "weights", "code")
    ]
    assert layers[0].size_bytes == pytest.approx(216_830_180, rel=1e-3)
    assert layers[-1].size_bytes == 2468
    assert layers[-2].size_bytes == 5_000_000_000
