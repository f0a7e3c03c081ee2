"""The verbs of deployments, as a person uses them one after the other, on a real Docker host."""

import json
import signal
import subprocess
import sys
import uuid

import pytest

from fixtures_docker import MODEL, write_folder
from modelkit import Client
from modelkit.cli.app import main

pytestmark = pytest.mark.timeout(600)

# Nothing is wrong with it until it is loaded on the compute.
LOADING = "class Worker(Model):\n    def load(self):\n        "
BROKEN = MODEL.replace(
    "class Worker(Model):", f"{LOADING}raise RuntimeError('these weights were never trained')\n"
)
SLOW = MODEL.replace("class Worker(Model):", f"{LOADING}time.sleep(3600)\n")


@pytest.fixture
def compute(docker, tmp_path, monkeypatch):
    """A compute named `box`, the Docker of this machine, and nothing left on it afterwards."""
    monkeypatch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path / "config"))
    assert (
        main(["compute", "add", "box", "--kind", "docker", "--address", "unix:///var/run/docker.sock"]) == 0
    )
    names = [f"w{uuid.uuid4().hex[:8]}" for _ in range(2)]
    yield names
    for name in names:
        main(["stop", f"box/{name}"])


@pytest.fixture
def run(capsys):
    """Run a command; return its exit code, what it prints, and what it says meanwhile."""

    def command(*arguments):
        capsys.readouterr()
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


class Story:
    """One deployment, as a person looks after it."""

    def __init__(self, run, folder, name):
        self.run, self.folder, self.place = run, folder, f"box/{name}"
        self.deploying = ["serve", str(folder), "--compute", "box", "--name", name, "--timeout", "300"]

    def does(self, *arguments):
        """Run a command that has to succeed; return what it prints and what it says."""
        code, printed, said = self.run(*arguments)
        assert code == 0, said
        return printed, said

    def status(self):
        return json.loads(self.does("status", self.place, "--json")[0])

    def greeting(self):
        with Client(f"modelkit://{self.place}") as client:
            return client.methods.greet(name="Ada")

    def write(self, model):
        (self.folder / "model.py").write_text(model)


@pytest.fixture
def story(compute, run, base_image, tmp_path):
    return Story(run, write_folder(tmp_path / "worker", base_image), compute[0])


def test_a_deployment_from_the_first_plan_to_the_end(story, docker, compute):
    name = compute[0]
    plan, _ = story.does(*story.deploying, "--plan")
    assert f"{name} on box (docker) is new" in plan
    assert name not in story.does("ps", "box", "--json")[0]  # a plan is only shown

    url, said = story.does(*story.deploying)
    assert url.strip() == f"modelkit://box/{name}"
    assert "is deployed on box, 1 replica" in said
    assert story.greeting() == "Hello, Ada!"

    # Named by the deployment alone, for only one compute has it; the same again changes nothing.
    assert "running" in story.does("status", name)[0]
    status = story.status()
    assert (status["num_ready"], status["state"], status["history"]) == (1, "running", [])
    assert story.does(*story.deploying, "--plan")[0].startswith(f"{name} on box (docker) stays as it is")

    story.does("scale", story.place, "2")
    listing, _ = story.does("ps")
    assert "2/2 (2)" in next(line for line in listing.splitlines() if story.place in line)
    assert "serving worker" in story.does("logs", story.place, "-n", "50")[0]

    code, _, said = story.run("status", f"box/{compute[1]}")
    assert code == 1
    assert f"no deployment '{compute[1]}'" in said

    story.does("stop", story.place)
    assert name not in docker("ps", "--all", "--format", "{{.Names}}")
    assert story.run("status", story.place)[0] == 1


def test_versions_come_and_go(story):
    story.does(*story.deploying)
    first = story.status()["version"]

    # One that does not come up: what it wrote is shown, and the old one goes on serving.
    story.write(BROKEN)
    code, _, said = story.run(*story.deploying)
    assert code == 1
    assert f"{first} goes on serving" in said
    assert "never trained" in said
    assert story.greeting() == "Hello, Ada!"

    story.write(MODEL.replace("Hello", "Good day"))
    story.does(*story.deploying)
    assert story.greeting() == "Good day, Ada!"
    assert story.status()["history"] == [first]

    story.does("rollback", story.place)
    assert story.status()["version"] == first
    assert story.greeting() == "Hello, Ada!"


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(compute, run, docker, base_image, tmp_path):
    name, _ = compute
    folder = write_folder(tmp_path / "worker", base_image)
    code, text, said = run(
        "serve", str(folder), "--compute", "box", "--name", name, "--dry-run", "-o", "json"
    )
    assert code == 0, said
    assert name in json.dumps(json.loads(text))
    assert name not in docker("ps", "--all", "--format", "{{.Names}}")


def test_a_compute_that_cannot_be_reached(compute, run, tmp_path):
    socket = tmp_path / "none.sock"
    assert run("compute", "add", "away", "--kind", "docker", "--address", f"unix://{socket}")[0] == 0
    code, _, said = run("compute", "check", "away")
    assert code == 1
    assert "help:" in said
    code, _, said = run("ps")
    assert code == 1
    assert "away" in said


def test_ctrl_c_ends_the_waiting_and_says_how_to_go_on(compute, docker, base_image, tmp_path):
    name, _ = compute
    folder = write_folder(tmp_path / "worker", base_image)
    (folder / "model.py").write_text(SLOW)
    command = [sys.executable, "-m", "modelkit", "serve", str(folder), "--compute", "box", "--name", name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said = ""
        for line in process.stderr:
            said += line
            if f"{name} dev-" in line:  # the wait has begun
                break
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130, said
    assert f"modelkit status box/{name}" in said
