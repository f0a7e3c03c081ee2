"""A real Docker, a base image for it made on this machine, and model folders whose images the tests build.

The base image is Debian with its own Python, which `scripts/make_test_base.py` makes: nothing has to be pulled.
"""

import contextlib
import json
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from modelkit import Client, ModelkitError
from modelkit.image.tool import find_tool, tool_problem
from paths import load_script

BASE = "modelkit-test-base:bookworm"
PYTHON_VERSION = "3.11"

MODEL = """
import os
import time
from collections.abc import Iterator

from modelkit import Model, method


class Worker(Model):
    @method
    def greet(self, name: str) -> str:
        return f"Hello, {name}!"

    @method
    def whoami(self) -> int:
        return os.getuid()

    @method
    def slow(self, seconds: float) -> Iterator[str]:
        yield "begun"
        time.sleep(seconds)
        yield "done"

    @method
    def weights(self) -> str:
        return (self.checkpoint_dir / "weights.txt").read_text()
"""


class Docker:
    """The docker client; each call is a real one."""

    def __init__(self, tool):
        self.tool = tool
        self.tags = set()

    def __call__(self, *arguments, check=True):
        command = [self.tool.path, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or run.returncode == 0, run.stderr
        return run.stdout.strip()

    def tag(self):
        """A name for an image that is removed at the end."""
        name = f"modelkit-test:{uuid.uuid4().hex[:12]}"
        self.tags.add(name)
        return name

    def layers(self, image):
        return self("image", "inspect", "--format", '{{join .RootFS.Layers "\\n"}}', image).split()

    def containers(self):
        """Names of all containers that modelkit has started, running or not."""
        return self("ps", "--all", "--filter", "label=modelkit.serve.host", "--format", "{{.Names}}").split()


@pytest.fixture(scope="session")
def docker():
    tool = find_tool("docker")
    if tool is None:
        pytest.skip("docker with BuildKit is not installed (apt-get install docker.io)")
    problem = tool_problem(tool)
    if problem is not None:
        pytest.skip(f"{problem.message} (.ci/run starts it)")
    client = Docker(tool)
    yield client
    if client.tags:
        client("image", "rm", "--force", *client.tags, check=False)


@pytest.fixture(scope="session")
def base_image(docker):
    """The name of an image with Debian's Python, in Docker's store."""
    if not docker("image", "ls", "--quiet", BASE):
        tar = load_script("make_test_base").TAR
        if not tar.is_file():
            pytest.skip("there is no base image for tests (make test-base)")
        docker("import", str(tar), BASE)
    return BASE


@pytest.fixture(scope="session")
def pushed_base(docker, base_image, registry):
    """The same image in the registry of this session."""
    name = f"{registry.host}/test/base:bookworm"
    docker("tag", base_image, name)
    docker("push", name)
    docker("image", "rm", name)
    return name


def write_folder(path: Path, base: str, config: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    text = f"model: {{id: worker}}\nbuild: {{image: '{base}', python_version: '{PYTHON_VERSION}'}}\n"
    (path / "config.yaml").write_text(text + textwrap.dedent(config))
    (path / "model.py").write_text(MODEL)
    return path


@pytest.fixture
def image_folder(tmp_path, base_image):
    """A model folder whose image is built from the base image."""
    return write_folder(tmp_path / "worker", base_image)


def build(folder, *arguments):
    """Run `modelkit build` as a process; return what it prints as JSON, and what it says meanwhile."""
    command = [sys.executable, "-m", "modelkit", "build", str(folder), "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


@contextlib.contextmanager
def running(docker, image, *options):
    """A container of an image and a client that is connected to it."""
    name = f"modelkit-test-{uuid.uuid4().hex[:12]}"
    try:
        docker("run", "--detach", "--name", name, "--publish", "127.0.0.1::50051", *options, image)
        with Client(docker("port", name, "50051/tcp").split()[0]) as client:
            client.wait_ready(timeout_s=60)
            yield name, client
    except ModelkitError as error:
        raise AssertionError(docker("logs", name)) from error
    finally:
        docker("rm", "--force", name)
