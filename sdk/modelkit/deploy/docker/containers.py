"""Single things that are done to containers and images on a Docker host, each as often as one likes."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

from modelkit.computes.docker_api import DEPLOYMENT, REPLICA, REVISION, DockerHost, is_draining, ready_ones
from modelkit.deploy.docker.deliver import image_prefix, image_tag
from modelkit.deploy.docker.gpus import device_request
from modelkit.deploy.docker.look import container_name, gpus_of, look
from modelkit.deploy.docker.roll import Seen
from modelkit.deploy.docker.state import State
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import DeployError, UsageError

__all__ = [
    "create",
    "discard",
    "end",
    "entrypoint_of",
    "environment_for",
    "environment_of",
    "free_numbers",
    "left_for_later",
    "number_of",
    "remove",
    "remove_nameless",
    "runs",
    "start",
    "taken_gpus",
    "takes_calls",
    "untag",
    "untag_version",
]

_MAX_CHARACTERS = 300
_ENDPOINT = re.compile(r"driver failed programming external connectivity on endpoint \S+ \(\w+\): ")


def discard(host: DockerHost, state: State, listed: Sequence[dict[str, Any]]) -> None:
    """Remove what an attempt before this has left: containers of another revision that serve nobody and never did."""
    revision = state.revision
    others = [each for each in listed if each["Labels"].get(REVISION) != revision]
    view = look(host, state, others)
    useless = [each.id for each in view.seen if each.phase in {"created", "failed"}]
    for identity in useless:
        remove(host, identity)
    images = [view.containers[identity]["ImageID"] for identity in useless]
    remove_nameless(host, images, (state.record.spec, *state.record.history))


def create(host: DockerHost, options: Mapping[str, Any]) -> str:
    """Make a container without starting it, and return its id. Raises DeployError where its image is gone."""
    import docker.errors
    from docker.types import LogConfig

    options = dict(options)
    gpus = options.pop("gpus", None)
    options["log_config"] = LogConfig(**options["log_config"])
    # The SDK spells "any free port" as an address alone.
    options["ports"] = {
        port: (address, ports) if ports else (address,) for port, (address, ports) in options["ports"].items()
    }
    if gpus:
        options["device_requests"] = [device_request(gpus)]
    with host.asking(f"make {options['name']}"):
        try:
            return str(host.client.containers.create(**options).id)
        except docker.errors.ImageNotFound as error:
            raise _no_image(host, str(options["image"])) from error


def _no_image(host: DockerHost, image: str) -> DeployError:
    return DeployError(
        f"{host.compute.name} has lost the image {image}",
        cure="deploy the version again from its folder or its registry: `modelkit serve REF --compute ...`",
    )


def start(host: DockerHost, seen: Seen, container: Mapping[str, Any]) -> str:
    """Start a container, or take one back that had been told to end; return why the daemon refuses to, else "".

    A refusal is no reason to raise: what is wrong with one replica keeps nobody from looking at the deployment.
    """
    import docker.errors

    try:
        if is_draining(dict(container)):  # it had been replaced, and is wanted again
            with host.asking("take a replica back"):
                host.client.api.rename(seen.id, seen.name)
        with host.asking(f"start {seen.name}"):
            host.client.api.start(seen.id)
    except DeployError as error:
        if isinstance(error.__cause__, docker.errors.NotFound):
            return ""  # another process has removed it
        if not isinstance(error.__cause__, docker.errors.APIError):
            raise
        return _in_short(str(error.__cause__.explanation or error.__cause__))
    return ""


def _in_short(text: str) -> str:
    """Return what a daemon says in one line, without what tells nothing: the same for replicas with the same fault."""
    line = next(iter(text.strip().splitlines()), "")
    return _ENDPOINT.sub("", line)[:_MAX_CHARACTERS]


@contextmanager
def left_for_later() -> Iterator[None]:
    """Leave a step that the daemon refuses to the next look."""
    import docker.errors

    try:
        yield
    except DeployError as error:
        if not isinstance(error.__cause__, docker.errors.APIError):
            raise


def remove(host: DockerHost, identity: str) -> None:
    """Remove a container, whatever it does."""
    import docker.errors

    with host.asking("remove a replica"):
        try:
            host.client.api.remove_container(identity, force=True, v=True)
        except docker.errors.NotFound:
            return  # another process was faster
        except docker.errors.APIError as error:
            if "already in progress" not in str(error):
                raise


def end(host: DockerHost, container: Mapping[str, Any], timeout_s: int) -> None:
    """Let a replica's calls end, and remove it."""
    import docker.errors

    if container["State"] in {"running", "restarting"}:
        with host.asking(f"stop {container_name(container)}"), suppress(docker.errors.NotFound):
            host.client.api.stop(container["Id"], timeout=timeout_s)
    remove(host, container["Id"])


def untag(host: DockerHost, name: str, kept: Sequence[DeploymentSpec] = ()) -> None:
    """Remove the names of the images that were made for a deployment, but for those that may be put back.

    What no other image or container uses goes with them; what a container still uses keeps its name until the next time.
    """
    with host.asking("remove the images"):
        for image in host.client.images.list(name=image_prefix(name)):
            for tag in image.tags:
                if tag.startswith(f"{image_prefix(name)}:") and tag not in map(image_tag, kept):
                    _remove_tag(host, tag)


def untag_version(host: DockerHost, spec: DeploymentSpec) -> None:
    """Remove the name of the image that was made for a specification."""
    with host.asking("remove an image"):
        _remove_tag(host, image_tag(spec))


def remove_nameless(host: DockerHost, images: Iterable[str], kept: Sequence[DeploymentSpec] = ()) -> None:
    """Remove images that have no name any more: another one was made for the same version, and has taken it.

    Those that may be put back stay, and those that another container uses.
    """
    import docker.errors

    for image in set(images) - {spec.artifact for spec in kept}:
        with host.asking("remove an image"), suppress(docker.errors.ImageNotFound):
            found = host.client.api.inspect_image(image)
            if not found.get("RepoTags") and not found.get("RepoDigests"):
                _remove_tag(host, image)


def _remove_tag(host: DockerHost, tag: str) -> None:
    import docker.errors

    try:
        host.client.api.remove_image(tag)
    except docker.errors.APIError as error:
        if error.status_code not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
            raise


def takes_calls(host: DockerHost, container: Mapping[str, Any]) -> bool:
    """Tell whether the model in a container answers."""
    return bool(ready_ones(host.compute, [dict(container)]))


def entrypoint_of(host: DockerHost, spec: DeploymentSpec) -> list[str]:
    """Return the entrypoint of an image. Raises DeployError where it is gone."""
    import docker.errors

    with host.asking("look at the image"):
        try:
            config = host.client.api.inspect_image(spec.artifact)["Config"]
        except docker.errors.ImageNotFound as error:
            raise _no_image(host, spec.artifact) from error
    return list(config.get("Entrypoint") or ())


def environment_for(
    host: DockerHost, spec: DeploymentSpec, listed: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Return the values of a specification's variables: of this process, else of a replica that has them.

    Raises UsageError where one that is needed is nowhere.
    """
    variables = spec.variables()
    found = {name: os.environ.get(name, "") for name in variables.all}
    if not all(found.values()):
        there: dict[str, str] = {}
        for each in listed:
            there |= environment_of(host, each["Id"])
        found = {name: value or there.get(name, "") for name, value in found.items()}
    missing = [name for name in variables.needed if not found[name]]
    if missing:
        raise UsageError(
            f"{spec.name} needs {' and '.join(missing)}, set neither here nor in a replica of it",
            cure="; ".join(f"export {name}=..." for name in missing),
        )
    return {name: value for name, value in found.items() if value}


def environment_of(host: DockerHost, identity: str) -> dict[str, str]:
    """Return the variables of a container."""
    import docker.errors

    with host.asking("inspect a replica"):
        try:
            lines = host.client.api.inspect_container(identity)["Config"]["Env"] or []
        except docker.errors.NotFound:
            return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def number_of(container: Mapping[str, Any]) -> int:
    """Return the number of a container's replica."""
    return int(container["Labels"].get(REPLICA, "0"))


def free_numbers(listed: Sequence[dict[str, Any]], num: int) -> list[int]:
    """Return numbers that no replica has, the lowest first."""
    taken = {number_of(each) for each in listed}
    free = (number for number in range(1, len(taken) + num + 1) if number not in taken)
    return [number for number, _ in zip(free, range(num), strict=False)]


def taken_gpus(containers: Sequence[Mapping[str, Any]], states: Mapping[str, State]) -> set[str]:
    """Return the ids of the GPUs that containers hold: those that run, and those that are wanted and will.

    `states` are those of their deployments, by name.
    """
    return {gpu for each in containers if _holds_gpus(each, states) for gpu in gpus_of(each)}


def _holds_gpus(container: Mapping[str, Any], states: Mapping[str, State]) -> bool:
    state = states.get(container["Labels"].get(DEPLOYMENT, ""))
    is_wanted = state is not None and container["Labels"].get(REVISION) == state.revision
    return is_wanted or runs(container)


def runs(container: Mapping[str, Any]) -> bool:
    """Tell whether a container of a listing runs, or is about to again."""
    return container["State"] in {"running", "restarting", "paused"}
