"""Builds with BuildKit through the docker client, or with podman where there is no Docker: anything a Dockerfile can do.

The client and not the Engine's API: it sends only those files of the context that have changed since it last did.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from modelkit.errors import BuildError, UsageError
from modelkit.image.builders.base import BuiltImage, ImageLayer, Progress
from modelkit.image.builders.causes import build_failure
from modelkit.image.builders.plain_output import BuildOutput
from modelkit.image.cache import cache_dir
from modelkit.image.context import folder_files, stage
from modelkit.image.dockerfile import DEPENDENCIES_DIR, render
from modelkit.image.plan import APP_DIR, WEIGHTS_DIR, ImagePlan, sdk_requirement
from modelkit.image.requirements import REQUIREMENTS, ImageFile
from modelkit.image.sdk_wheel import sdk_wheel
from modelkit.image.secrets import BuildSecrets, build_secrets
from modelkit.image.tool import Tool, find_tool, tool_problem
from modelkit.registry import parse_image
from modelkit.registry.reference import DOCKER_HUB

__all__ = ["DockerBuilder", "read_history"]

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOVED = ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")

# What a line of the history made: BuildKit keeps the instruction, podman writes "COPY dir:1814b... in /app/".
_LAYERS = (
    (re.compile(rf"COPY (?:app |\S+ in {APP_DIR})"), "code"),
    (re.compile(rf"COPY (?:weights |\S+ in {WEIGHTS_DIR})"), "weights"),
    (re.compile(r"-m pip install"), "dependencies"),
    (re.compile(r"apt-get install"), "system packages"),
    (re.compile(r"-m venv"), "environment"),
)
_SIZE = re.compile(r"(?P<number>[\d.]+) ?(?P<unit>B|kB|MB|GB)?")
_UNITS = {None: 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


class DockerBuilder:
    """BuildKit, or podman, as `tool`."""

    name: ClassVar[str] = "docker"

    def __init__(self, tool: Tool | None = None) -> None:
        self.tool = tool or _require_tool()

    def build(
        self, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress, *, push: bool = False
    ) -> BuiltImage:
        """Build the image into the tool's own store; see Builder."""
        _check_tag(plan.tag, push=push)
        secrets = build_secrets()
        with _one_at_a_time(plan, progress), tempfile.TemporaryDirectory(prefix="modelkit-build-") as scratch:
            source = self._source(plan, weights, progress)
            id_file = Path(scratch) / "id"
            arguments = [
                "build",
                *self._options(plan, secrets, Path(scratch)),
                "--iidfile",
                str(id_file),
                *source,
            ]
            self._run(plan, arguments, secrets, progress)
            image_id = id_file.read_text(encoding="utf-8").strip()
        digest = self._push(plan, progress) if push else None
        return BuiltImage(
            builder=self.tool.name,
            reference=plan.tag,
            id=image_id,
            digest=digest,
            layers=self._layers(image_id),
            labels=plan.labels,
        )

    def _source(self, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress) -> list[str]:
        """Return the end of the command line: the Dockerfile and the folder that COPY sees."""
        if plan.is_foreign:
            return ["--file", str(plan.dockerfile), str(plan.model_dir)]
        progress.on_stage("collecting files")
        wheel = sdk_wheel()
        context = context_dir(plan)
        files = [ImageFile(f"app/{file.name}", file.path) for file in plan.code]
        files += [ImageFile(f"{DEPENDENCIES_DIR}/{file.name}", file.path) for file in plan.requirements.files]
        if wheel is not None:
            files.append(ImageFile(f"{DEPENDENCIES_DIR}/{wheel.name}", wheel))
        for name, folder in weights.items():
            files += [ImageFile(f"weights/{name}/{file.name}", file.path) for file in folder_files(folder)]
        own = plan.dockerfile
        texts = {
            "Dockerfile": own.read_text(encoding="utf-8")
            if own
            else render(plan, sdk_requirement(plan, wheel)),
            f"{DEPENDENCIES_DIR}/{REQUIREMENTS}": plan.requirements.text,
        }
        stage(context, texts, files)
        return [str(context)]

    def _options(self, plan: ImagePlan, secrets: BuildSecrets, scratch: Path) -> list[str]:
        options = ["--tag", plan.tag]
        if self.tool.is_docker:
            options += ["--progress", "plain"]
        else:
            # OCI's own format has no health check.
            options += ["--format", "docker", "--layers"]
        if plan.platform is not None:
            options += ["--platform", plan.platform]
        for secret, content in secrets.files.items():
            if not content:
                continue  # the steps do without
            path = scratch / secret
            path.touch(mode=0o600)
            path.write_bytes(content)
            options += ["--secret", f"id={secret},src={path}"]
        # Without a value the client takes it from its environment: a proxy's password is in no list of processes.
        # These arguments are known to every Dockerfile and kept out of the history.
        for name in _PROXIES:
            if os.environ.get(name):
                options += ["--build-arg", name]
        if any(urlsplit(os.environ.get(name, "")).hostname in _LOOPBACK for name in _MOVED):
            options += ["--network", "host"]  # a proxy on this machine's loopback
        return options

    def _run(self, plan: ImagePlan, arguments: list[str], secrets: BuildSecrets, progress: Progress) -> None:
        output = BuildOutput(progress)
        # Without attestations the result is one image, not an index of several things.
        environment = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "NO_COLOR": "1"}
        code = self.tool.stream(
            *arguments, on_line=lambda line: output.feed(secrets.hide(line)), environment=environment
        )
        if code != 0:
            # Asked now only, for the question takes as long as a part of a build that has nothing to do.
            problem = tool_problem(self.tool)
            if problem is not None:
                raise problem
            raise build_failure(plan, output.failed_step, output.tail)

    def _push(self, plan: ImagePlan, progress: Progress) -> str | None:
        """Push the tag; return the manifest's digest as the registry has it."""
        progress.on_stage(f"pushing {plan.tag}")
        lines: list[str] = []

        def heard(line: str) -> None:
            lines.append(line)
            progress.on_output(line)

        if self.tool.stream("push", plan.tag, on_line=heard) != 0:
            last = "".join(f"\n    {line}" for line in lines[-4:])
            raise BuildError(
                f"the image was built, and {plan.tag} could not be pushed{last}",
                cure="`docker login REGISTRY`, or give a --tag that names a registry you may push to",
            )
        answer = self.tool.ask("image", "inspect", "--format", "{{json .RepoDigests}}", plan.tag)
        digests = json.loads(answer.stdout or "null") or []
        name = plan.tag.rpartition(":")[0]
        return next((item.partition("@")[2] for item in digests if item.partition("@")[0] == name), None)

    def _layers(self, image_id: str) -> tuple[ImageLayer, ...]:
        """Return what is in the image, from its history: ours by name, everything below them as the base."""
        history = self.tool.ask(
            "history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image_id
        )
        return read_history(history.stdout)


def read_history(text: str) -> tuple[ImageLayer, ...]:
    """Return the layers of `docker history`, newest first with "SIZE TAB INSTRUCTION" a line, from below."""
    layers: list[ImageLayer] = []
    base_bytes = 0
    for line in reversed(text.splitlines()):
        size, _, made_by = line.partition("\t")
        name = next((name for mark, name in _LAYERS if mark.search(made_by)), None)
        if name is not None:
            layers.append(ImageLayer(name, _bytes(size)))
        elif not layers:
            base_bytes += _bytes(size)
    return (ImageLayer("base", base_bytes), *layers)


def context_dir(plan: ImagePlan) -> Path:
    """Return where the context of a model folder is kept from build to build."""
    import hashlib

    key = hashlib.sha256(str(plan.model_dir.resolve()).encode()).hexdigest()[:16]
    return cache_dir() / "contexts" / key


@contextmanager
def _one_at_a_time(plan: ImagePlan, progress: Progress) -> Iterator[None]:
    """Hold the lock of a folder's context: another build of the same folder would change it under this one."""
    import fcntl

    path = context_dir(plan).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress.on_stage("waiting for another build of this folder")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_tag(tag: str, *, push: bool) -> None:
    """Say before the build what is wrong with a name, in better words than the tool, and whether it can be pushed."""
    image = parse_image(tag)
    if push and image.registry == DOCKER_HUB and image.repository.startswith("library/"):
        raise UsageError(f"--push needs a registry, and {tag} names none", cure="--tag REGISTRY/NAME:TAG")


def _require_tool() -> Tool:
    for name in ("docker", "podman"):
        tool = find_tool(name)
        if tool is not None:
            return tool
    raise BuildError(
        "there is neither docker with BuildKit nor podman on the PATH",
        cure="install Docker (its buildx plugin too) or podman, or use `--builder oci`, which needs none of them",
    )


def _bytes(size: str) -> int:
    """Read a size: docker writes bytes when it is asked to, podman "122 MB" in any case."""
    match = _SIZE.fullmatch(size.strip())
    return round(float(match["number"]) * _UNITS[match["unit"]]) if match else 0
