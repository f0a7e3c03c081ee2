"""Images that are really built, by both builders, and really run."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from fixtures_docker import build, running, write_folder
from modelkit.cli.app import main
from modelkit.image.plan import USER_ID

pytestmark = pytest.mark.timeout(400)

WEIGHTS = "checkpoints: {type: local, path: checkpoint}\n"


def build_fails(folder, *arguments, env=None):
    command = [sys.executable, "-m", "modelkit", "build", str(folder), *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert run.returncode in {1, 2}, run.stdout + run.stderr
    return run.stderr


@pytest.fixture(scope="module")
def built(docker, base_image, tmp_path_factory):
    """A folder with weights, its image by BuildKit, and what the command said."""
    folder = write_folder(tmp_path_factory.mktemp("built") / "worker", base_image, WEIGHTS)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/weights.txt").write_text("seven")
    (folder / ".env").write_text("PASSWORD=hunter2")
    tag = docker.tag()
    result, said = build(folder, "--builder", "docker", "--tag", tag)
    return folder, tag, result, said


def test_an_image_answers_over_grpc(docker, built):
    _, tag, _, _ = built
    with running(docker, tag) as (_, client):
        assert client.methods.greet(name="Ada") == "Hello, Ada!"
        assert client.methods.whoami() == USER_ID
        assert client.methods.weights() == "seven"


def test_what_an_image_says_of_itself(docker, built):
    _, tag, result, _ = built
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", tag))
    assert config["Entrypoint"][:3] == ["/opt/modelkit/bin/modelkit", "serve", "/app"]
    assert not config["Cmd"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["User"] == f"{USER_ID}:{USER_ID}"
    assert set(config["ExposedPorts"]) == {"50051/tcp", "8000/tcp"}
    assert config["Labels"]["org.opencontainers.image.title"] == "worker"
    assert "HF_HUB_OFFLINE=1" in config["Env"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert [layer["name"] for layer in result["layers"]] == [
        "base",
        "environment",
        "dependencies",
        "weights",
        "code",
    ]


def test_the_health_check_finds_the_model_ready(docker, built):
    _, tag, _, _ = built
    with running(docker, tag, "--health-interval", "1s") as (name, _):
        deadline = time.monotonic() + 30
        while docker("inspect", "--format", "{{.State.Health.Status}}", name) != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_files_that_belong_in_no_image_are_not_in_it(docker, built):
    _, tag, _, _ = built
    listing = docker("run", "--rm", "--entrypoint", "find", tag, "/app", "-type", "f").split()
    assert sorted(listing) == ["/app/config.yaml", "/app/model.py"]


def test_changed_code_is_a_new_code_layer_and_nothing_else(docker, built):
    folder, tag, _, _ = built
    before = docker.layers(tag)
    changed = docker.tag()
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("Hello", "Salut"))
    build(folder, "--builder", "docker", "--tag", changed)
    after = docker.layers(changed)
    differs = [one != other for one, other in zip(before, after, strict=True)]
    # Below it nothing is new; above it is the layer of WORKDIR, which is empty.
    assert differs.count(True) == 1
    assert differs.index(True) == len(differs) - 2
    with running(docker, changed) as (_, client):
        assert client.methods.greet(name="Ada") == "Salut, Ada!"


def test_a_change_of_the_same_length_is_seen(docker, built):
    """BuildKit takes a file of the same size and time for unchanged."""
    folder, _, _, _ = built
    path = folder / "note.txt"
    for text in ("one", "two"):
        path.write_text(text)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        tag = docker.tag()
        build(folder, "--builder", "docker", "--tag", tag)
        assert docker("run", "--rm", "--entrypoint", "cat", tag, "/app/note.txt") == text
    path.unlink()


def test_sigterm_lets_a_running_call_end(docker, built):
    _, tag, _, _ = built
    with running(docker, tag) as (name, client):
        answers = client.methods.slow(seconds=2.0)
        assert next(answers) == "begun"
        docker("stop", "--time", "20", name)
        assert list(answers) == ["done"]
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name) == "0"


def test_torch_without_cuda_is_left_to_uv_which_does_not_stay(docker, image_folder):
    # Named, so that uv is used, and not installed, for its index is not on this machine's network.
    (image_folder / "requirements.txt").write_text(
        "torch==2.13.0 ; sys_platform == 'never'\npackaging==24.2\n"
    )
    tag = docker.tag()
    _, said = build(image_folder, "--builder", "docker", "--tag", tag, "-v")
    assert "--torch-backend cpu" in said
    names = docker("run", "--rm", "--entrypoint", "ls", tag, "/opt/modelkit/bin").split()
    assert "modelkit" in names
    assert "uv" not in names
    with running(docker, tag) as (_, client):
        assert client.methods.greet(name="Ada") == "Hello, Ada!"


# ------------------------------------------------------------------------------------------------- without a Dockerfile


def test_the_other_builder_makes_an_image_that_answers(docker, pushed_base, registry, tmp_path):
    folder = write_folder(tmp_path / "worker", pushed_base, WEIGHTS)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/weights.txt").write_text("seven")
    tag = f"{registry.host}/test/oci:1"
    result, _ = build(folder, "--builder", "oci", "--tag", tag, "--push")
    docker("pull", tag)
    docker.tags.add(tag)
    assert docker("image", "inspect", "--format", "{{.Id}}", tag) == result["id"]
    with running(docker, tag) as (_, client):
        assert client.methods.greet(name="Ada") == "Hello, Ada!"
        assert client.methods.whoami() == USER_ID
        assert client.methods.weights() == "seven"


def test_both_builders_describe_the_same_image(docker, built, pushed_base, registry):
    folder, tag, _, _ = built
    other = f"{registry.host}/test/oci:same"
    build(folder, "--builder", "oci", "--tag", other, "--push", "--set", f"build.image={pushed_base}")
    docker("pull", other)
    docker.tags.add(other)
    ours, theirs = (
        json.loads(docker("image", "inspect", "--format", "{{json .Config}}", name)) for name in (tag, other)
    )
    for key in ("User", "WorkingDir", "StopSignal", "Healthcheck", "ExposedPorts"):
        assert ours[key] == theirs[key], key
    assert set(ours["Env"]) == set(theirs["Env"])
    assert [part for part in theirs["Entrypoint"] if "build.image" not in part and part != "--set"] == [
        part for part in ours["Entrypoint"] if part != "--set"
    ]


def test_the_same_folder_is_the_same_image_bit_for_bit(pushed_base, registry, tmp_path, monkeypatch):
    digests = []
    for number in (1, 2):
        # Another place, other times, another umask, and nothing kept from before.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{number}"))
        folder = write_folder(tmp_path / f"place-{number}" / "worker", pushed_base, WEIGHTS)
        (folder / "requirements.txt").write_text("packaging==24.2\n")
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint/weights.txt").write_text("seven")
        for path in folder.rglob("*"):
            os.utime(path, (1_000_000_000 * number, 1_000_000_000 * number))
            path.chmod(0o755 if path.is_dir() else 0o600 + 0o44 * (number - 1))
        result, _ = build(
            folder, "--builder", "oci", "--tag", f"{registry.host}/test/same-{number}:1", "--push"
        )
        digests.append((result["digest"], result["id"]))
    assert digests[0] == digests[1]


def test_changed_code_sends_the_code_only(pushed_base, registry, tmp_path):
    folder = write_folder(tmp_path / "worker", pushed_base)
    first, _ = build(folder, "--builder", "oci", "--tag", f"{registry.host}/test/change:1", "--push")
    (folder / "model.py").write_text((folder / "model.py").read_text() + "# changed\n")
    before = registry.log_path.read_text().count("PUT /v2/")
    second, _ = build(folder, "--builder", "oci", "--tag", f"{registry.host}/test/change:2", "--push")
    sent = registry.log_path.read_text().count("PUT /v2/") - before
    assert first["layers"][:-1] == second["layers"][:-1]
    assert first["digest"] != second["digest"]
    assert sent <= 2 * 4  # code, config and manifest under digest and tag; each is logged twice


def test_without_a_registry_the_image_is_a_folder_that_others_read(
    docker, pushed_base, tmp_path, monkeypatch
):
    folder = write_folder(tmp_path / "worker", pushed_base)
    layout = tmp_path / "layout"
    result, _ = build(folder, "--builder", "oci", "--tag", f"oci:{layout}:v1")
    seen = subprocess.run(
        ["skopeo", "inspect", f"oci:{layout}:v1"], capture_output=True, text=True, check=True
    )
    assert json.loads(seen.stdout)["Digest"] == result["digest"]
    tag = docker.tag()
    # skopeo speaks the Engine's API: an image of it runs too.
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}:v1", f"docker-daemon:{tag}"], check=True)
    with running(docker, tag) as (_, client):
        assert client.methods.greet(name="Ada") == "Hello, Ada!"


def test_what_needs_commands_is_refused_with_the_other_builder_as_the_cure(image_folder, docker):
    said = build_fails(image_folder, "--builder", "oci", "--set", "build.system_packages=[ffmpeg]")
    assert "runs no commands" in said
    assert "--builder docker" in said


# ---------------------------------------------------------------------------------------------- the author's Dockerfile


def test_the_authors_own_dockerfile_is_used_as_it_is(docker, image_folder, base_image):
    text = f"FROM {base_image}\nLABEL mine=yes\nCOPY model.py /mine/model.py\n"
    (image_folder / "Dockerfile").write_text(text)
    tag = docker.tag()
    _, said = build(image_folder, "--tag", tag)
    assert "Dockerfile is used as it is" in said
    assert (image_folder / "Dockerfile").read_text() == text
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", tag))
    assert labels == {"mine": "yes"}


def test_a_rendered_dockerfile_can_be_taken_over(docker, image_folder):
    """What --dry-run prints, saved and changed, gets the context it was rendered for."""
    command = [sys.executable, "-m", "modelkit", "build", str(image_folder), "--dry-run"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (image_folder / "Dockerfile").write_text(text + "LABEL mine=yes\n")
    tag = docker.tag()
    _, said = build(image_folder, "--tag", tag)
    assert "Dockerfile is used as it is" in said
    with running(docker, tag) as (name, client):
        assert client.methods.greet(name="Ada") == "Hello, Ada!"
        assert docker("inspect", "--format", "{{.Config.Labels.mine}}", name) == "yes"


def test_ctrl_c_ends_the_build_and_its_steps(docker, image_folder, base_image):
    (image_folder / "Dockerfile").write_text(f"FROM {base_image}\nRUN echo begun && sleep 61234\n")
    command = [sys.executable, "-m", "modelkit", "build", str(image_folder), "--builder", "docker", "-v"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while "begun" not in (line := process.stderr.readline()) or "RUN" in line:
        assert line
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    deadline = time.monotonic() + 30
    while any(b"61234" in command_line(path) for path in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def command_line(process_dir):
    try:
        return (process_dir / "cmdline").read_bytes()
    except OSError:
        return b""


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_base_image_that_is_not_there(image_folder, docker):
    said = build_fails(image_folder, "--builder", "docker", "--set", "build.image=localhost:1/none:1")
    assert "base image localhost:1/none:1" in said
    assert "build.image" in said


def test_a_requirement_that_does_not_exist_is_named_with_its_line(image_folder, docker):
    (image_folder / "requirements.txt").write_text("# numbers\npackaging==0.0.99\n")
    said = build_fails(image_folder, "--builder", "docker")
    assert f"{image_folder / 'requirements.txt'}:2: packaging==0.0.99" in said


def test_the_other_builder_names_it_too(pushed_base, tmp_path):
    folder = write_folder(tmp_path / "worker", pushed_base)
    (folder / "requirements.txt").write_text("# numbers\npackaging==0.0.99\n")
    said = build_fails(folder, "--builder", "oci")
    assert f"{folder / 'requirements.txt'}:2: packaging==0.0.99" in said
    assert "--builder docker" in said


def test_a_system_package_that_does_not_exist(image_folder, docker):
    said = build_fails(
        image_folder, "--builder", "docker", "--set", "build.system_packages=[no-such-package-here]"
    )
    assert "no system package 'no-such-package-here'" in said
    assert "build.system_packages" in said


def test_a_failed_step_shows_its_last_lines(image_folder, docker, base_image):
    (image_folder / "Dockerfile").write_text(f"FROM {base_image}\nRUN echo the-very-reason && exit 3\n")
    said = build_fails(image_folder, "--builder", "docker")
    assert "RUN echo the-very-reason" in said
    assert "    the-very-reason" in said


def test_a_daemon_that_does_not_run(image_folder, docker, tmp_path):
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    said = build_fails(image_folder, "--builder", "docker", env=environment)
    assert "the Docker daemon does not run" in said
    assert "systemctl start docker" in said


def test_auto_takes_the_builder_that_can_and_says_why(pushed_base, tmp_path, docker):
    folder = write_folder(tmp_path / "worker", pushed_base)
    command = [sys.executable, "-m", "modelkit", "build", str(folder)]
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "MODELKIT_REGISTRY_DIR": str(tmp_path / "r"),
    }
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "building with oci: the Docker daemon does not run" in run.stderr
    assert (tmp_path / "r/worker/index.json").is_file()


# -------------------------------------------------------------------------------------------------------------- secrets


def every_byte(docker, tag, tmp_path):
    """Everything that is in an image: each file of each layer, the config, the history."""
    saved = tmp_path / "saved.tar"
    docker("save", "--output", str(saved), tag)
    found = []
    with tarfile.open(saved) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                found.append(file.read())
    saved.unlink()
    return found


PLANTED = ("pl4nted-p4ssword", "PLANTED-CA-MARK", "/planted/")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A CA and pip settings with a mark in each; they still work."""
    ca = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt").read_text()
    (tmp_path / "ca.pem").write_text(f"{ca}\n# PLANTED-CA-MARK\n")
    (tmp_path / "pip.conf").write_text(
        "[global]\nextra-index-url = http://robot:pl4nted-p4ssword@127.0.0.1:9/simple file:///planted/folder\n"
        "retries = 0\nfind-links = /planted/wheels\n"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


@pytest.mark.parametrize("builder", ["docker", "oci"])
def test_secrets_of_a_build_are_nowhere_in_the_image(
    docker, base_image, pushed_base, registry, planted, tmp_path, builder
):
    """The CA, pip's settings and the index's password are used, and are in no layer, no history and no output."""
    folder = write_folder(tmp_path / "worker", base_image if builder == "docker" else pushed_base)
    (folder / "requirements.txt").write_text("packaging==24.2  # a new dependencies layer\n")
    tag = f"{registry.host}/test/secrets:{builder}"
    _, said = build(folder, "--builder", builder, "--tag", tag, "--push", "-v")
    docker("pull", tag)
    docker.tags.add(tag)
    assert "packaging" in said
    assert "robot:****@127.0.0.1" in said  # pip did get it
    if builder == "oci":  # pip runs here, and says of folders of this machine that they are not there
        said = "".join(line for line in said.splitlines() if "/planted/" not in line)
    history = docker("history", "--no-trunc", tag)
    config = docker("image", "inspect", tag)
    contents = every_byte(docker, tag, tmp_path)
    assert any(b"Hello" in content for content in contents)  # the scan sees files
    for secret in PLANTED:
        assert secret not in said
        assert secret not in history
        assert secret not in config
        assert not [len(content) for content in contents if secret.encode() in content], secret


def test_the_dry_run_does_nothing(capsys, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "worker", "python:3.11-slim")
    monkeypatch.setenv("PATH", "")
    assert main(["build", str(folder), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("# modelkit: COPY finds")
    assert "FROM python:3.11-slim" in printed.out
    assert "would be built in this order" in printed.err
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "model.py"]
