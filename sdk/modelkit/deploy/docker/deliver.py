"""Brings an image to a Docker host: built there from a folder, pulled there from a registry, or sent from this machine.

Weights travel as the image's plan has it: in the image, or fetched by the replica into the host's cache volume.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelkit.checkpoints.resolve import Terms, prepare
from modelkit.computes.docker_api import DockerHost
from modelkit.config import Config, load_config
from modelkit.deploy.base import Delivery, Origin
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import BuildError, DeployError
from modelkit.image import Progress, plan_image
from modelkit.image.builders.docker import DockerBuilder
from modelkit.image.tool import find_tool
from modelkit.progress import TransferProgress
from modelkit.registry import LayoutReference, Manifest, Reference, parse_reference
from modelkit.registry.credentials import find_credential
from modelkit.registry.docker_archive import archive
from modelkit.versions.local import materialize
from modelkit.versions.names import open_version
from modelkit.versions.version import Version

__all__ = ["deliver", "image_prefix", "image_tag"]

_DIGEST_CHARACTERS = 12


def deliver(host: DockerHost, spec: DeploymentSpec, origin: Origin, delivery: Delivery) -> str:
    """Return what the image is called on the host, where it is now. Raises BuildError, DeployError, RegistryError."""
    if origin.folder is not None:
        options = [part for option in spec.serve_options() for part in option]
        return _build(host, spec, spec.parsed_config(), origin.folder, options, delivery)
    assert origin.reference is not None
    reference = parse_reference(origin.reference)
    with open_version(reference) as version:
        has_image = bool(version.images)
        if has_image and isinstance(reference, LayoutReference):
            return _load(host, spec, version, delivery)
    if has_image and isinstance(reference, Reference):
        return _pull(host, reference, delivery)
    return _build_version(host, spec, origin.reference, delivery)


def image_prefix(name: str) -> str:
    """Return the repository of the images that were built or loaded for a deployment."""
    return f"modelkit/{name}"


def image_tag(spec: DeploymentSpec) -> str:
    """Return what the image of a specification is called if it was built or loaded."""
    return f"{image_prefix(spec.name)}:{spec.digest.removeprefix('sha256:')[:_DIGEST_CHARACTERS]}"


def _build(
    host: DockerHost,
    spec: DeploymentSpec,
    config: Config,
    folder: Path,
    options: Sequence[str],
    delivery: Delivery,
) -> str:
    tool = find_tool("docker")
    if tool is None:
        raise BuildError(
            f"{folder} has to be built on {host.compute.name}, and there is no docker client with BuildKit here",
            cure="install the docker client (no daemon is needed), or `modelkit upload --builder oci` and deploy the version",
        )
    plan = plan_image(config, folder, tag=image_tag(spec), serve_options=options)
    weights: Mapping[str, Path] = {}
    if plan.weights == "inside" and not plan.is_foreign:
        terms = Terms(progress=delivery.progress, on_note=delivery.on_line, writes_lock=not options)
        weights = prepare(config, folder, terms)
    builder = DockerBuilder(replace(tool, environment=host.cli_environment))
    return builder.build(plan, weights, Progress(delivery.on_line, delivery.on_line)).id


def _build_version(host: DockerHost, spec: DeploymentSpec, reference: str, delivery: Delivery) -> str:
    """Build the image of a version that was uploaded without one."""
    pulled = materialize(reference, progress=delivery.progress)
    places = pulled.overrides[len(pulled.settings) :]
    overrides = [*spec.overrides, *places]
    config = load_config(pulled.folder, environment=spec.environment, overrides=overrides)
    told = replace(spec, overrides=tuple(overrides)).serve_options()
    options = [part for option in told for part in option]
    return _build(host, spec, config, pulled.folder, options, delivery)


def _pull(host: DockerHost, reference: Reference, delivery: Delivery) -> str:
    """Have the host pull a version's image by its digest; it asks the registry with this machine's credential."""
    assert reference.digest is not None
    credential = find_credential(reference.registry, reference.repository)
    login = None
    if credential is not None:
        login = {"username": credential.username, "password": credential.password}
        if credential.identity_token:
            login = {"identitytoken": credential.identity_token}
    image = f"{reference.name}@{reference.digest}"
    delivery.on_line(f"{host.compute.name} pulls {image}")
    with host.asking(f"pull {image}"):
        lines = host.client.api.pull(
            reference.name, tag=reference.digest, stream=True, decode=True, auth_config=login
        )
        error = _follow_pull(lines, delivery.progress)
    if error:
        raise DeployError(
            f"{host.compute.name} cannot pull {image}: {error}",
            cure="the host itself has to reach the registry: see `docker pull` there; `docker login` here",
        )
    return image


def _follow_pull(lines: Iterator[Mapping[str, Any]], progress: TransferProgress) -> str:
    """Hand on what a pull tells; return its error, "" for none."""
    sizes: dict[str, int] = {}
    done: dict[str, int] = {}
    for line in lines:
        if "error" in line:
            return str(line["error"])
        layer, detail = str(line.get("id", "")), line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            if layer not in sizes:
                sizes[layer], done[layer] = detail["total"], 0
                progress.begin(len(sizes), sum(sizes.values()))
                progress.started(layer, sizes[layer])
            progress.advanced(layer, detail["current"] - done[layer])
            done[layer] = detail["current"]
        elif line.get("status") == "Download complete" and layer in sizes:
            progress.advanced(layer, sizes[layer] - done[layer])
            progress.finished(layer)
    return ""


def _load(host: DockerHost, spec: DeploymentSpec, version: Version, delivery: Delivery) -> str:
    """Send a version's image from a layout on this machine, unless the host has it."""
    import docker.errors

    manifest, tag = _fitting_image(host, version), image_tag(spec)
    with host.asking("look for the image"):
        try:
            image = host.client.images.get(manifest.blobs[0].digest)
            image.tag(tag)
            return str(image.id)
        except docker.errors.ImageNotFound:
            pass
    name = f"{spec.model_id} {spec.version}"
    size_bytes = sum(blob.size_bytes for blob in manifest.blobs)
    delivery.progress.begin(1, size_bytes)
    delivery.progress.started(name, size_bytes)
    with host.asking("load the image"):
        host.client.images.load(_told(archive(version.store, manifest, tag), name, delivery.progress))
        loaded = host.client.images.get(tag).id
    delivery.progress.finished(name)
    return str(loaded)


def _told(pieces: Iterator[bytes], name: str, progress: TransferProgress) -> Iterator[bytes]:
    for piece in pieces:
        progress.advanced(name, len(piece))
        yield piece


def _fitting_image(host: DockerHost, version: Version) -> Manifest:
    with host.asking("say what machine it is"):
        info = host.client.version()
    wanted = {"os": info["Os"], "architecture": info["Arch"]}
    for image in version.images:
        platform = image.platform or wanted
        if all(platform.get(key, value) == value for key, value in wanted.items()):
            return version.store.get_manifest(image.digest)
    there = ", ".join(
        f"{each.platform.get('os')}/{each.platform.get('architecture')}"
        for each in version.images
        if each.platform
    )
    raise DeployError(
        f"{host.compute.name} is {info['Os']}/{info['Arch']}, and the version has images for {there} only",
        cure=f"upload one for it: --set build.platform={info['Os']}/{info['Arch']}",
    )
