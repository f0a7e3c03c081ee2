"""From a change of the code to the new image in a registry: both builders of `modelkit build` beside plain Docker.

    python benchmarks/build.py [--runs 7] [--mib 256] [--json FILE]

A real registry (Debian's docker-registry) and a real Docker on this machine; the base image is the one of the tests
(`make test-base`). Plain Docker is a Dockerfile as one would write it by hand, dependencies before weights before code,
with `docker build` (BuildKit) and `docker push`. Each builder has a repository of its own. First everything is built once
from nothing but the base; then each round changes one line of model.py and builds with each, so that a noisy moment hits
all of them. Medians of wall time are printed, and the ratio to plain Docker.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from modelkit.image.sdk_wheel import sdk_wheel
from modelkit.image.secrets import build_secrets
from modelkit.image.tool import Tool, find_tool, tool_problem
from registry_server import RegistryServer

BASE = "modelkit-test-base:bookworm"
MODEL = """\
from modelkit import Model, method


class Echo(Model):
    @method
    def echo(self, text: str) -> str:
        return text
"""
DOCKERFILE = """\
FROM {base}
RUN python3 -m venv /venv
RUN --mount=type=bind,source={wheel},target=/tmp/{wheel} \\
    --mount=type=secret,id=ca,target=/run/secrets/ca.crt \\
    --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \\
    --mount=type=cache,target=/root/.cache/pip \\
    PIP_CONFIG_FILE=/run/secrets/pip.conf /venv/bin/pip install /tmp/{wheel}
COPY checkpoint /model/checkpoint
COPY config.yaml model.py /model/
ENTRYPOINT ["/venv/bin/modelkit", "serve", "/model", "--host", "0.0.0.0"]
"""


def run(*command: str, environment: dict[str, str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:5])}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


def builders(
    docker: Tool, registry: RegistryServer, folder: Path, scratch: Path
) -> dict[str, Callable[[str], None]]:
    """Return each way to build and push, as a function of the new image's tag."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "XDG_CACHE_HOME": str(scratch / "cache")}
    modelkit = [sys.executable, "-m", "modelkit", "build", str(folder), "--push"]
    plain = scratch / "plain"
    secrets = []
    for name, content in build_secrets().files.items():
        (scratch / name).write_bytes(content)
        secrets += ["--secret", f"id={name},src={scratch / name}"] if content else []

    def plain_docker(tag: str) -> None:
        for name in ("config.yaml", "model.py"):
            shutil.copyfile(folder / name, plain / name)
        named = f"{registry.host}/plain:{tag}"
        run(docker.path, "build", "--quiet", *secrets, "--tag", named, str(plain), environment=environment)
        run(docker.path, "push", "--quiet", named, environment=environment)

    def with_builder(name: str) -> Callable[[str], None]:
        return lambda tag: run(
            *modelkit, "--builder", name, "--tag", f"{registry.host}/{name}:{tag}", environment=environment
        )

    return {
        "docker build + docker push": plain_docker,
        "modelkit build --builder docker": with_builder("docker"),
        "modelkit build --builder oci": with_builder("oci"),
    }


def prepare(docker: Tool, registry: RegistryServer, folder: Path, plain: Path, num_mib: int) -> None:
    """Push the base image, and write the model folder and the hand-written context beside it."""
    base = f"{registry.host}/base:1"
    run(docker.path, "tag", BASE, base, environment=dict(os.environ))
    run(docker.path, "push", "--quiet", base, environment=dict(os.environ))
    (folder / "checkpoint").mkdir(parents=True)
    with (folder / "checkpoint" / "model.bin").open("wb") as file:
        for _ in range(num_mib):
            file.write(os.urandom(1024**2))
    (folder / "config.yaml").write_text(
        f"model: {{id: echo}}\nbuild: {{image: '{base}', python_version: '3.11'}}\n"
        "checkpoints: {type: local, path: checkpoint}\n"
    )
    (folder / "model.py").write_text(MODEL)
    plain.mkdir()
    (plain / "checkpoint").mkdir()
    os.link(folder / "checkpoint" / "model.bin", plain / "checkpoint" / "model.bin")
    wheel = sdk_wheel()
    if wheel is None:
        raise SystemExit("run this from a source tree: plain Docker gets the same wheel")
    shutil.copyfile(wheel, plain / wheel.name)
    (plain / "Dockerfile").write_text(DOCKERFILE.format(base=base, wheel=wheel.name))


def seconds(function: Callable[[str], None], tag: str) -> float:
    started = time.perf_counter()
    function(tag)
    return time.perf_counter() - started


def measure(
    ways: dict[str, Callable[[str], None]], folder: Path, runs: int
) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {name: {"first": [], "change": []} for name in ways}
    for name, build in ways.items():
        times[name]["first"].append(seconds(build, "first"))
    for number in range(runs):
        (folder / "model.py").write_text(f"{MODEL}\n# change {number} at {time.time()}\n")
        for name, build in ways.items():
            times[name]["change"].append(seconds(build, f"change-{number}"))
    return times


def report(times: dict[str, dict[str, list[float]]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    floor = {phase: statistics.median(samples) for phase, samples in next(iter(times.values())).items()}
    print(f"{'':<34}{'first s':>9}{'ratio':>7}{'code change s':>16}{'ratio':>7}")
    for name, phases in times.items():
        first, change = (statistics.median(phases[phase]) for phase in ("first", "change"))
        ratios = first / floor["first"], change / floor["change"]
        print(f"{name:<34}{first:>9.2f}{ratios[0]:>7.2f}{change:>16.2f}{ratios[1]:>7.2f}")
        rows.append(
            {
                "way": name,
                "first_s": round(first, 2),
                "change_s": [round(each, 3) for each in phases["change"]],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=256, help="MiB of weights in the image")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    docker = find_tool("docker")
    problem = tool_problem(docker) if docker is not None else None
    if docker is None or problem is not None:
        raise SystemExit(f"this needs Docker: {problem or 'apt-get install docker.io'}")
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        registry = RegistryServer(scratch / "registry").start()
        try:
            folder = scratch / "model"
            prepare(docker, registry, folder, scratch / "plain", options.mib)
            times = measure(builders(docker, registry, folder, scratch), folder, options.runs)
        finally:
            registry.kill()
            names = docker.ask(
                "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{registry.host}/*"
            ).stdout
            docker.ask("image", "rm", *names.split())
    print(f"with {options.mib} MiB of weights, the median of {options.runs} changes")
    rows = report(times)
    if options.json:
        version = docker.ask("version", "--format", "{{.Server.Version}}").stdout.strip()
        machine = {"python": platform.python_version(), "docker": version, "cores": os.cpu_count()}
        record = {"command": " ".join(sys.argv), "mib": options.mib, "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
